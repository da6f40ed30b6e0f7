"""Images of one to three real handwritten digits, 56 x 56 pixels, with the box of each digit.

The glyphs are the UCI Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, CC BY 4.0; see README.md). White
ink is on a weak colour gradient: red grows with x and green with y. Qwen2-VL's vision tower has rotary positions only,
and a small one needs an absolute cue. Boxes are xyxy in pixels, with continuous edges, tight around the visible ink.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 56
CONTRAST = {"clean": 1.0, "dim": 0.35}
POOL_SIZES = {"pretraining": 1197, "few_shot": 200, "validation": 140, "test": 260}
VISIBLE_INK = 0.3  # share of full ink from which a pixel belongs to the digit's box
MAX_ROTATION_DEGREES = 12.0
NOISE_SIGMA = 0.03


@dataclass(frozen=True)
class Scene:
    """An image (56, 56, 3) uint8, the digits in it, and their boxes (n, 4) xyxy in pixels, in the same order."""

    pixels: np.ndarray
    digits: tuple[int, ...]
    boxes_xyxy: np.ndarray


@cache
def load_glyphs() -> tuple[np.ndarray, np.ndarray]:
    """Return the ink of all glyphs, (1797, 8, 8) uint8 in [0, 255], and their digits, (1797,)."""
    with np.load(Path(__file__).with_name("digits.npz")) as archive:
        return (archive["images"].astype(np.float32) * (255 / 16)).astype(np.uint8), archive["labels"].astype(int)


@cache
def glyph_pool(name: str) -> tuple[tuple[int, ...], ...]:
    """Return, for each digit 0 to 9, the glyph numbers of the pool; pools share no glyph and never change."""
    _, labels = load_glyphs()
    order = np.random.RandomState(0).permutation(len(labels))
    start = 0
    for pool, size in POOL_SIZES.items():
        members = order[start : start + size]
        start += size
        if pool == name:
            return tuple(tuple(int(i) for i in members if labels[i] == digit) for digit in range(10))
    raise KeyError(name)


def draw_scene(
    digits: tuple[int, ...], *, pool: str, domain: str, sizes: tuple[int, int], rng: np.random.Generator
) -> Scene:
    """Return a scene of these digits with glyphs from `pool`, each scaled to a square of `sizes` pixels (least, most).

    The domain changes only the strength of the ink: the same generator state gives the same scene in each domain.
    """
    inks = [_draw_glyph(_pick_glyph(pool, digit, rng), sizes, rng) for digit in digits]
    boxes = [_ink_box(ink) for ink in inks]
    corners, inks, boxes = _place(inks, boxes, rng)
    margin = 2 * SIDE
    canvas = np.zeros((SIDE + 2 * margin,) * 2, dtype=np.float32)
    for ink, box, (x, y) in zip(inks, boxes, corners, strict=True):
        left, top = margin + x - box[0], margin + y - box[1]
        region = canvas[top : top + ink.shape[0], left : left + ink.shape[1]]
        np.maximum(region, ink, out=region)
    canvas = canvas[margin:-margin, margin:-margin]
    xyxy = [(x, y, x + box[2] - box[0], y + box[3] - box[1]) for box, (x, y) in zip(boxes, corners, strict=True)]
    pixels = _ink_on_gradient(canvas * CONTRAST[domain], rng)
    return Scene(pixels=pixels, digits=tuple(digits), boxes_xyxy=np.array(xyxy, dtype=float))


def _pick_glyph(pool: str, digit: int, rng: np.random.Generator) -> int:
    glyphs = glyph_pool(pool)[digit]
    return glyphs[int(rng.integers(len(glyphs)))]


def _draw_glyph(glyph: int, sizes: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    side = int(rng.integers(sizes[0], sizes[1] + 1))
    angle = float(rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES))
    image = Image.fromarray(load_glyphs()[0][glyph]).resize((side, side), Image.Resampling.BICUBIC)
    image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    return np.asarray(image, dtype=np.float32) / 255


def _ink_box(ink: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(ink > VISIBLE_INK)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def _place(inks: list[np.ndarray], boxes: list[tuple], rng: np.random.Generator) -> tuple[list, list, list]:
    """Return a free top-left corner for each ink box, with the inks and boxes. Digits that do not fit are shrunk."""
    while True:
        free_wh = np.array([(SIDE - (x2 - x1) + 1, SIDE - (y2 - y1) + 1) for x1, y1, x2, y2 in boxes])
        for corners in (rng.random((30, len(boxes), 2)) * free_wh).astype(int).tolist():
            placed = [(x, y, x + b[2] - b[0], y + b[3] - b[1]) for b, (x, y) in zip(boxes, corners, strict=True)]
            if not any(_touch(one, other) for i, one in enumerate(placed) for other in placed[:i]):
                return corners, inks, boxes
        inks = [_shrink(ink) for ink in inks]
        boxes = [_ink_box(ink) for ink in inks]


def _touch(one: tuple, other: tuple) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _shrink(ink: np.ndarray) -> np.ndarray:
    height, width = (round(0.9 * side) for side in ink.shape)
    image = Image.fromarray((ink * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32) / 255


def _ink_on_gradient(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    ramp = np.linspace(0.0, 1.0, SIDE, dtype=np.float32)
    paper = np.empty((SIDE, SIDE, 3), dtype=np.float32)
    paper[..., 0] = 0.05 + 0.25 * ramp[None, :]
    paper[..., 1] = 0.05 + 0.25 * ramp[:, None]
    paper[..., 2] = 0.10
    noise = NOISE_SIGMA * rng.standard_normal(paper.shape, dtype=np.float32)
    pixels = paper + (1.0 - paper) * ink[..., None] + noise
    return (pixels.clip(0.0, 1.0) * 255).round().astype(np.uint8)
