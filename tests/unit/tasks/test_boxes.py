"""Frames and overlaps, by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrft.tasks.boxes import FRAMES, Frame, area, clip_to_image, from_frame, giou_matrix, iou_matrix, to_frame

IMAGE_WH, SEEN_WH = (640, 427), (532, 364)


@pytest.mark.parametrize(
    ("name", "step", "written"),
    [
        ("norm1000", 1, [100, 500, 500, 1000]),  # 64/640, 213.5/427
        ("norm1000", 20, [100, 500, 500, 1000]),  # already multiples of 20
        ("seen_pixels", 1, [53, 182, 266, 364]),  # 53.2, 182, 266, 364
        ("seen_pixels", 20, [60, 180, 260, 360]),  # 53.2/20 = 2.66 -> 3, 9.1 -> 9, 13.3 -> 13, 18.2 -> 18
        ("pixels", 1, [64, 214, 320, 427]),  # 213.5 rounds to even
        ("norm1", 1, [0.1, 0.5, 0.5, 1.0]),
    ],
)
def test_to_frame_writes_what_the_model_is_expected_to_write(name, step, written):
    numbers = to_frame([64, 213.5, 320, 427], Frame(name, IMAGE_WH, SEEN_WH, step))
    assert numbers == written
    assert {type(number) for number in numbers} == {float if name == "norm1" else int}


@pytest.mark.parametrize(
    ("name", "written", "xyxy"),
    [
        ("norm1000", [500, 0, 1000, 1000], [320, 0, 640, 427]),
        ("seen_pixels", [266, 182, 532, 364], [320, 213.5, 640, 427]),
        ("pixels", [1, 2, 3, 4], [1, 2, 3, 4]),
        ("norm1", [0.5, 0, 1, 1], [320, 0, 640, 427]),
        ("norm1000", [-500, 0, 2000, 1000], [-320, 0, 1280, 427]),  # not clipped
    ],
)
def test_from_frame_gives_pixels_of_the_original_image(name, written, xyxy):
    assert from_frame(written, Frame(name, IMAGE_WH, SEEN_WH)) == pytest.approx(xyxy)


def half_unit_wh(frame: Frame) -> np.ndarray:
    """Half of what one step of a written number means, across and down, in pixels of the original image."""
    image_wh, step = np.array(frame.image_wh), frame.coordinate_step
    return {
        "norm1000": image_wh / 1000 / 2 * step,
        "seen_pixels": image_wh / frame.seen_wh / 2 * step,
        "pixels": np.array([0.5, 0.5]) * step,
        "norm1": image_wh * 0.0005,  # three decimals, whatever the step
    }[frame.name]


def half_units_off(xy: list[float], *, write: Frame, read: Frame) -> float:
    """By how many half units the worst coordinate moves when written in one frame and read in another."""
    there_and_back = np.array(from_frame(to_frame(xy, write), read))
    assert there_and_back.shape == (len(xy),)
    return float((np.abs(there_and_back - xy).reshape(-1, 2) / half_unit_wh(write)).max())


SIDES = st.tuples(st.integers(28, 5000), st.integers(28, 5000))
SEEN_SIDES = st.tuples(st.integers(1, 100), st.integers(1, 100)).map(lambda wh: (28 * wh[0], 28 * wh[1]))
SHARE = st.floats(0, 1)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("step", [1, 20])
@pytest.mark.parametrize("n_numbers", [4, 2], ids=["box", "point"])
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(SIDES, SEEN_SIDES, st.tuples(SHARE, SHARE, SHARE, SHARE))
def test_writing_and_reading_moves_a_number_by_half_a_unit_at_most(name, step, n_numbers, image_wh, seen_wh, shares):
    frame = Frame(name, image_wh, seen_wh, step)
    (left, right), (top, bottom) = sorted(shares[:2]), sorted(shares[2:])
    xy = (np.array([left, top, right, bottom]) * [*image_wh, *image_wh]).tolist()[:n_numbers]
    assert half_units_off(xy, write=frame, read=frame) <= 1 + 1e-9
    if name != "norm1":
        assert all(number % step == 0 for number in to_frame(xy, frame))


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize(
    ("image_wh", "seen_wh"),
    [
        (IMAGE_WH[::-1], SEEN_WH[::-1]),  # width and height exchanged
        ((700, 427), SEEN_WH),  # the size of another image
        ((640, 480), (532, 392)),
    ],
)
def test_reading_in_another_frame_moves_it_further(name, image_wh, seen_wh):
    """The guard above can fail."""
    other = Frame("norm1000" if name == "pixels" else name, image_wh, seen_wh)
    assert half_units_off([64, 40, 600, 400], write=Frame(name, IMAGE_WH, SEEN_WH), read=other) > 2


def test_an_unknown_frame_names_the_known_ones():
    with pytest.raises(ValueError, match=r"norm999.*norm1000, seen_pixels, pixels, norm1"):
        Frame("norm999", IMAGE_WH, SEEN_WH)


@pytest.mark.parametrize(
    ("xyxy", "clipped"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4]),
        ([-5, -5, 700, 500], [0, 0, 640, 427]),
        ([700, 0, 800, 10], [640, 0, 640, 10]),  # outside: no area left
        ([30, 40, 10, 20], [30, 40, 10, 20]),  # inverted stays inverted
    ],
)
def test_clip_to_image(xyxy, clipped):
    assert clip_to_image(xyxy, IMAGE_WH) == clipped


TEN = [0, 0, 10, 10]
OVERLAPS = [
    # a, b, IoU, GIoU
    (TEN, TEN, 1, 1),
    (TEN, [5, 5, 15, 15], 25 / 175, 25 / 175 - 50 / 225),  # hull 15 × 15
    (TEN, [2, 2, 4, 4], 0.04, 0.04),  # inside: the hull is the larger box
    (TEN, [10, 0, 20, 10], 0, 0),  # touching fills its hull
    ([0, 0, 1, 1], [3, 0, 4, 1], 0, -0.5),  # apart: 2 of 4 wasted
    (TEN, [10, 10, 0, 0], 0, -1),  # inverted: no answer, whatever the gold
    (TEN, [10, 0, 0, 10], 0, -1),  # only x inverted
    (TEN, [5, 5, 5, 5], 0, -1),  # a point
    ([5, 5, 5, 5], [5, 5, 5, 5], 0, -1),  # a point overlaps nothing, itself included
    ([0, 0, 1e9, 1e9], [0, 0, 1e9, 5e8], 0.5, 0.5),  # as large as a reader lets through
]


@pytest.mark.parametrize(("a", "b", "iou", "giou"), OVERLAPS)
def test_overlaps(a, b, iou, giou):
    assert iou_matrix([a], [b])[0, 0] == pytest.approx(iou)
    assert iou_matrix([b], [a])[0, 0] == pytest.approx(iou)
    assert giou_matrix([a], [b])[0, 0] == pytest.approx(giou)
    assert giou_matrix([b], [a])[0, 0] == pytest.approx(giou)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 2), (3, 0), (3, 2)])
def test_overlaps_have_a_row_for_each_prediction(n, m):
    assert iou_matrix([TEN] * n, [TEN] * m).shape == (n, m)
    assert giou_matrix([TEN] * n, [TEN] * m).shape == (n, m)


def test_area_of_an_inverted_box_is_none():
    assert area(np.array([TEN, [10, 10, 0, 0], [3, 0, 1, 5]])).tolist() == [100, 0, 0]
