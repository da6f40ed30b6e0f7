"""Reward terms by hand; `TEN` is a box of 10 × 10. Calibration: `test_calibration`."""

import time

import numpy as np
import pytest

from vrft.tasks.reward_terms import (
    RewardOptions,
    box_giou,
    box_iou,
    count_closeness,
    detection_confidence,
    detection_giou,
    detection_iou,
    f1,
    match_boxes,
    point_closeness,
    point_in_box,
    precision,
    recall,
    same_name,
    well_formed,
    within_length,
    without_repetition,
)

TEN, NINE, EIGHT, HALF, FAR = [0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [0, 0, 10, 5], [50, 50, 60, 60]
GREEDY, HUNGARIAN, SOFT = RewardOptions("greedy"), RewardOptions("hungarian"), RewardOptions("greedy", 0)


@pytest.mark.parametrize(
    ("pred", "confidences", "gold", "options", "matched"),
    [
        ([TEN], [0.5], [TEN], GREEDY, [1]),
        ([FAR], [0.5], [TEN], GREEDY, [0]),
        ([HALF], [0.5], [TEN], GREEDY, [0]),  # exactly the threshold is no match
        ([HALF], [0.5], [TEN], RewardOptions(iou_threshold=0.49), [0.5]),
        ([FAR], [0.5], [TEN], SOFT, [0]),  # no overlap never matches
        ([[10, 0, 20, 10]], [0.5], [TEN], SOFT, [0]),  # nor does touching
        ([[0, 0, 10, 1]], [0.5], [TEN], SOFT, [0.1]),  # any overlap does
        ([HALF, TEN], [0.9, 0.5], [TEN], SOFT, [0.5, 0]),  # also of the confident one alone
        ([HALF, TEN], [0.9, 0.5], [TEN], RewardOptions("hungarian", 0), [0, 1]),
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
    ("pred", "gold", "may_match", "options", "matched"),
    [
        ([TEN], [TEN], [[True]], GREEDY, [1]),
        ([TEN], [TEN], [[False]], GREEDY, [0]),
        ([TEN], [TEN], [[False]], HUNGARIAN, [0]),
        ([TEN, TEN], [TEN], [[False], [True]], GREEDY, [0, 1]),  # the confident one may not
        ([NINE, TEN], [TEN, EIGHT], [[False, True], [True, True]], GREEDY, [8 / 9, 1]),  # its second best
        ([NINE, TEN], [TEN, EIGHT], [[True, False], [False, True]], HUNGARIAN, [0.9, 0.8]),
        ([HALF], [TEN], [[True]], GREEDY, [0]),  # leave does not lower the threshold
        ([], [TEN], np.zeros((0, 1), bool), GREEDY, []),
        ([TEN], [], np.zeros((1, 0), bool), HUNGARIAN, [0]),
    ],
)
def test_match_boxes_only_where_they_may(pred, gold, may_match, options, matched):
    confidences = [0.9, 0.8][: len(pred)]
    found = match_boxes(pred, confidences, gold, options, may_match=np.array(may_match))
    assert found.tolist() == pytest.approx(matched)


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
    ("pred", "gold", "may_match", "value"),
    [
        ([TEN], [TEN], None, 1),
        ([HALF], [TEN], None, 0.75),  # GIoU 0.5
        ([[10, 0, 20, 10]], [TEN], None, 0.5),  # touching: GIoU 0
        ([FAR], [TEN], None, 1 / 36),  # hull 3600, union 200: GIoU -34/36
        ([TEN, FAR], [TEN], None, 0.5),  # one too many
        ([TEN], [TEN, FAR], None, 0.5),  # one missed
        ([FAR, TEN], [TEN, FAR], None, 1),  # whatever the order
        ([NINE, TEN], [TEN, EIGHT], None, 35 / 36),  # best pairs: GIoU 8/9 and 1, ((8/9 + 1) / 2 + 1) / 2
        ([[10, 10, 0, 0]], [TEN], None, 0),  # swapped corners
        ([TEN], [TEN], [[False]], 0),
        ([TEN, TEN], [TEN], [[False], [True]], 0.5),
        ([], [], None, 1),
        ([], [TEN], None, 0),
        ([TEN], [], None, 0),
    ],
)
def test_detection_giou(pred, gold, may_match, value):
    assert detection_giou(pred, gold, None if may_match is None else np.array(may_match)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("counts", "values"),
    [
        ((1, 1, 1), (1, 1, 1)),
        ((1, 2, 1), (1 / 2, 1, 2 / 3)),  # one too many
        ((1, 1, 4), (1, 1 / 4, 2 / 5)),  # three missed
        ((2, 4, 6), (1 / 2, 1 / 3, 2 / 5)),
        ((0, 3, 2), (0, 0, 0)),
        ((0, 0, 2), (0, 0, 0)),  # 'No Objects' where there are two
        ((0, 3, 0), (0, 0, 0)),  # boxes where there is none
        ((0, 0, 0), (1, 1, 1)),
    ],
)
def test_precision_recall_and_f1(counts, values):
    assert (precision(*counts), recall(*counts), f1(*counts)) == pytest.approx(values)


@pytest.mark.parametrize(
    ("n_pred", "n_gold", "value"),
    [
        (5, 5, 1),
        (0, 0, 1),
        (3, 4, 0.75),
        (4, 3, 0.75),  # as far off
        (1, 2, 0.5),
        (0, 4, 0),
        (4, 0, 0),
        (1000, 1, 0.001),
    ],
)
def test_count_closeness(n_pred, n_gold, value):
    assert count_closeness(n_pred, n_gold) == pytest.approx(value)


@pytest.mark.parametrize(
    ("point", "inside", "closeness"),
    [
        ((5, 6), 1, 1),
        ((3, 4), 1, 1),  # a corner
        ((10, 7), 1, 1),  # an edge
        ((0, 0), 0, 0.9),  # 5 from the corner (3, 4), of a diagonal of 50
        ((0, 6), 0, 0.94),  # 3 to the left
        ((5, 20), 0, 0.8),  # 10 below
        ((16, 18), 0, 0.8),  # 6 and 8
        ((40, 50), 0, 0),  # 30 and 40: outside the image, as far as the diagonal
        ((900, -900), 0, 0),  # farther: not below 0
    ],
)
def test_point_terms(point, inside, closeness):
    box = [3, 4, 10, 10]
    assert point_in_box(point, box) == inside
    assert point_closeness(point, box, (30, 40)) == pytest.approx(closeness)


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
    ("pred", "golds", "value"),
    [
        ("maine coon", ["Maine_Coon"], 1),
        ("**maine coon**.", ["Maine_Coon"], 1),
        ("eggplant", ["aubergine", "Egg-Plant"], 1),  # any of the golds
        ("plant", ["aubergine", "eggplant"], 0),
        ("A320", ["A321"], 0),
        ("_", ["rose"], 0),  # nothing left to compare
        ("rose, lily, tulip", ["lily"], 0),  # a list of all classes
        ("rose, lily", ["rose", "lily"], 0),  # nor of all golds
        ("primrose", ["rose"], 0),
        ("rose", [], 0),
    ],
)
def test_same_name(pred, golds, value):
    assert same_name(pred, golds) == value


