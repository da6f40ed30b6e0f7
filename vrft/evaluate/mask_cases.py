"""Cases of reasoning segmentation: their checks and their predicted masks. Coordinates are pixels of the image.

    {height, width, shapes: [{label, points: [[x, y], …]}], pred_box or pred_mask}

`pred_box` is `[x1, y1, x2, y2]`; its mask is the filled box. `pred_mask` is COCO run lengths `{size: [height, width],
counts}`. Null means no prediction: an empty mask.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as masks

from vrft.data.coco_files import is_number
from vrft.tasks.boxes import clip_to_image
from vrft.tasks.rows import Row

CASE = "{height, width, shapes: [{label, points}, …], pred_box: [x1, y1, x2, y2] or pred_mask: {size, counts}}"
_MAX_PIXELS, _MAX_COORDINATE = 100_000_000, 1_000_000
_COMPRESSED = re.compile("(?:[P-o]{0,5}[0-O])+")
"""Numbers of up to six characters with five bits each. In all but a number's last character a sixth bit is set."""


def mask_case(row: Row, xyxy: Sequence[float] | None) -> dict[str, Any]:
    """The case of a ReasonSeg row and the answered box. xyxy: pixels of the image; None: unreadable."""
    width, height = row["image_wh"]
    polygons = {"target": row["target_polygons"], "ignore": row.get("ignore_polygons") or []}
    shapes = [{"label": label, "points": points} for label, own in polygons.items() for points in own]
    box = None if xyxy is None else list(xyxy)
    shown = {"id": row["row_id"], "image": row["images"][0], "width": width, "height": height}
    return {**shown, "shapes": shapes, "pred_box": box}


def prediction_of(case: Mapping) -> Any:
    return case["pred_mask"] if case.get("pred_mask") is not None else case.get("pred_box")


def clipped_box(case: Mapping) -> list[float] | None:
    """The predicted box, clipped to the image; None if there is no box, or nothing is left of it."""
    if case.get("pred_box") is None:
        return None
    x1, y1, x2, y2 = clip_to_image(case["pred_box"], (case["width"], case["height"]))
    return [x1, y1, x2, y2] if x1 < x2 and y1 < y2 else None


def predicted_mask(case: Mapping) -> np.ndarray:
    """The predicted mask of a checked case, (height, width), True inside.

    A box covers each pixel whose centre is in it: for whole numbers, the pixels x1 to x2 - 1. Parts outside the image
    are cut off. An inverted box covers nothing. Raises ValueError for run lengths that cannot be decoded.
    """
    height, width = case["height"], case["width"]
    mask, prediction = np.zeros((height, width), bool), prediction_of(case)
    if prediction is None:
        return mask
    if isinstance(prediction, dict):
        return _decoded(prediction)
    x1, y1, x2, y2 = (max(0, math.ceil(value - 0.5)) for value in prediction)
    mask[y1:y2, x1:x2] = True
    return mask


def _decoded(lengths: Mapping) -> np.ndarray:
    """The mask of COCO run lengths, a list or compressed text. Raises ValueError if they do not cover the mask exactly.

    `pycocotools` refuses counts of too many pixels. But with too few, it leaves pixels uninitialized, and it reads past
    the end of a text whose last number is cut. Both are checked here.
    """
    (height, width), counts = lengths["size"], lengths["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width:
            raise ValueError(f"its counts are of {sum(counts)} pixels, the case's mask is {height} × {width}")
        return masks.decode(masks.frPyObjects(dict(lengths), height, width)).astype(bool)
    if not _COMPRESSED.fullmatch(counts):
        raise ValueError(f"{counts[:20]!r} is not COCO's compressed text")
    if _fits(counts, height * width - 1):
        raise ValueError(f"its counts are of fewer pixels than the case's mask, {height} × {width}")
    return masks.decode(dict(lengths)).astype(bool)


def _fits(counts: str, n_pixels: int) -> bool:
    try:
        masks.decode({"size": [1, n_pixels], "counts": counts})
    except ValueError:
        return False
    return True


def case_faults(case: Any) -> Iterator[str]:
    """Yield what is wrong with a case, except run lengths that cannot be decoded (see `predicted_mask`)."""
    if not isinstance(case, dict):
        yield f"{str(case)[:60]!r} found; an object is needed: {CASE}"
        return
    missing = [key for key in ("height", "width", "shapes") if key not in case]
    if "pred_box" not in case and "pred_mask" not in case:
        missing.append("pred_box or pred_mask")
    if missing:
        yield f"{', '.join(missing)} missing; the keys are {', '.join(map(str, case))}; needed: {CASE}"
        return
    sides = [case["height"], case["width"]]
    if not all(type(side) is int and side > 0 for side in sides) or sides[0] * sides[1] > _MAX_PIXELS:
        yield f"height and width are {sides}; whole numbers are needed, of at most {_MAX_PIXELS} pixels together"
    if not isinstance(case["shapes"], list):
        yield f"shapes is {str(case['shapes'])[:60]}; a list of {{label, points}} is needed"
    else:
        for number, shape in enumerate(case["shapes"]):
            yield from (f"shape {number}: {fault}" for fault in _shape_faults(shape))
    yield from _prediction_faults(case, sides)


def _shape_faults(shape: Any) -> Iterator[str]:
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
        yield f"{str(shape)[:60]} found; {{label: target, ignore or flag, points: [[x, y], …]}} is needed"
        return
    points = shape.get("points")
    is_list = isinstance(points, list) and points and all(isinstance(point, list) for point in points)
    if not is_list or not all(len(point) == 2 and all(map(_is_coordinate, point)) for point in points):
        yield f"points is {str(points)[:60]}; a list of [x, y] in pixels is needed, finite numbers"


def _prediction_faults(case: Mapping, sides: list) -> Iterator[str]:
    box, lengths = case.get("pred_box"), case.get("pred_mask")
    if box is not None and lengths is not None:
        yield "pred_box and pred_mask are both given; one of them is needed"
    if box is not None and not (isinstance(box, list) and len(box) == 4 and all(map(_is_coordinate, box))):
        yield f"pred_box is {str(box)[:60]}; four finite numbers [x1, y1, x2, y2] are needed, or null for none"
    if lengths is None:
        return
    counts = lengths.get("counts") if isinstance(lengths, dict) else None
    is_plain = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    if not is_plain and not (isinstance(counts, str) and counts.isascii()):
        yield f"pred_mask is {str(lengths)[:60]}; {{size: [height, width], counts: text or list}} is needed"
    elif lengths.get("size") != sides:
        yield f"pred_mask.size is {lengths.get('size')}; the case's [height, width] {sides} is needed"


def _is_coordinate(value: Any) -> bool:
    return is_number(value) and abs(value) <= _MAX_COORDINATE
