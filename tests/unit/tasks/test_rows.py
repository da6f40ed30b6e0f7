"""Rows files, their hash, and what a gold box may be."""

import json
import re

import pytest

from vrft.errors import UserError
from vrft.files import read_rows, write_rows
from vrft.tasks.rows import box_fault, image_paths, rows_hash

ROW = {"row_id": "a", "images": ["images/a.png"], "image_wh": [64, 48], "gold": "rose"}


def test_rows_come_back_as_written(tmp_path):
    rows = [
        ROW,
        {**ROW, "row_id": "b", "problem": "Wo?\u2028Dort\x85\x0b — 猫 \"'\n"},
    ]  # separators that are no newline
    write_rows(tmp_path / "new" / "rows.jsonl", rows)
    assert read_rows(tmp_path / "new" / "rows.jsonl") == rows


def test_the_same_rows_give_the_same_bytes(tmp_path):
    write_rows(tmp_path / "1", [ROW])
    write_rows(tmp_path / "2", [dict(reversed(ROW.items()))])
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_rows(tmp_path / "rows.jsonl", [{**ROW, "gold": float("nan")}])


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf", b"\n\n"], ids=["plain", "byte order mark", "blank lines"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_what_other_programs_write_is_read(tmp_path, prefix, end):
    (tmp_path / "rows.jsonl").write_bytes(prefix + json.dumps(ROW).encode() + end)
    assert read_rows(tmp_path / "rows.jsonl") == [ROW]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"row_id": "a"', "not JSON"),  # cut
        (b'{"row_id": "\xe9"}', "not UTF-8"),  # Latin-1
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),  # a huge integer
        (b"[" * 100_000, "not JSON"),  # deep nesting
        (b'["a"]', "list found"),
        (b"3", "int found"),
    ],
)
def test_unreadable_lines_are_named_together(tmp_path, line, words):
    (tmp_path / "rows.jsonl").write_bytes(line + b"\n" + json.dumps(ROW).encode() + b"\nnull\n")
    with pytest.raises(UserError, match=f"line 1: .*{words}") as caught:
        read_rows(tmp_path / "rows.jsonl")
    assert "line 3: NoneType found" in str(caught.value)
    assert "line 2" not in str(caught.value)


def test_the_hash_sees_rows_and_image_bytes_and_nothing_else(tmp_path):
    for folder in ("1", "2"):
        (tmp_path / folder / "images").mkdir(parents=True)
        (tmp_path / folder / "images" / "a.png").write_bytes(b"one")
    first = rows_hash([ROW], tmp_path / "1")
    assert rows_hash([ROW], tmp_path / "2") == first  # not where they lie
    assert rows_hash([{**ROW, "gold": "lily"}], tmp_path / "1") != first
    assert rows_hash([ROW, ROW], tmp_path / "1") != first
    (tmp_path / "2" / "images" / "a.png").write_bytes(b"two")
    assert rows_hash([ROW], tmp_path / "2") != first


def test_image_paths_start_at_the_folder_of_the_rows(tmp_path):
    assert image_paths({"images": ["a.png", "/b.png"]}, tmp_path) == [tmp_path / "a.png", type(tmp_path)("/b.png")]


@pytest.mark.parametrize(
    ("xyxy", "words"),
    [
        ([0, 0, 64, 48], None),  # the whole image
        ((0.5, 0, 64.0, 47), None),
        ([0, 0, 64.00001, 48], None),  # what a conversion's rounding leaves
        ([0, 0, 65, 48], "outside the image of 64 × 48"),
        ([-1, 0, 10, 10], "outside"),
        ([10, 10, 5, 20], "no area"),  # inverted
        ([10, 10, 10, 20], "no area"),
        ([0.1, 0.2, 0.45, 0.6], "in fractions of the image.*dataset.frame=norm1"),
        ([0, 0, 1, 1.5], None),
        ([1, 2, 3], "four finite numbers"),
        ([1, 2, 3, float("nan")], "four finite numbers"),
        ([1, 2, 3, float("inf")], "four finite numbers"),
        ([1, 2, 3, 10**400], "four finite numbers"),
        ([False, False, True, True], "four finite numbers"),
        (["0", "0", "9", "9"], "four finite numbers"),
        ("0123", "four finite numbers"),
        (None, "four finite numbers"),
        ([[0, 0, 9, 9]], "four finite numbers"),  # a list of boxes
    ],
)
def test_box_fault(xyxy, words):
    fault = box_fault(xyxy, [64, 48])
    assert fault is None if words is None else re.search(words, fault)