@pytest.mark.parametrize(
    ("text", "with_thought", "without"),
    [
        ("<think>a</think><answer>b</answer>", 1, 0),
        ("<think>a\n</think>\n\n <answer>b\n</answer>", 1, 0),  # blanks between
        (" <think>a</think><answer>b</answer>", 0, 0),  # none before
        ("<think>a</think><answer>b</answer>\n", 0, 0),  # nor after
        ("\n<answer>b</answer>", 0, 0),
        ("<answer>b</answer> ", 0, 0),
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
def test_well_formed(text, with_thought, without):
    assert (well_formed(text, has_thought=True), well_formed(text, has_thought=False)) == (with_thought, without)


@pytest.mark.parametrize(
    "text",
    [
        "<think>" + "</think><answer>" * 6_000,
        "<think>" + "</think> <answer></answer>x" * 4_000,
        "<think></think>" + " " * 10**5,
        "<think></think>" + " " * 10**5 + "x<answer></answer>",
    ],
    ids=["open", "closed", "blanks", "blanks between"],
)
def test_no_form_is_dear_to_check(text):
    started = time.perf_counter()
    assert well_formed(text, has_thought=True) == 0
    assert time.perf_counter() - started < 1  # 0.003 s; in quadratic time 8 s


@pytest.mark.parametrize(
    ("n_characters", "value"),
    [(0, 1), (19, 1), (20, 1), (21, 0.95), (30, 0.5), (40, 0), (4000, 0)],  # 20 are free, 40 earn nothing
)
def test_within_length(n_characters, value):
    assert within_length("a" * n_characters, 20) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 1),
        ("so so so", 1),  # too short to repeat
        ("a b c d", 1),  # one run
        ("a a a a a", 1 / 2),  # two runs, the same
        ("A a\na  a A", 1 / 2),  # case and blanks aside
        ("a b c d a b c d", 4 / 5),  # five runs, the first again at the end
        ("a b c a b d a b e", 1),  # runs of two do not count
        ("no " * 103, 1 / 100),
    ],
)
def test_without_repetition(text, value):
    assert without_repetition(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"matching": "best"}, "best.*greedy, hungarian"),
        ({"iou_threshold": 1.0}, "1.0"),
        ({"iou_threshold": -0.1}, "-0.1"),
        ({"iou_threshold": float("nan")}, "nan"),
        ({"on_fault": "skip"}, "skip.*stop, zero"),
        ({"length_limit": 0}, "length_limit is 0"),
        ({"timeout_s": -1}, "timeout_s is -1"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RewardOptions(**options)
