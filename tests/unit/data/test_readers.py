"""Readers of users' rows: damaged and hostile files are refused by name, whatever their parser raises about them."""

from __future__ import annotations

import gzip
import json
import random

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from vrft.data.readers import read_json, read_path, reading
from vrft.errors import UserError


def rows_of(path):
    return [row for _, _, row in read_path(path, key="dataset.path", split="train", faults=[])]


def refusal(path):
    """What is said of a file that is refused; nothing if it is read."""
    try:
        rows_of(path)
    except UserError as error:
        return str(error)
    return ""


def test_whatever_a_parser_raises_names_the_file():
    for error in (MemoryError(), IndexError("pop from an empty list"), RecursionError("too deep\nby far")):
        message = f"x.pth cannot be read as a list .{type(error).__name__}: "
        with pytest.raises(UserError, match=message), reading("x.pth", "a list"):
            raise error
    with pytest.raises(UserError, match=r"^mine$"), reading("x.pth", "a list"):
        raise UserError("mine")


def test_a_gz_that_unpacks_without_end_is_refused_by_name_before_it_fills_the_memory(tmp_path):
    path = tmp_path / "gt.json.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * 2**25 + b"]", 1))
    with pytest.raises(UserError, match=r"gt\.json\.gz: its .* bytes unpack to more than 16,777,216"):
        read_json(path, key="annotations")


def test_a_gz_of_indented_annotations_is_read(tmp_path):
    text = b"[" + b",".join(b'\n        {\n            "id": %d\n        }' % n for n in range(400_000)) + b"]"
    path = tmp_path / "gt.json.gz"
    path.write_bytes(gzip.compress(text, 6))
    assert 2**24 < len(text) < 50 * path.stat().st_size  # above the least that any file may unpack to
    assert len(read_json(path, key="annotations")) == 400_000


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("dataset_info.json", lambda held: held["features"].update(phrase="text")),
        ("dataset_info.json", lambda held: held["features"].update(phrase=[])),
        ("dataset_info.json", lambda held: held["features"].update(phrase={"_type": "Nothing"})),
        ("dataset_info.json", lambda held: held.update(features=7)),
        ("state.json", lambda held: held.update(_format_columns=3)),
        ("state.json", lambda held: held.update(_format_kwargs=[])),
        ("state.json", lambda held: held.update(_data_files=[{}])),
        ("state.json", lambda held: held.clear()),
    ],
)
def test_a_saved_set_of_another_form_is_refused_with_its_path_or_read(tmp_path, file, change):
    path = tmp_path / "saved"
    datasets.Dataset.from_list([{"image": "a.png", "phrase": "x"}]).save_to_disk(path)
    held = json.loads((path / file).read_text())
    change(held)
    (path / file).write_text(json.dumps(held))
    message = refusal(path)  # a format is not looked at
    assert not message or f"dataset.path={path} cannot be read as a folder saved by datasets" in message
    assert message or file == "state.json"


def test_parquet_with_damaged_bytes_is_refused_by_name_or_read(tmp_path):
    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"image": f"{n}.png", "gold": n} for n in range(50)]), path)
    whole, draw, n_refused = path.read_bytes(), random.Random(0), 0
    for _ in range(60):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        message = refusal(path)
        assert not message or str(path) in message
        n_refused += bool(message)
    assert n_refused > 10


def test_a_parquet_cell_that_unpacks_without_end_is_refused_by_file_and_column(tmp_path):
    path, note = tmp_path / "train.parquet", " " * 2**26
    parquet.write_table(pyarrow.table({"image": ["a.png"], "note": [note]}), path, compression="zstd")
    assert path.stat().st_size < 2**16
    assert "train.parquet: its " in (message := refusal(path))
    assert "unpack to 67,1" in message
    assert "the column 'note'" in message
    parquet.write_table(pyarrow.table({"image": [bytes(2**24)], "note": ["x"]}), path, compression=None)
    assert rows_of(path)[0]["note"] == "x"
