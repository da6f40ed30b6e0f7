"""Masks by LISA's rules on shapes whose pixels can be counted by hand, and what is refused of a file of cases."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from vrft.errors import UserError
from vrft.evaluate.mask_cases import predicted_mask
from vrft.evaluate.masks import cumulative_iou, score_mask_file
from vrft.evaluate.paired_change import metric_change

WH = {"height": 10, "width": 12}


def rectangle(label, x1, y1, x2, y2):
    """A polygon whose outline runs through the pixels (x1, y1) to (x2, y2), both painted."""
    return {"label": label, "points": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]}


def score(folder, *cases, **options):
    path = folder / "cases.json"
    path.write_text(json.dumps(cases))
    return score_mask_file(path, n_resamples=50, **options)


TARGET = rectangle("target", 1, 1, 4, 4)  # 4 × 4 pixels, the outline with it


@pytest.mark.parametrize(
    ("shapes", "box", "expected", "why"),
    [
        ([TARGET], [1, 1, 5, 5], (16, 0, 16, 16), "the outline is painted; the box has no pixel at x2"),
        ([TARGET], [1, 1, 4, 4], (16, 0, 9, 16), "one pixel less each way"),
        ([rectangle("target", 1.9, 1.9, 4.9, 4.9)], [1, 1, 5, 5], (16, 0, 16, 16), "points are cut, not rounded"),
        ([TARGET, rectangle("target", 6, 1, 9, 4)], [1, 1, 5, 5], (32, 0, 16, 32), "targets are united"),
        ([TARGET, rectangle("ignore", 6, 0, 9, 9)], [1, 1, 8, 5], (16, 40, 16, 20), "ignored pixels count for neither"),
        ([TARGET, rectangle("ignore", 0, 0, 9, 9)], [1, 1, 5, 5], (16, 84, 16, 16), "the smaller shows"),
        (
            [rectangle("target", 0, 0, 9, 9), rectangle("Ignored", 1, 1, 4, 4)],
            [0, 0, 5, 5],
            (84, 16, 9, 84),
            "also here",
        ),
        ([TARGET, rectangle("flag", 6, 1, 9, 4)], [1, 1, 5, 5], (16, 0, 16, 16), "flags are skipped"),
        ([TARGET], [-5, -5, 99, 99], (16, 0, 16, 120), "a box is cut to the image"),
        ([TARGET], [4, 4, 1, 1], (16, 0, 0, 16), "an inverted box covers nothing"),
        ([TARGET], [0.6, 0.4, 5.5, 5.4], (16, 0, 16, 20), "pixels whose centres the box covers"),
        ([TARGET], None, (16, 0, 0, 16), "no prediction"),
        ([], [1, 1, 5, 5], (0, 0, 0, 16), "nothing to find, something found"),
        ([], None, (0, 0, 0, 0), "nothing to find, nothing found"),
        ([rectangle("ignore", 0, 0, 11, 9)], [1, 1, 5, 5], (0, 120, 0, 0), "all is ignored"),
    ],
)
def test_pixels(tmp_path, shapes, box, expected, why):
    [case] = score(tmp_path, {**WH, "shapes": shapes, "pred_box": box})["cases"]
    assert (case["target_px"], case["ignore_px"], case["intersection"], case["union"]) == expected, why
    assert case["iou"] == pytest.approx(expected[2] / expected[3] if expected[3] else 1.0, abs=1e-6), why


def test_the_first_polygon_alone(tmp_path):
    shapes = [rectangle("ignore", 0, 0, 9, 9), rectangle("flag", 0, 0, 9, 9), TARGET, rectangle("target", 6, 1, 9, 4)]
    [case] = score(tmp_path, {**WH, "shapes": shapes, "pred_box": [1, 1, 10, 5]}, polygons="first")["cases"]
    assert (case["target_px"], case["ignore_px"], case["intersection"], case["union"]) == (16, 0, 16, 36)


def test_the_two_ious(tmp_path):
    whole, half = {"pred_box": [1, 1, 5, 5]}, {"pred_box": [1, 1, 3, 5]}
    nothing = {**WH, "shapes": [], "pred_box": None}
    result = score(tmp_path, *({**WH, "shapes": [TARGET], **one} for one in (whole, half)), nothing)
    assert result["metrics"]["gIoU"]["value"] == pytest.approx((1 + 0.5 + 1) / 3, abs=1e-6)
    assert result["metrics"]["cIoU"]["value"] == pytest.approx(24 / 32, abs=1e-9)
    assert result["metrics"]["cIoU"]["n"] == 3
    low, high = result["metrics"]["cIoU"]["interval"]
    assert low < 24 / 32 < high
    assert result["counts"]["cases_without_prediction"] == result["counts"]["cases_without_target"] == 1


def test_cumulative_iou_of_nothing_is_0():
    assert cumulative_iou([{"intersection": 0, "union": 0}], n_resamples=3)["value"] == 0.0


@pytest.mark.parametrize("is_compressed", [True, False])
def test_run_lengths_are_read_as_coco_writes_them(tmp_path, is_compressed):
    mask = np.zeros((10, 12), np.uint8)
    mask[2:5, 1:9] = 1  # runs that grow and shrink, so that differences are written, of either sign
    mask[7:9, 3:5] = 1
    encoded = coco_masks.encode(np.asfortranarray(mask))
    counts = encoded["counts"].decode()
    if not is_compressed:
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *edges, len(flat)]).tolist()
    case = {**WH, "shapes": [TARGET], "pred_mask": {"size": [10, 12], "counts": counts}}
    assert predicted_mask(case).tolist() == mask.astype(bool).tolist()
    [verdict] = score(tmp_path, case)["cases"]
    assert (verdict["intersection"], verdict["union"]) == (12, 32)


GOOD = {**WH, "shapes": [TARGET], "pred_box": [1, 1, 5, 5]}
LENGTHS = {"size": [10, 12], "counts": [120]}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ([1], ["case 1", "an object is needed"]),
        ({"pred_box": [1, 1, 5, 5]}, ["case 1: height, width, shapes missing"]),
        ({**WH, "shapes": []}, ["pred_box or pred_mask missing"]),
        ({**GOOD, "height": 0}, ["height and width are [0, 12]"]),
        ({**GOOD, "height": 10**6, "width": 10**6}, ["at most 100000000 pixels"]),
        ({**GOOD, "shapes": {}}, ["shapes is {}"]),
        ({**GOOD, "shapes": [{"label": "target", "points": [[0, 0], [1]]}]}, ["shape 0: points is [[0, 0], [1]]"]),
        ({**GOOD, "shapes": [{"label": "target", "points": [[0, float("nan")]]}]}, ["shape 0: points is"]),
        ({**GOOD, "shapes": [{"points": [[0, 0]]}]}, ["shape 0", "label"]),
        ({**GOOD, "pred_box": [0, 0, float("nan"), 1]}, ["pred_box is [0, 0, nan, 1]"]),
        ({**GOOD, "pred_box": [0, 0, 1]}, ["pred_box is [0, 0, 1]"]),
        ({**GOOD, "pred_mask": LENGTHS}, ["pred_box and pred_mask are both given"]),
        ({**GOOD, "pred_box": None, "pred_mask": {"size": [12, 10], "counts": [120]}}, ["pred_mask.size is [12, 10]"]),
        ({**GOOD, "pred_box": None, "pred_mask": {**LENGTHS, "counts": [100]}}, ["of 100 pixels", "10 × 12"]),
        ({**GOOD, "pred_box": None, "pred_mask": {**LENGTHS, "counts": [-1, 121]}}, ["pred_mask is"]),
        (
            {**GOOD, "pred_box": None, "pred_mask": {**LENGTHS, "counts": "0000"}},
            ["cannot be decoded", "of fewer pixels", "10 × 12"],
        ),
        ({**GOOD, "pred_box": None, "pred_mask": {**LENGTHS, "counts": "T3"}}, ["of fewer pixels"]),  # 100
        ({**GOOD, "pred_box": None, "pred_mask": {**LENGTHS, "counts": "i3"}}, ["cannot be decoded"]),  # 121
        ({**GOOD, "pred_box": None, "pred_mask": {**LENGTHS, "counts": ""}}, ["'' is not COCO's compressed text"]),
        (
            {**GOOD, "pred_box": None, "pred_mask": {**LENGTHS, "counts": "h3h"}},
            ["'h3h' is not COCO's compressed text"],
        ),
        ({**GOOD, "pred_box": None, "pred_mask": {**LENGTHS, "counts": "o" * 99}}, ["not COCO's compressed text"]),
        ({**GOOD, "pred_box": None, "pred_mask": {**LENGTHS, "counts": "~"}}, ["not COCO's compressed text"]),
    ],
)
def test_a_wrong_case_is_refused_by_number(tmp_path, case, words):
    with pytest.raises(UserError) as refused:
        score(tmp_path, GOOD, case)
    assert all(word in str(refused.value) for word in words), str(refused.value)


@pytest.mark.parametrize("content", [{}, [], "x"])
def test_a_file_of_another_form_is_refused(tmp_path, content):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="a list of cases is needed"):
        score_mask_file(path)


@pytest.mark.parametrize("metric", ["gIoU", "cIoU"])
def test_a_change_needs_masks_on_both_sides(metric):
    boxes, masks = (
        {"metrics": {"iou": 0.5}},
        {"metrics": {"iou": 0.5}, "mask": {"intersection": 1, "union": 2, "iou": 0.5}},
    )
    assert metric_change([], [boxes], [masks], metric=metric) is None
    assert metric_change([], [masks], [masks], metric=metric, n_resamples=2)["value"] == 0
