"""Scores ReasonSeg masks as LISA does: gIoU and cIoU of predicted boxes or masks against polygons.

`mask_cases` defines a case. LISA's rules (Lai et al. 2024, arXiv 2308.00692, and its public data loader): coordinates
are truncated to whole pixels. OpenCV fills each polygon and draws its outline, larger polygons first, so a smaller one
covers a larger one. A label with `ignore` in it marks pixels that do not count. The label `flag` is skipped. All other
labels are the target. gIoU is the mean IoU of the cases; a case without target and prediction has IoU 1. cIoU is the
sum of intersections divided by the sum of unions. As in LISA, 1e-5 is added to each union for gIoU, and 1e-10 to their
sum for cIoU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL.Image import Image
from tqdm import tqdm

from vrft.data.readers import read_json
from vrft.errors import UserError, raise_all
from vrft.evaluate.bootstrap import mean_with_interval, percentile_interval
from vrft.evaluate.mask_cases import CASE, case_faults, clipped_box, predicted_mask, prediction_of
from vrft.evaluate.opencv import import_opencv

MaskOf = Callable[[Image, Sequence[float]], np.ndarray]
"""From an image in RGB and a box [x1, y1, x2, y2] in its pixels to a mask (height, width), True inside."""

_TARGET, _IGNORED = 1, 255


def score_mask_file(
    path: Path, *, polygons: str = "all", n_resamples: int = 1000, mask_of: MaskOf | None = None
) -> dict:
    """`{"metrics", "per_class", "absent_classes", "counts", "cases"}`: gIoU, cIoU, and the pixel counts of each case.

    polygons: `all` (see the module), or `first`: only the first target polygon is the target, and nothing is ignored.
    mask_of: makes a mask of each predicted box; None: the box is filled.
    Raises `UserError` that lists what is wrong with the file, by case.
    """
    cases = read_json(path, key="cases")
    if not isinstance(cases, list) or not cases:
        raise UserError(f"cases={path} holds {str(cases)[:60]}; a list of cases is needed, each {CASE}")
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
    """As `score_mask_file`, for cases without `case_faults`. root: the folder of relative image paths.

    Run lengths and images are checked before any mask is made.
    """
    opencv = import_opencv("the painting of polygons")
    faults = []
    for number, case in enumerate(cases):
        if mask_of and clipped_box(case) and not (root / case["image"]).is_file():
            faults.append(f"{source}, case {number}: there is no image {root / case['image']}")
        try:
            predicted_mask(case)
        except ValueError as error:
            faults.append(f"{source}, case {number}: pred_mask cannot be decoded ({error}); COCO run lengths needed")
    raise_all(faults, heading=f"{source} cannot be scored:")
    results = []
    for number, case in enumerate(tqdm(cases, desc="masks", unit=" cases", disable=None if mask_of else True)):
        painted = paint(case["shapes"], (case["width"], case["height"]), polygons=polygons, opencv=opencv)
        results.append({"id": case.get("id", number), **overlap(painted, _mask(case, mask_of, root))})
    counts = {
        "cases": len(cases),
        "cases_without_prediction": sum(prediction_of(case) is None for case in cases),
        "cases_without_target": sum(one["target_px"] == 0 for one in results),
        "cases_with_ignored_pixels": sum(one["ignore_px"] > 0 for one in results),
    }
    metrics = {"gIoU": mean_with_interval([one["iou"] for one in results], n_resamples=n_resamples)}
    metrics["cIoU"] = cumulative_iou(results, n_resamples=n_resamples)
    return {"metrics": metrics, "per_class": {}, "absent_classes": [], "counts": counts, "cases": results}


def _mask(case: Mapping, mask_of: MaskOf | None, root: Path) -> np.ndarray:
    """(height, width), True inside: from `mask_of` for a predicted box, else from `predicted_mask`."""
    box = clipped_box(case)
    if mask_of is None or box is None:
        return predicted_mask(case)
    from vrft.data.images import load_image, locate

    try:
        path = locate(case["image"], root.resolve(), remedy="put the file of cases above it")
    except ValueError as error:
        raise UserError(f"case {case.get('id')}: {error}") from None
    image = load_image(path, what=f"case {case.get('id')}")
    if image.size != (case["width"], case["height"]):
        raise UserError(
            f"case {case.get('id')}: the image {case['image']} is {image.width} × {image.height} pixels, the case "
            f"{case['width']} × {case['height']}"
        )
    return mask_of(image, box)


def paint(shapes: Sequence[Mapping], image_wh: tuple[int, int], *, polygons: str, opencv) -> np.ndarray:
    """The ground truth, (height, width): 1 in the target, 255 in ignored pixels, else 0. polygons: `all` or `first`."""
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


def overlap(painted: np.ndarray, predicted: np.ndarray) -> dict[str, int | float]:
    """`{"target_px", "ignore_px", "intersection", "union", "iou"}` of painted ground truth and predicted mask."""
    target, ignored = painted == _TARGET, painted == _IGNORED
    intersection = int((target & predicted).sum())
    union = int((target | (predicted & ~ignored)).sum())
    iou = intersection / (union + 1e-5) if union else 1.0
    n_pixels = {"target_px": int(target.sum()), "ignore_px": int(ignored.sum())}
    return {**n_pixels, "intersection": intersection, "union": union, "iou": iou}


def cumulative_iou(results: Sequence[Mapping], *, n_resamples: int = 1000, seed: int = 0) -> dict:
    """`{"value", "n", "interval"}` of cIoU; cases are resampled. Without any pixel the value is 0, as in LISA.

    >>> cumulative_iou([{"intersection": 1, "union": 2}, {"intersection": 2, "union": 2}], n_resamples=1)["n"]
    2
    """
    if not results:
        return {"value": None, "n": 0, "interval": None}
    values = _cumulative_ious(results, n_resamples, seed)
    return {"value": float(values[0]), "n": len(results), "interval": percentile_interval(values[1:])}


def cumulative_iou_change(
    before: Sequence[Mapping], after: Sequence[Mapping], *, n_resamples: int = 1000, seed: int = 0
) -> dict:
    """As `cumulative_iou`, for `after` minus `before` on the same cases; both use the same resamples."""
    gains = _cumulative_ious(after, n_resamples, seed) - _cumulative_ious(before, n_resamples, seed)
    return {"value": float(gains[0]), "n": len(before), "interval": percentile_interval(gains[1:])}


def _cumulative_ious(results: Sequence[Mapping], n_resamples: int, seed: int) -> np.ndarray:
    """(1 + n_resamples,): cIoU of all cases once, then of cases drawn with replacement."""
    pixels = np.array([[one["intersection"], one["union"]] for one in results], float)
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(len(pixels), size=len(pixels)) for _ in range(n_resamples))
    sums = [pixels.sum(axis=0), *(pixels[cases].sum(axis=0) for cases in drawn)]
    return np.array([intersection / (union + 1e-10) for intersection, union in sums])


def _value(label: str) -> int | None:
    """The pixel value of a label; None for a label that is skipped."""
    label = label.lower()
    return None if label == "flag" else _IGNORED if "ignore" in label else _TARGET


def _paint_polygon(mask: np.ndarray, points: Sequence, value: int, opencv) -> None:
    corners = [np.array(points, float).astype(np.int32)]
    opencv.polylines(mask, corners, True, value, 1)
    opencv.fillPoly(mask, corners, value)
