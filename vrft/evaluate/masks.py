"""ReasonSeg masks as LISA judges them: gIoU and cIoU of predicted boxes or masks against polygons.

A case is `{id, height, width, shapes: [{label, points: [[x, y], …]}], pred_box or pred_mask}`. `pred_box` is
`[x1, y1, x2, y2]`, filled as a mask; `pred_mask` is COCO run lengths `{size: [height, width], counts}`; null is no
prediction, an empty mask.

LISA's rules (Lai et al. 2024, arXiv 2308.00692, and its public data loader): points are cut to whole pixels, OpenCV
fills each polygon and paints its outline, larger polygons first, so that a smaller one shows where both lie. Labels
with `ignore` in them mark pixels that count for neither side, `flag` is skipped, all others are the target. gIoU is the
mean of the cases' IoUs, 1 where there is nothing to find and nothing found; cIoU is the sum of intersections over that
of unions. LISA adds 1e-5 to each union for the one, 1e-10 to their sum for the other; so does this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from tqdm import tqdm

from vrft.boxes import clip_to_image
from vrft.errors import UserError, raise_all
from vrft.evaluate.annotations import is_number, read_json
from vrft.evaluate.packages import import_opencv
from vrft.evaluate.resamples import percentile_interval
from vrft.metrics import mean_with_interval
from vrft.rows import Row

MaskOf = Callable[[Image, Sequence[float]], np.ndarray]
"""From an image in RGB and a box [x1, y1, x2, y2] in its pixels to a mask (height, width), True inside."""

_TARGET, _IGNORED = 1, 255
_MOST_PIXELS, _FARTHEST = 100_000_000, 1_000_000
_CASE = "{height, width, shapes: [{label, points}, …], pred_box: [x1, y1, x2, y2] or pred_mask: {size, counts}}"


def score_mask_file(
    path: Path, *, polygons: str = "all", n_resamples: int = 1000, mask_of: MaskOf | None = None
) -> dict:
    """`{"metrics", "per_class", "absent_classes", "counts", "cases"}`: gIoU, cIoU, and each case's pixels.

    polygons: `all`, see the module, or `first`: the first target polygon alone is the target, and nothing is ignored.
    mask_of: makes a mask of each predicted box, which is else filled.
    Raises `UserError` that lists what is wrong with the file, by case.
    """
    cases = read_json(path)
    if not isinstance(cases, list) or not cases:
        raise UserError(f"cases={path} holds {str(cases)[:60]}; a list of cases is needed, each {_CASE}")
    faults = [f"{path.name}, case {number}: {fault}" for number, one in enumerate(cases) for fault in case_faults(one)]
    if mask_of:
        faults += [
            f"{path.name}, case {number}: image is {str(one.get('image'))[:60]!r}; its path is needed for mask_model"
            for number, one in enumerate(cases)
            if isinstance(one, dict) and not isinstance(one.get("image"), str)
        ]
    raise_all(faults, heading=f"cases={path} cannot be scored:")
    options = {"polygons": polygons, "n_resamples": n_resamples, "mask_of": mask_of}
    return score_cases(cases, source=path.name, root=path.parent, **options)


def score_cases(
    cases: Sequence[Mapping],
    *,
    polygons: str = "all",
    n_resamples: int = 1000,
    mask_of: MaskOf | None = None,
    source: str = "cases",
    root: Path = Path(),
) -> dict:
    """As `score_mask_file`, of cases without `case_faults`; root: the folder that image paths start from.

    What can be wrong with run lengths and images is found before any mask is made.
    """
    opencv = import_opencv("the painting of polygons")
    faults = []
    for number, case in enumerate(cases):
        if mask_of and _clipped_box(case) and not (root / case["image"]).is_file():
            faults.append(f"{source}, case {number}: there is no image {root / case['image']}")
        try:
            predicted_mask(case)
        except ValueError as error:
            faults.append(f"{source}, case {number}: pred_mask cannot be decoded ({error}); COCO run lengths needed")
    raise_all(faults, heading=f"{source} cannot be scored:")
    verdicts = []
    for number, case in enumerate(tqdm(cases, desc="masks", unit=" cases", disable=None if mask_of else True)):
        painted = paint(case["shapes"], (case["width"], case["height"]), polygons=polygons, opencv=opencv)
        verdicts.append({"id": case.get("id", number), **overlap(painted, _mask(case, mask_of, root))})
    counts = {
        "cases": len(cases),
        "cases_without_prediction": sum(_prediction(case) is None for case in cases),
        "cases_without_target": sum(one["target_px"] == 0 for one in verdicts),
        "cases_with_ignored_pixels": sum(one["ignore_px"] > 0 for one in verdicts),
    }
    metrics = {"gIoU": mean_with_interval([one["iou"] for one in verdicts], n_resamples=n_resamples)}
    metrics["cIoU"] = cumulative_iou(verdicts, n_resamples=n_resamples)
    return {"metrics": metrics, "per_class": {}, "absent_classes": [], "counts": counts, "cases": verdicts}


def mask_case(row: Row, xyxy: Sequence[float] | None) -> dict[str, Any]:
    """The case of a row of ReasonSeg and the box that was answered; None: unreadable."""
    width, height = row["image_wh"]
    polygons = {"target": row["target_polygons"], "ignore": row.get("ignore_polygons") or []}
    shapes = [{"label": label, "points": points} for label, own in polygons.items() for points in own]
    box = None if xyxy is None else list(xyxy)
    shown = {"id": row["row_id"], "image": row["images"][0], "width": width, "height": height}
    return {**shown, "shapes": shapes, "pred_box": box}


def _mask(case: Mapping, mask_of: MaskOf | None, root: Path) -> np.ndarray:
    """(height, width) True inside: of a predicted box what `mask_of` makes of it, else as `predicted_mask`."""
    box = _clipped_box(case)
    if mask_of is None or box is None:
        return predicted_mask(case)
    from vrft.evaluate.generate import load_image  # torch

    image = load_image(root / case["image"], what=f"case {case.get('id')}")
    if image.size != (case["width"], case["height"]):
        raise UserError(
            f"case {case.get('id')}: the image {case['image']} is {image.width} × {image.height} pixels, the case "
            f"{case['width']} × {case['height']}"
        )
    return mask_of(image, box)


def _clipped_box(case: Mapping) -> list[float] | None:
    """The predicted box without what lies outside the image; None without one, or where nothing is left of it."""
    if case.get("pred_box") is None:
        return None
    x1, y1, x2, y2 = clip_to_image(case["pred_box"], (case["width"], case["height"]))
    return [x1, y1, x2, y2] if x1 < x2 and y1 < y2 else None


def paint(shapes: Sequence[Mapping], image_wh: tuple[int, int], *, polygons: str, opencv) -> np.ndarray:
    """The ground truth (height, width): 1 for the target, 255 for ignored pixels, else 0."""
    mask = np.zeros(image_wh[::-1], np.uint8)
    if polygons == "first":
        targets = [shape for shape in shapes if _value(shape["label"]) == _TARGET]
        for shape in targets[:1]:
            _paint_polygon(mask, shape["points"], _TARGET, opencv)
        return mask
    painted = [shape for shape in shapes if _value(shape["label"]) is not None]
    n_pixels = []
    for shape in painted:
        alone = np.zeros_like(mask)
        _paint_polygon(alone, shape["points"], 1, opencv)
        n_pixels.append(int(alone.sum()))
    for index in np.argsort(n_pixels, kind="stable")[::-1]:
        _paint_polygon(mask, painted[index]["points"], _value(painted[index]["label"]), opencv)
    return mask


def predicted_mask(case: Mapping) -> np.ndarray:
    """The prediction of a case that was checked, (height, width), True inside.

    A box covers the pixels whose centres it covers: of whole numbers, those from x1 up to but without x2. Parts outside
    the image are cut off, and an inverted box covers nothing. Raises ValueError for run lengths that cannot be decoded.
    """
    height, width = case["height"], case["width"]
    mask, prediction = np.zeros((height, width), bool), _prediction(case)
    if prediction is None:
        return mask
    if isinstance(prediction, dict):
        return _decoded(prediction)
    x1, y1, x2, y2 = (max(0, math.ceil(value - 0.5)) for value in prediction)
    mask[y1:y2, x1:x2] = True
    return mask


def overlap(painted: np.ndarray, predicted: np.ndarray) -> dict[str, int | float]:
    """`{"target_px", "ignore_px", "intersection", "union", "iou"}` of a painted truth and a predicted mask."""
    target, ignored = painted == _TARGET, painted == _IGNORED
    intersection = int((target & predicted).sum())
    union = int((target | (predicted & ~ignored)).sum())
    iou = intersection / (union + 1e-5) if union else 1.0
    n_pixels = {"target_px": int(target.sum()), "ignore_px": int(ignored.sum())}
    return {**n_pixels, "intersection": intersection, "union": union, "iou": iou}


def cumulative_iou(verdicts: Sequence[Mapping], *, n_resamples: int = 1000, seed: int = 0) -> dict:
    """`{"value", "n", "interval"}` of cIoU; cases are resampled. Without any pixel at all the value is 0, as in LISA.

    >>> cumulative_iou([{"intersection": 1, "union": 2}, {"intersection": 2, "union": 2}], n_resamples=1)["n"]
    2
    """
    if not verdicts:
        return {"value": None, "n": 0, "interval": None}
    values = _cumulative_ious(verdicts, n_resamples, seed)
    return {"value": float(values[0]), "n": len(verdicts), "interval": percentile_interval(values[1:])}


def cumulative_iou_change(
    before: Sequence[Mapping], after: Sequence[Mapping], *, n_resamples: int = 1000, seed: int = 0
) -> dict:
    """As `cumulative_iou`, of `after` minus `before`, the verdicts on the same cases; both see the same resamples."""
    gains = _cumulative_ious(after, n_resamples, seed) - _cumulative_ious(before, n_resamples, seed)
    return {"value": float(gains[0]), "n": len(before), "interval": percentile_interval(gains[1:])}


def _cumulative_ious(verdicts: Sequence[Mapping], n_resamples: int, seed: int) -> np.ndarray:
    """(1 + n_resamples,): cIoU of all cases once, then of cases drawn with replacement."""
    pixels = np.array([[one["intersection"], one["union"]] for one in verdicts], float)
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(len(pixels), size=len(pixels)) for _ in range(n_resamples))
    sums = [pixels.sum(axis=0), *(pixels[cases].sum(axis=0) for cases in drawn)]
    return np.array([intersection / (union + 1e-10) for intersection, union in sums])


def _value(label: str) -> int | None:
    """How a polygon of this label is painted; None for one that is skipped."""
    label = label.lower()
    return None if label == "flag" else _IGNORED if "ignore" in label else _TARGET


def _paint_polygon(mask: np.ndarray, points: Sequence, value: int, opencv) -> None:
    corners = [np.array(points, float).astype(np.int32)]
    opencv.polylines(mask, corners, True, value, 1)
    opencv.fillPoly(mask, corners, value)


def _prediction(case: Mapping) -> Any:
    return case["pred_mask"] if case.get("pred_mask") is not None else case.get("pred_box")


def _decoded(lengths: Mapping) -> np.ndarray:
    """The mask of COCO's run lengths: down the columns, outside and inside by turns."""
    (height, width), counts = lengths["size"], lengths["counts"]
    counts = _run_lengths(counts) if isinstance(counts, str) else counts
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"its counts are of {sum(counts)} pixels, the case's mask is {height} × {width}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _run_lengths(text: str) -> list[int]:
    """The counts that COCO's compressed text holds: five bits a character and one that says "more", with a sign, and
    from the fourth on as the difference to the count two before. Raises ValueError for another text."""
    counts, number, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"{text[:20]!r} is no compressed text of COCO's")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number, shift = 0, 0
    if shift:
        raise ValueError(f"{text[-20:]!r} ends within a number")
    return counts


def case_faults(case: Any) -> Iterator[str]:
    if not isinstance(case, dict):
        yield f"{str(case)[:60]!r} found; an object is needed: {_CASE}"
        return
    missing = [key for key in ("height", "width", "shapes") if key not in case]
    if "pred_box" not in case and "pred_mask" not in case:
        missing.append("pred_box or pred_mask")
    if missing:
        yield f"{', '.join(missing)} missing; the keys are {', '.join(map(str, case))}; needed: {_CASE}"
        return
    sides = [case["height"], case["width"]]
    if not all(type(side) is int and side > 0 for side in sides) or sides[0] * sides[1] > _MOST_PIXELS:
        yield f"height and width are {sides}; whole numbers are needed, of at most {_MOST_PIXELS} pixels together"
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
        yield f"pred_mask.size is {lengths.get('size')}; the case's own [height, width] {sides} is needed"


def _is_coordinate(value: Any) -> bool:
    return is_number(value) and abs(value) <= _FARTHEST
