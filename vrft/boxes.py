"""Boxes, the frames in which models speak of them, and their overlaps.

Inside vrft every box is float `xyxy`: x1, y1, x2, y2 in pixels of the original image, continuous edges (a box that
covers the whole of a 640 × 480 image is [0, 0, 640, 480]). `to_frame` and `from_frame` are the only doors to another
frame.
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
    image_wh, seen_wh: (width, height) of the original image, and of the image as the model sees it.
    coordinate_step: written coordinates are multiples of it (1 for every real model).
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
        """The coordinates of the image's lower right corner, as written in this frame."""
        return {
            "norm1000": (1000.0, 1000.0),
            "seen_pixels": tuple(map(float, self.seen_wh)),
            "pixels": tuple(map(float, self.image_wh)),
            "norm1": (1.0, 1.0),
        }[self.name]


def to_frame(xyxy: Sequence[float], frame: Frame) -> list[int] | list[float]:
    """A box in pixels of the original image, as the model is expected to write it.

    Integers (multiples of `frame.coordinate_step`); in `norm1` floats with three decimals.

    >>> to_frame([32, 0, 64, 48], Frame("norm1000", (64, 48), (56, 56)))
    [500, 0, 1000, 1000]
    """
    scaled = np.asarray(xyxy, float) * _corner_scale(frame)
    if frame.name == "norm1":
        return [round(float(value), 3) for value in scaled]
    step = frame.coordinate_step
    return [int(step * round(float(value) / step)) for value in scaled]


def from_frame(xyxy: Sequence[float], frame: Frame) -> list[float]:
    """A box as written by the model, in pixels of the original image; not clipped to the image.

    >>> from_frame([500, 0, 1000, 1000], Frame("norm1000", (64, 48), (56, 56)))
    [32.0, 0.0, 64.0, 48.0]
    """
    return [float(value) for value in np.asarray(xyxy, float) / _corner_scale(frame)]


def clip_to_image(xyxy: Sequence[float], image_wh: Sequence[int]) -> list[float]:
    """The box cut to the image; a box outside the image keeps no area.

    >>> clip_to_image([-5, 10, 80, 20], (64, 48))
    [0.0, 10.0, 64.0, 20.0]
    """
    width, height = image_wh
    limits = (width, height, width, height)
    return [float(min(max(value, 0.0), limit)) for value, limit in zip(xyxy, limits, strict=True)]


def area(xyxy: np.ndarray) -> np.ndarray:
    """Areas of boxes (..., 4) as (...); inverted boxes have area 0."""
    xyxy = np.asarray(xyxy, float)
    return np.clip(xyxy[..., 2] - xyxy[..., 0], 0, None) * np.clip(xyxy[..., 3] - xyxy[..., 1], 0, None)


def iou_matrix(a_xyxy: Sequence, b_xyxy: Sequence) -> np.ndarray:
    """IoU of every box of `a` (n, 4) with every box of `b` (m, 4), shape (n, m), in [0, 1].

    A box without area overlaps nothing, itself included.

    >>> iou_matrix([[0, 0, 2, 2]], [[0, 0, 2, 1], [2, 2, 4, 4]]).tolist()
    [[0.5, 0.0]]
    """
    intersection, union, _ = _overlaps(a_xyxy, b_xyxy)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def giou_matrix(a_xyxy: Sequence, b_xyxy: Sequence) -> np.ndarray:
    """Generalised IoU of `a` (n, 4) with `b` (m, 4), shape (n, m), in [-1, 1].

    IoU minus the share of the hull that neither covers (Rezatofighi et al. 2019, arXiv 1902.09630). -1 where the hull
    has no area,
    and where either box is inverted or has no area: such a box is no answer.

    >>> giou_matrix([[0, 0, 1, 1]], [[0, 0, 1, 1], [1, 1, 2, 2]]).tolist()
    [[1.0, -0.5]]
    """
    intersection, union, hull = _overlaps(a_xyxy, b_xyxy)
    iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    waste = np.divide(hull - union, hull, out=np.ones_like(hull), where=hull > 0)
    has_area = (area(_rows_of_four(a_xyxy)) > 0)[:, None] & (area(_rows_of_four(b_xyxy)) > 0)[None, :]
    return np.where(has_area, iou - waste, -1.0)


def _corner_scale(frame: Frame) -> np.ndarray:
    scale_wh = np.asarray(frame.extent_wh, float) / np.asarray(frame.image_wh, float)
    return np.concatenate([scale_wh, scale_wh])


def _rows_of_four(xyxy: Sequence) -> np.ndarray:
    return np.asarray(xyxy, float).reshape(-1, 4)


def _overlaps(a_xyxy: Sequence, b_xyxy: Sequence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Areas of intersection, union and hull of every pair, each (n, m)."""
    a, b = _rows_of_four(a_xyxy)[:, None, :], _rows_of_four(b_xyxy)[None, :, :]
    inner = np.concatenate([np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], axis=-1)
    outer = np.concatenate([np.minimum(a[..., :2], b[..., :2]), np.maximum(a[..., 2:], b[..., 2:])], axis=-1)
    has_area = (area(a) > 0) & (area(b) > 0)
    intersection = np.where(has_area, area(inner), 0.0)
    return intersection, area(a) + area(b) - intersection, area(outer)
