"""Reward terms by hand; `ten` is a box of 10 × 10."""

import time

import numpy as np
import pytest

from vrft.rewards import (
    RewardOptions,
    box_giou,
    box_iou,
    detection_confidence,
    detection_iou,
    match_boxes,
    same_name,
    well_formed,
)

TEN, NINE, EIGHT, HALF, FAR = [0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [0, 0, 10, 5], [50, 50, 60, 60]
GREEDY, HUNGARIAN = RewardOptions("greedy"), RewardOptions("hungarian")


@pytest.mark.parametrize(
    ("pred", "confidences", "gold", "options", "matched"),
    [
        ([TEN], [0.5], [TEN], GREEDY, [1]),
        ([FAR], [0.5], [TEN], GREEDY, [0]),
        ([HALF], [0.5], [TEN], GREEDY, [0]),  # exactly the threshold is no match
        ([HALF], [0.5], [TEN], RewardOptions(iou_threshold=0.49), [0.5]),
        ([FAR], [0.5], [TEN], RewardOptions(iou_threshold=0), [0]),  # no overlap never matches
        ([TEN, TEN], [0.5, 0.9], [TEN], GREEDY, [0, 1]),  # one gold box, one match: the more confident
        ([TEN, TEN], [0.5, 0.5], [TEN], GREEDY, [1, 0]),  # equal: the first
        ([TEN, TEN], [0.5, 0.9], [TEN, TEN], GREEDY, [1, 1]),  # two gold boxes in one place
        ([NINE, TEN], [0.9, 0.8], [TEN, EIGHT], GREEDY, [0.9, 0.8]),  # the confident one takes the other's box
        ([NINE, TEN], [0.9, 0.8], [TEN, EIGHT], HUNGARIAN, [8 / 9, 1]),  # the best sum, whatever the confidence
        ([NINE, TEN], [0.1, 0.8], [TEN, EIGHT], HUNGARIAN, [8 / 9, 1]),
        ([TEN, FAR], [0.5, 0.5], [TEN, [80, 80, 90, 90]], HUNGARIAN, [1, 0]),  # an assigned pair below the threshold
        ([[10, 10, 0, 0]], [0.5], [TEN], GREEDY, [0]),  # swapped corners
        ([], [], [TEN], GREEDY, []),
        ([TEN], [0.5], [], GREEDY, [0]),
        ([TEN], [0.5], [], HUNGARIAN, [0]),
        ([], [], [], HUNGARIAN, []),
    ],
)
def test_match_boxes(pred, confidences, gold, options, matched):
    assert match_boxes(pred, confidences, gold, options).tolist() == pytest.approx(matched)


@pytest.mark.parametrize(
    ("matched", "confidences", "n_gold", "iou", "confidence"),
    [
        ([1.0], [0.9], 1, 1, 0.9),
        ([1.0, 0.0], [0.9, 0.3], 1, 0.5, 0.8),  # one box too many; (0.9 + 0.7) / 2
        ([1.0], [0.9], 4, 0.25, 0.9),  # three missed
        ([0.0], [0.0], 1, 0, 1),  # the published term pays a junk box of confidence 0
        ([0.0], [-100], 1, 0, 1),  # and no more for less
        ([1.0], [90], 1, 1, 1),
        ([], [], 2, 0, 0),  # 'No Objects' where there are two
        ([], [], 0, 1, 1),  # and where it is right
        ([0.0], [0.9], 0, 0, 0.1),  # a box where there is none
    ],
)
def test_detection_terms(matched, confidences, n_gold, iou, confidence):
    assert detection_iou(np.array(matched), n_gold) == pytest.approx(iou)
    assert detection_confidence(np.array(matched), confidences, n_gold) == pytest.approx(confidence)


@pytest.mark.parametrize(
    ("pred", "gold", "iou", "giou"),
    [
        (TEN, TEN, 1, 1),
        (HALF, TEN, 0.5, 0.75),  # GIoU 0.5, moved to [0, 1]
        ([10, 0, 20, 10], TEN, 0, 0.5),  # touching: GIoU 0
        ([10, 10, 0, 0], TEN, 0, 0),  # swapped corners, 101.0 in the original
        ([3, 3, 3, 3], TEN, 0, 0),  # a point
    ],
)
def test_one_box_terms(pred, gold, iou, giou):
    assert box_iou(pred, gold) == pytest.approx(iou)
    assert box_giou(pred, gold) == pytest.approx(giou)


@pytest.mark.parametrize(
    ("pred", "gold", "value"),
    [
        ("maine coon", "Maine_Coon", 1),
        ("A320", "A321", 0),
        ("_", "rose", 0),  # nothing left to compare
        ("rose, lily, tulip", "lily", 0),  # a list of all classes
        ("primrose", "rose", 0),
    ],
)
def test_same_name(pred, gold, value):
    assert same_name(pred, gold) == value


@pytest.mark.parametrize(
    ("text", "think", "none"),
    [
        ("<think>a</think><answer>b</answer>", 1, 0),
        (" <think>a\n</think>\n\n<answer>b\n</answer>\n", 1, 0),  # blanks anywhere between
        ("<think></think><answer></answer>", 1, 0),  # the form says nothing about what is in it
        ("<answer>b</answer>", 0, 1),
        ("<think>a</think><answer>b</answer> as asked", 0, 0),
        ("So: <think>a</think><answer>b</answer>", 0, 0),
        ("<think>a</think> so <answer>b</answer>", 0, 0),
        ("<think>a</think><answer>b</answer><think>a</think><answer>b</answer>", 0, 0),  # twice
        ("<think>a<think>b</think><answer>c</answer>", 0, 0),  # nested
        ("<think>a</think><answer><answer>b</answer></answer>", 0, 0),
        ("<answer>b</answer><think>a</think>", 0, 0),  # the wrong way round
        ("<think>a</think><answer>b", 0, 0),  # cut
        ("b", 0, 0),
        ("", 0, 0),
    ],
)
def test_well_formed(text, think, none):
    assert (well_formed(text, "think"), well_formed(text, "none")) == (think, none)


@pytest.mark.parametrize(
    "text",
    [
        "<think>" + "</think><answer>" * 6_000,
        "<think>" + "</think> <answer></answer>x" * 4_000,
        "<think></think>" + " " * 10**5,
    ],
    ids=["open", "closed", "blanks"],
)
def test_no_form_is_dear_to_check(text):
    started = time.perf_counter()
    assert well_formed(text, "think") == 0
    assert time.perf_counter() - started < 1  # 0.003 s; in quadratic time 8 s


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"matching": "best"}, "best.*greedy, hungarian"),
        ({"iou_threshold": 1.0}, "1.0"),
        ({"iou_threshold": -0.1}, "-0.1"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RewardOptions(**options)
