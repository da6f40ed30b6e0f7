"""Rows: training and test examples, as JSON lines.

A row is a dict of JSON values. Every row has

    row_id    str, unique in its file
    images    list of paths, relative to the folder of the rows file, or absolute
    image_wh  [width, height] of the first image, in pixels
    gold      the right answer in the task's own form (boxes: pixels of the original image)

and the columns of its task (see `vrft/tasks/`). Optional: `thought` (the reasoning before the gold, for supervised
training), `distractors` (boxes of objects that are not asked for), `problem` (the question, used verbatim).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vrft.files import file_hash, hash_of
from vrft.tasks.boxes import Frame

Row = dict[str, Any]


def image_paths(row: Row, root: Path) -> list[Path]:
    """The paths of the row's images; relative ones start from `root`."""
    return [Path(root) / path for path in row["images"]]


def check_sides(row: Row, frame_name: str) -> None:
    """Raise ValueError if the row lacks the sizes in pixels that `frame_of` needs, or brings others."""
    for name in ("image_wh", "seen_wh") if frame_name == "seen_pixels" or "seen_wh" in row else ("image_wh",):
        sides = row.get(name, "missing")
        if not isinstance(sides, list) or len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise ValueError(
                f"column {name!r} is {sides!r}; [width, height] in pixels is needed with frame={frame_name}"
            )


def frame_of(row: Row, frame_name: str) -> Frame:
    """The frame of that name for the row's image; the model saw it in `seen_wh`, if the row has that column."""
    image_wh = tuple(row["image_wh"])
    return Frame(frame_name, image_wh, tuple(row.get("seen_wh", image_wh)))


def rows_hash(rows: Sequence[Row], root: Path) -> str:
    """`xxh3_128:HEX` over the rows and the bytes of their images, in order."""
    return hash_of(
        text for row in rows for text in (json.dumps(row, sort_keys=True), *map(file_hash, image_paths(row, root)))
    )


def counted(n: float, metric: str) -> str:
    """How many rows a metric is a mean over; AP and AR of boxes are figures of images.

    >>> counted(12, "iou"), counted(4, "AP50")
    ('12 rows', '4 images')
    """
    return f"{n:.0f} {'images' if re.match('A[PR]', metric) else 'rows'}"


def labelled_boxes(gold: Sequence) -> list[tuple[Sequence[float], str]]:
    """The boxes of a detection gold, each with its label ("" for a box without one).

    >>> labelled_boxes([[0, 0, 9, 9], {"label": "dog", "xyxy": [1, 1, 5, 5]}])
    [([0, 0, 9, 9], ''), ([1, 1, 5, 5], 'dog')]
    """
    return [(entry["xyxy"], entry["label"]) if isinstance(entry, dict) else (entry, "") for entry in gold]


class GoldBoxError(ValueError):
    """A gold box that cannot be right."""


def check_box(xyxy: Any, image_wh: Sequence[int]) -> None:
    """Raise `GoldBoxError` if `box_fault` finds something."""
    if fault := box_fault(xyxy, image_wh):
        raise GoldBoxError(fault)


def box_fault(xyxy: Any, image_wh: Sequence[int]) -> str | None:
    """What is wrong with a gold box in pixels of the original image, or None.

    >>> box_fault([0, 0, 80, 10], (64, 48)).partition(";")[0]
    'box [0, 0, 80, 10] lies outside the image of 64 × 48 pixels'
    """
    is_four_numbers = isinstance(xyxy, list | tuple) and len(xyxy) == 4
    if not is_four_numbers or not all(type(v) in (int, float) and abs(v) < 1e9 for v in xyxy):
        return f"box {xyxy!r} is not four finite numbers [x1, y1, x2, y2]"
    x1, y1, x2, y2 = xyxy
    if x2 <= x1 or y2 <= y1:
        return f"box {xyxy!r} has no area; [x1, y1, x2, y2] with x1 < x2 and y1 < y2 is right, not x, y, width, height"
    width, height = image_wh
    slack = 1e-6 * max(width, height)  # for the rounding of boxes that were converted from another frame
    if min(x1, y1) < -slack or x2 > width + slack or y2 > height + slack:
        return (
            f"box {xyxy!r} lies outside the image of {width} × {height} pixels; give boxes in its pixels, or as a "
            "`solution` with its dataset.frame"
        )
    if max(x2, y2) <= 1:
        return (
            f"box {xyxy!r} lies in the first pixel of the image of {width} × {height} pixels, as a box in fractions of "
            "the image does; give boxes in its pixels, or as a `solution` with dataset.frame=norm1"
        )
    return None
