"""Which rows the gallery's filters of boxes hold."""

import os

import pytest
from PIL import Image

from vrft.errors import UserError
from vrft.report.gallery import _asked, _image_of, box_tags, choose, image_uri

BOX, NEAR, FAR = [0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]
HALF = [0, 0, 10, 5]  # IoU 0.5 with BOX


def found(*boxes, label="", confidence=0.5):
    return [{"xyxy": xyxy, "confidence": confidence, "label": label} for xyxy in boxes]


@pytest.mark.parametrize(
    ("row", "answer", "expected", "why"),
    [
        ({"gold": [BOX]}, found(NEAR), [], "matched"),
        ({"gold": [BOX]}, found(HALF), [], "at 0.5 itself, as in COCO"),
        ({"gold": [BOX]}, found(FAR), ["missed", "false_positive"], "elsewhere"),
        ({"gold": [BOX, FAR]}, found(BOX), ["missed"], "one of two"),
        ({"gold": [BOX]}, found(BOX, NEAR), ["false_positive"], "a gold box is matched once"),
        ({"gold": [BOX]}, None, ["missed"], "unreadable"),
        ({"gold": []}, found(BOX), ["false_positive"], "nothing to find"),
        ({"gold": []}, [], [], "nothing to find, nothing found"),
        ({"gold": BOX}, NEAR, [], "one box"),
        ({"gold": BOX}, FAR, ["missed", "false_positive"], "one box elsewhere"),
        ({"gold": BOX}, None, ["missed"], "one box, unreadable"),
        (
            {"categories": ["dog"], "gold": [{"label": "dog", "xyxy": BOX}]},
            found(BOX, label="Dog"),
            [],
            "labels as names are compared",
        ),
        (
            {"categories": ["dog", "cat"], "gold": [{"label": "dog", "xyxy": BOX}]},
            found(BOX, label="cat"),
            ["missed", "false_positive"],
            "the wrong label",
        ),
        ({"categories": ["dog"], "gold": []}, found(BOX, label="dog"), ["false_positive"], "labels, nothing to find"),
        ({"categories": ["dog"], "gold": [{"label": "dog", "xyxy": BOX}]}, [], ["missed"], "labels, nothing found"),
    ],
)
def test_boxes_that_match_nothing(row, answer, expected, why):
    assert box_tags(row, {"answer": answer, "metrics": {"iou": 0.0}}) == expected, why


@pytest.mark.parametrize(
    ("row", "scored", "why"),
    [
        ({"gold": BOX}, {"answer": [5, 5], "metrics": {"accuracy": 1.0}}, "a point has no IoU"),
        ({"gold": "cat"}, {"answer": "dog", "metrics": {"accuracy": 0.0}}, "a name"),
        ({"gold": 2}, {"answer": 3, "metrics": {"counting/accuracy": 0.0, "detection/iou": None}}, "of a mixture"),
    ],
)
def test_rows_without_boxes_are_under_neither_filter(row, scored, why):
    assert box_tags(row, scored) == [], why


def test_every_filter_keeps_its_share_where_places_are_few():
    tags = [["improved"]] * 20 + [["wrong"]] * 20 + [["missed"]] * 20 + [["zero"]] * 2
    chosen = choose(tags, 8)
    assert [sum(tag in tags[index] for index in chosen) for tag in ("improved", "wrong", "missed", "zero")] == [2] * 4


def test_a_row_of_anothers_run_names_an_image_that_is_a_file(tmp_path):
    """A device would fill the memory, and a pipe would wait for ever."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe")
    assert image_uri(_image_of({"row_id": "r", "images": ["a.png"]}, tmp_path), what="row r").startswith("data:")
    for image, fault in (("pipe", "a device, a pipe"), ("/dev/zero", "a device, a pipe"), ("../x.png", "outside")):
        with pytest.raises(UserError, match=f"row r: .*{image}.*{fault}"):
            image_uri(_image_of({"row_id": "r", "images": [image]}, tmp_path), what="row r")


def test_an_answer_of_another_form_has_no_boxes():
    for answer in ([{"xyxy": [0, 0, 1]}], [[0, 0, 9, 9], "seven"], {"n": 3}, 3.5, "name", [float("nan")] * 4):
        assert box_tags({"gold": [BOX]}, {"answer": answer, "metrics": {"iou": 0.0}}) == ["missed"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"phrase": "a cup", "category": 7, "categories": {"a": 1}}, "a cup"),
        ({"category": 7, "instruction": "Name it."}, "Name it."),
        ({"categories": ["cup", "dog"]}, "cup, dog"),
        ({"categories": 7}, ""),
    ],
)
def test_what_is_asked_stands_in_a_column_of_texts(columns, expected):
    assert _asked(columns) == expected
