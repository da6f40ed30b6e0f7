"""Boxes, the frames in which models write them, and their overlaps.

Inside vrft every box is float `xyxy`: x1, y1, x2, y2 in pixels of the original image. Coordinates are continuous: they
are edges, not pixel centres, so there is no +1 and no half pixel. The box of a whole image of 640 × 480 pixels is
[0, 0, 640, 480]. Only `to_frame` and `from_frame` convert to and from other frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FRAMES = ("norm1000", "seen_pixels", "pixels", "norm1")


@dataclass(frozen=True)
class Frame:
    """The coordinate system of one image's questions and answers.

    name: `norm1000` (0..1000 of width and height), `seen_pixels` (pixels of the image after the processor's resize),
        `pixels` (of the original image), `norm1` (0..1 of width and height).
    image_wh, seen_wh: (width, height) of the original image, and of the image after the processor's resize.
    coordinate_step: written coordinates are multiples of it. It is 1 for every published model; the embedded model's
        vocabulary has only every twentieth number.
    """

    name: str
    image_wh: tuple[int, int]
    seen_wh: tuple[int, int]
    coordinate_step: int = 1

    def __post_init__(self) -> None:
        if self.name not in FRAMES:
            raise ValueError(f"unknown frame {self.name!r}; known: {', '.join(FRAMES)}")

    @property
    def extent_wh(self) -> tuple[float, float]:
        """The coordinates of the image's lower right corner in this frame."""
        return {
            "norm1000": (1000.0, 1000.0),
            "seen_pixels": tuple(map(float, self.seen_wh)),
            "pixels": tuple(map(float, self.image_wh)),
            "norm1": (1.0, 1.0),
        }[self.name]


def to_frame(xy: Sequence[float], frame: Frame) -> list[int] | list[float]:
    """The numbers that a model should write for a box or a point in pixels of the original image, (x, y, …).

    Integers, rounded to multiples of `frame.coordinate_step`; in `norm1` floats with three decimals.

    >>> to_frame([32, 0, 64, 48], Frame("norm1000", (64, 48), (56, 56)))
    [500, 0, 1000, 1000]
    """
    # Scaling alone maps edges to edges. A shift by half a pixel, as for pixel centres, would move every gold box.
    scaled = (np.asarray(xy, float).reshape(-1, 2) * _scale_wh(frame)).ravel()
    if frame.name == "norm1":
        return [round(float(value), 3) for value in scaled]
    step = frame.coordinate_step
    return [int(step * round(float(value) / step)) for value in scaled]


def from_frame(xy: Sequence[float], frame: Frame) -> list[float]:
    """The box or point in pixels of the original image, from the numbers that the model wrote; not clipped.

    >>> from_frame([500, 0, 1000, 1000], Frame("norm1000", (64, 48), (56, 56)))
    [32.0, 0.0, 64.0, 48.0]
    """
    return (np.asarray(xy, float).reshape(-1, 2) / _scale_wh(frame)).ravel().tolist()


def clip_to_image(xyxy: Sequence, image_wh: Sequence[int]) -> list:
    """A box (4,), or boxes (n, 4), clipped to the image; a box outside of the image has no area then.

    >>> clip_to_image([-5, 10, 80, 20], (64, 48))
    [0.0, 10.0, 64.0, 20.0]
    """
    return np.clip(np.asarray(xyxy, float), 0.0, [*image_wh, *image_wh]).tolist()


def area(xyxy: np.ndarray) -> np.ndarray:
    """Areas of boxes (..., 4) as (...); inverted boxes have area 0."""
    xyxy = np.asarray(xyxy, float)
    return np.maximum(xyxy[..., 2] - xyxy[..., 0], 0.0) * np.maximum(xyxy[..., 3] - xyxy[..., 1], 0.0)


def iou_matrix(a_xyxy: Sequence, b_xyxy: Sequence) -> np.ndarray:
    """IoU of every box of `a` (n, 4) with every box of `b` (m, 4), shape (n, m), in [0, 1].

    A box without area has an IoU of 0, even with itself.

    >>> iou_matrix([[0, 0, 2, 2]], [[0, 0, 2, 1], [2, 2, 4, 4]]).tolist()
    [[0.5, 0.0]]
    """
    intersection, union = _overlaps(_rows_of_four(a_xyxy), _rows_of_four(b_xyxy))
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def giou_matrix(a_xyxy: Sequence, b_xyxy: Sequence) -> np.ndarray:
    """Generalised IoU of `a` (n, 4) with `b` (m, 4), shape (n, m), in [-1, 1].

    IoU minus the share of the hull that neither box covers (Rezatofighi et al. 2019, arXiv 1902.09630). -1 if the hull
    has no area, and if either box is inverted or has no area.

    >>> giou_matrix([[0, 0, 1, 1]], [[0, 0, 1, 1], [1, 1, 2, 2]]).tolist()
    [[1.0, -0.5]]
    """
    a, b = _rows_of_four(a_xyxy), _rows_of_four(b_xyxy)
    intersection, union = _overlaps(a, b)
    outer = [np.minimum(a[:, None, :2], b[:, :2]), np.maximum(a[:, None, 2:], b[:, 2:])]
    hull = area(np.concatenate(outer, axis=-1))
    iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    uncovered = np.divide(hull - union, hull, out=np.ones_like(hull), where=hull > 0)
    # By the formula alone, a box without area inside of the gold gets 0: more than any box that misses.
    has_area = (area(a) > 0)[:, None] & (area(b) > 0)
    return np.where(has_area, iou - uncovered, -1.0)


def _scale_wh(frame: Frame) -> np.ndarray:
    return np.asarray(frame.extent_wh, float) / np.asarray(frame.image_wh, float)


def _rows_of_four(xyxy: Sequence) -> np.ndarray:
    return np.asarray(xyxy, float).reshape(-1, 4)


def _overlaps(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas of intersection and union of every pair, each (n, m); an inverted box has area 0."""
    a, b = a_xyxy[:, None, :], b_xyxy
    width = np.minimum(a[..., 2], b[:, 2]) - np.maximum(a[..., 0], b[:, 0])
    height = np.minimum(a[..., 3], b[:, 3]) - np.maximum(a[..., 1], b[:, 1])
    intersection = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    return intersection, area(a) + area(b) - intersection
