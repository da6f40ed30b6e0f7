"""Box AP and AR by the official `pycocotools`, with bootstrap intervals over images.

The official evaluator matches once; a bootstrap resample only accumulates its matches again, all resamples at a time.

Legend: `T` IoU thresholds, `R` resamples, `I` images, `D` detections of one category by falling score, `P` true
positives among them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vrft.answers import normal_name
from vrft.rows import Row

OFFICIAL_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The twelve figures of `COCOeval.summarize`, in its order."""

NAMES = ("AP", "AP50", "AP75", "AR100")
"""The figures that vrft reports, those that have a bootstrap interval."""

_N_NUMBERS_AT_ONCE = 4_000_000  # of one temporary array in the bootstrap: 32 MB


@dataclass(frozen=True)
class CategoryMatches:
    """The official matches of one category, of all areas and at most 100 detections an image.

    image: (D,) index of each detection's image.
    is_true, is_false: (T, D) True where the detection counts as a true or a false positive; neither if ignored.
    n_gold: (I,) gold boxes that count in each image.
    """

    image: np.ndarray
    is_true: np.ndarray
    is_false: np.ndarray
    n_gold: np.ndarray


def evaluate_boxes(ground_truth: dict, detections: Sequence[dict]) -> COCOeval:
    """The official evaluator of boxes after its `evaluate` and `accumulate`, without its prints.

    ground_truth: a COCO annotation file's content (`images`, `annotations` with ids from 1, `categories`).
    detections: a COCO result file's content (`image_id`, `category_id`, `bbox` as xywh, `score`); may be empty. Of
    equally scored detections the earlier one counts as the more confident.
    Raises ValueError for a score that is not finite (the official code takes it in silence), and for an unknown image.
    """
    image_ids = {image["id"] for image in ground_truth["images"]}
    for number, detection in enumerate(detections):
        if not np.isfinite(detection["score"]) or detection["image_id"] not in image_ids:
            raise ValueError(f"detection {number} has no finite score or an unknown image: {detection!r}")
    with contextlib.redirect_stdout(io.StringIO()):
        gold, found = COCO(), COCO()
        gold.dataset = ground_truth
        gold.createIndex()
        if detections:
            found = gold.loadRes([dict(detection) for detection in detections])
        evaluator = COCOeval(gold, found, iouType="bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def official_figures(evaluator: COCOeval) -> dict[str, float | None]:
    """The twelve official figures by name, each in [0, 1]; None where there is no gold box to find."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.summarize()
    return {name: _known(value) for name, value in zip(OFFICIAL_NAMES, evaluator.stats, strict=True)}


def average_precision(
    rows: Sequence[Row], found: Sequence[Sequence[tuple]], *, n_resamples: int = 1000, seed: int = 0
) -> dict[str, dict]:
    """`{name: {"value", "n", "interval"}}` for each of `NAMES`; n counts images, and images are resampled.

    rows: detection rows, each one question for a category in an image, or for several with labels; every row's image
        counts, with or without gold.
    found: per row its boxes as `(xyxy, confidence)`, in labelled rows `(xyxy, confidence, label)`, in pixels of the
        original image; empty for none or unreadable.
    Without any gold box the values are None.
    """
    n_images, figures, samples = _figures_and_samples(rows, found, n_resamples=n_resamples, seed=seed)
    return {name: {"value": figures[name], "n": n_images, "interval": _interval(samples[name])} for name in NAMES}


def average_precision_change(
    rows: Sequence[Row], before: Sequence, after: Sequence, *, n_resamples: int = 1000, seed: int = 0
) -> dict[str, dict]:
    """As `average_precision`, for the figure of `after` minus that of `before`; both see the same resampled images."""
    n_images, old, old_samples = _figures_and_samples(rows, before, n_resamples=n_resamples, seed=seed)
    _, new, new_samples = _figures_and_samples(rows, after, n_resamples=n_resamples, seed=seed)
    return {
        name: {
            "value": None if old[name] is None else new[name] - old[name],
            "n": n_images,
            "interval": _interval(new_samples[name] - old_samples[name]),
        }
        for name in NAMES
    }


def resampled_figures(evaluator: COCOeval, *, n_resamples: int, seed: int) -> dict[str, np.ndarray]:
    """The figures of `NAMES`, each (n_resamples,), for images drawn with replacement; NaN where no gold was drawn."""
    n_images = len(evaluator.params.imgIds)
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(n_images, size=n_images) for _ in range(n_resamples)]
    counts = np.array([np.bincount(images, minlength=n_images) for images in drawn], float).reshape(-1, n_images)
    return figures_of_resamples(category_matches(evaluator), counts, evaluator.params)


def category_matches(evaluator: COCOeval) -> list[CategoryMatches]:
    """What the official evaluator matched, category by category; those that no image has to do with are left out."""
    parameters = evaluator.params
    n_images, most = len(parameters.imgIds), parameters.maxDets[-1]
    all_areas = parameters.areaRngLbl.index("all")
    matches = []
    for category in range(len(parameters.catIds)):
        first = (category * len(parameters.areaRng) + all_areas) * n_images
        by_image = [(i, e) for i, e in enumerate(evaluator.evalImgs[first : first + n_images]) if e is not None]
        if by_image:
            matches.append(_merge_images(by_image, n_images, most))
    return matches


def figures_of_resamples(matches: Sequence[CategoryMatches], counts: np.ndarray, parameters) -> dict[str, np.ndarray]:
    """The figures of `NAMES`, each (R,), for images that occur `counts` (R, I) times; all ones: the official figures.

    Copies of an image stand beside each other. As in the official code a category without gold is left out of the mean.
    """
    thresholds = np.asarray(parameters.iouThrs)
    shape = (len(matches), len(counts), len(thresholds))
    precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
    for k, category in enumerate(matches):
        n_at_once = max(1, _N_NUMBERS_AT_ONCE // max(1, len(category.image)))
        for start in range(0, len(counts), n_at_once):
            part = slice(start, start + n_at_once)
            precision[k, part], recall[k, part] = _precision_and_recall(category, counts[part], parameters.recThrs)
    return {
        "AP": _mean_of_known(precision, (0, 2)),
        "AP50": _mean_of_known(precision[..., np.isclose(thresholds, 0.5)], (0, 2)),
        "AP75": _mean_of_known(precision[..., np.isclose(thresholds, 0.75)], (0, 2)),
        "AR100": _mean_of_known(recall, (0, 2)),
    }


def _precision_and_recall(
    category: CategoryMatches, counts: np.ndarray, recall_thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated precision (mean over recall thresholds) and recall of one category, each (R, T); NaN without gold.

    Precision falls between true positives, so the official staircase needs only the points at them: each serves the
    recall thresholds between the true positive before it and itself.
    """
    n_gold = counts @ category.n_gold  # (R,)
    weights = counts[:, category.image]  # (R, D)
    shape = (len(counts), len(category.is_true))
    precision, recall = np.zeros(shape), np.zeros(shape)
    for t, (is_true, is_false) in enumerate(zip(category.is_true, category.is_false, strict=True)):
        if not is_true.any():
            continue
        n_true = np.cumsum(weights[:, is_true], axis=1)  # (R, P)
        n_false = np.cumsum(weights * is_false, axis=1)[:, is_true]
        heights = n_true / (n_false + n_true + np.spacing(1))
        heights = np.maximum.accumulate(heights[:, ::-1], axis=1)[:, ::-1]
        recalls = n_true / np.maximum(n_gold, 1)[:, None]
        n_reached = np.searchsorted(recall_thresholds, recalls, side="right")
        n_served = np.diff(n_reached, axis=1, prepend=0)
        precision[:, t] = (heights * n_served).sum(axis=1) / len(recall_thresholds)
        recall[:, t] = recalls[:, -1]
    is_known = (n_gold > 0)[:, None]
    return np.where(is_known, precision, np.nan), np.where(is_known, recall, np.nan)


def _figures_and_samples(
    rows: Sequence[Row], found: Sequence, *, n_resamples: int, seed: int
) -> tuple[int, dict, dict]:
    """How many images there are, the official figures, and their bootstrap values; without gold None and no values."""
    ground_truth, detections = _as_coco(rows, found)
    n_images = len(ground_truth["images"])
    if not ground_truth["annotations"]:
        return n_images, dict.fromkeys(NAMES), dict.fromkeys(NAMES, np.empty(0))
    evaluator = evaluate_boxes(ground_truth, detections)
    return n_images, official_figures(evaluator), resampled_figures(evaluator, n_resamples=n_resamples, seed=seed)


def _merge_images(by_image: list[tuple[int, dict]], n_images: int, most: int) -> CategoryMatches:
    scores = np.concatenate([entry["dtScores"][:most] for _, entry in by_image])
    order = np.argsort(-scores, kind="mergesort")  # stable, as in the official code: ties keep the order of images
    matched = np.concatenate([entry["dtMatches"][:, :most] for _, entry in by_image], axis=1)[:, order] > 0
    ignored = np.concatenate([entry["dtIgnore"][:, :most] for _, entry in by_image], axis=1)[:, order] > 0
    image = np.concatenate([np.full(len(entry["dtScores"][:most]), i) for i, entry in by_image])[order].astype(int)
    n_gold = np.zeros(n_images)
    for i, entry in by_image:
        n_gold[i] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
    return CategoryMatches(image, matched & ~ignored, ~matched & ~ignored, n_gold)


def _as_coco(rows: Sequence[Row], found: Sequence[Sequence[tuple]]) -> tuple[dict, list[dict]]:
    """Ground truth and results in COCO's form, in the order of the rows.

    A question that repeats a category of the same image (as rows without `category` do) counts as a further image.
    """
    images, categories, asked = {}, {}, {}
    ground_truth = {"images": [], "annotations": [], "categories": []}
    detections = []

    def place(image_id: int, label: str) -> dict:
        return {"image_id": image_id, "category_id": categories.setdefault(normal_name(label), len(categories) + 1)}

    for row, boxes in zip(rows, found, strict=True):
        usual = row.get("category", "object")
        key, question = tuple(row["images"]), tuple(row.get("categories", [usual]))
        n_before = asked[key, question] = asked.get((key, question), -1) + 1
        image_id = images.setdefault((key, n_before), len(images) + 1)
        for entry in row["gold"]:
            xyxy, label = (entry["xyxy"], entry["label"]) if isinstance(entry, dict) else (entry, usual)
            xywh = _xywh(xyxy)
            fields = {"id": len(ground_truth["annotations"]) + 1, "area": xywh[2] * xywh[3], "iscrowd": 0}
            ground_truth["annotations"].append({**place(image_id, label), "bbox": xywh, **fields})
        for xyxy, score, *label in boxes:
            scored = {"bbox": _xywh(xyxy), "score": float(score)}
            detections.append({**place(image_id, label[0] if "categories" in row else usual), **scored})
    ground_truth["images"] = [{"id": image_id} for image_id in images.values()]
    ground_truth["categories"] = [{"id": number, "name": name} for name, number in categories.items()]
    return ground_truth, detections


def _xywh(xyxy: Sequence[float]) -> list[float]:
    """A box as COCO writes it; an inverted one keeps no area: of a negative area it would be ignored."""
    x1, y1, x2, y2 = (float(value) for value in xyxy)
    return [x1, y1, max(x2 - x1, 0.0), max(y2 - y1, 0.0)]


def _known(value: float) -> float | None:
    return None if value < 0 else float(value)


def _mean_of_known(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    is_known = ~np.isnan(values)
    n_known = is_known.sum(axis=axes)
    total = np.where(is_known, values, 0.0).sum(axis=axes)
    return np.divide(total, n_known, out=np.full(total.shape, np.nan), where=n_known > 0)


def _interval(samples: np.ndarray) -> list[float] | None:
    """The 95 % percentile interval of bootstrap values, or None where there are none."""
    samples = samples[~np.isnan(samples)]
    return [float(bound) for bound in np.percentile(samples, [2.5, 97.5])] if len(samples) else None
