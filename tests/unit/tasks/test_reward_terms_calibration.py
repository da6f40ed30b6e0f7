"""The calibration term: by hand, and that it is a proper score that no box of confidence 0 changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrft.tasks.reward_terms import calibration


@pytest.mark.parametrize(
    ("matched", "confidences", "n_gold", "value"),
    [
        ([0.8], [1.0], 1, 1),  # sure and right, however well the box lies
        ([0.8], [0.0], 1, 1 / 2),  # as good as silent
        ([0.8], [0.5], 1, 7 / 8),  # 1/2 + (1 - 1/4) / 2
        ([0.0], [1.0], 1, 0),  # sure and wrong
        ([0.0], [0.5], 1, 3 / 8),  # 1/2 - 1/8
        ([0.8, 0.0], [1.0, 1.0], 1, 1 / 2),  # the miss takes away what the hit gave
        ([0.8, 0.0], [0.5, 0.5], 1, 3 / 4),  # + 3/4 - 1/4
        ([0.8], [1.0], 4, 5 / 8),  # three missed: 1/2 + 1/8
        ([0.0], [1.0], 2, 1 / 4),
        ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], 2, 0),  # cut at 0
        ([0.8], [90.0], 1, 1),  # confidences are cut to [0, 1]
        ([0.0], [-100.0], 1, 1 / 2),
        ([], [], 3, 1 / 2),  # silence
        ([], [], 0, 1),  # and where it is right
        ([0.0], [0.5], 0, 3 / 4),  # a box where there is none
        ([0.0, 0.0], [0.5, 0.5], 0, 1 / 2),
        ([0.0, 0.0], [1.0, 1.0], 0, 0),  # cut at 0
    ],
)
def test_calibration(matched, confidences, n_gold, value):
    assert calibration(np.array(matched), confidences, n_gold) == pytest.approx(value)


@pytest.mark.parametrize("n_gold", [1, 3])
@pytest.mark.parametrize("tenths", range(1, 10))
def test_a_box_earns_most_at_the_probability_that_it_hits(tenths, n_gold):
    probability, grid = tenths / 10, [hundredths / 100 for hundredths in range(101)]

    def expected(confidence: float) -> float:
        hit, miss = (calibration(np.array([iou]), [confidence], n_gold) for iou in (0.8, 0.0))
        return probability * hit + (1 - probability) * miss

    assert max(grid, key=expected) == probability
    assert min(grid, key=expected) == float(probability < 0.5) or tenths == 5, "the far end earns least"


ANSWERS = st.lists(st.tuples(st.sampled_from([0.0, 0.6, 1.0]), st.floats(-1, 2)), max_size=8)


@settings(deadline=None, derandomize=True)
@given(ANSWERS, ANSWERS, st.integers(0, 10))
def test_boxes_of_confidence_0_change_nothing_and_all_lies_between_0_and_1(boxes, silent, n_gold):
    def value(pairs):
        return calibration(np.array([iou for iou, _ in pairs]), [confidence for _, confidence in pairs], n_gold)

    assert 0 <= value(boxes) <= 1
    assert value([*boxes, *((iou, 0.0) for iou, _ in silent)]) == pytest.approx(value(boxes))
