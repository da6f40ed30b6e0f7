"""Box AP and AR by the official `pycocotools`, with bootstrap intervals over images (see `vrft.evaluate.bootstrap`)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vrft.evaluate.bootstrap import (
    COCO_FIGURES,
    Figure,
    Matches,
    class_samples,
    coco_matches,
    draw_counts,
    mean_samples,
    percentile_interval,
)
from vrft.tasks.answers import normal_name
from vrft.tasks.rows import Row

NAMES = ("AP", "AP50", "AP75", "AR100")
"""The figures that are reported for rows."""


def evaluate_boxes(
    ground_truth: dict, detections: Sequence[dict], *, category_ids: Collection[int] | None = None
) -> COCOeval:
    """The official evaluator of boxes after its `evaluate` and `accumulate`, without its prints.

    ground_truth: a COCO annotation file's content (`images`, `annotations` with ids from 1, `categories`).
    detections: a COCO results file's content (`image_id`, `category_id`, `bbox` as xywh, `score`); may be empty. With
    equal scores, the earlier detection ranks first.
    category_ids: the categories to evaluate; None: all.
    Raises ValueError for a score that is not finite (the official code accepts it silently), and for an unknown image.
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
        if category_ids is not None:
            evaluator.params.catIds = sorted(category_ids)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def official_figures(evaluator: COCOeval) -> dict[str, float | None]:
    """The twelve official figures by name, each in [0, 1]; None if there is no gold box for it."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.summarize()
    return {name: _known(value) for name, value in zip(COCO_FIGURES, evaluator.stats, strict=True)}


def average_precision(
    rows: Sequence[Row], found: Sequence[Sequence[tuple]], *, n_resamples: int = 1000, seed: int = 0
) -> dict[str, dict]:
    """`{name: {"value", "n", "interval"}}` for each of `NAMES`; n is the number of images, and images are resampled.

    rows: detection rows. Each asks for one category in an image, or with labels for several. Every row's image counts,
        with or without gold.
    found: the boxes of each row as `(xyxy, confidence)`, in labelled rows `(xyxy, confidence, label)`, in pixels of the
        original image; empty without boxes or if unreadable.
    Without any gold box the values are None.
    """
    n_images, figures, samples = _figures_and_samples(rows, found, n_resamples=n_resamples, seed=seed)
    return {
        name: {"value": figures[name], "n": n_images, "interval": percentile_interval(samples[name])} for name in NAMES
    }


def average_precision_change(
    rows: Sequence[Row], before: Sequence, after: Sequence, *, n_resamples: int = 1000, seed: int = 0
) -> dict[str, dict]:
    """As `average_precision`, for the figure of `after` minus that of `before`; both use the same resampled images."""
    n_images, old, old_samples = _figures_and_samples(rows, before, n_resamples=n_resamples, seed=seed)
    _, new, new_samples = _figures_and_samples(rows, after, n_resamples=n_resamples, seed=seed)
    return {
        name: {
            "value": None if old[name] is None else new[name] - old[name],
            "n": n_images,
            "interval": percentile_interval(new_samples[name] - old_samples[name]),
        }
        for name in NAMES
    }


def _figures_and_samples(
    rows: Sequence[Row], found: Sequence, *, n_resamples: int, seed: int
) -> tuple[int, dict, dict]:
    """The number of images, the official figures, and their bootstrap values. Without gold: None and no values."""
    ground_truth, detections = as_coco(rows, found)
    n_images = len(ground_truth["images"])
    if not ground_truth["annotations"]:
        return n_images, dict.fromkeys(NAMES), dict.fromkeys(NAMES, np.empty(0))
    evaluator = evaluate_boxes(ground_truth, detections)
    figures = {name: COCO_FIGURES[name] for name in NAMES}
    counts = draw_counts(n_images, n_resamples=n_resamples, seed=seed)
    samples = mean_samples(class_samples(coco_matches(evaluator), counts, figures), figures)
    return n_images, official_figures(evaluator), samples


def asked_names(rows: Sequence[Row]) -> dict[str, str]:
    """The categories that detection rows ask for: `{normal name: name in the row}`."""
    return {normal_name(name): name for row in rows for name in row.get("categories", [row.get("category", "object")])}


def asked_boxes(rows: Sequence[Row], found: Sequence[Sequence[tuple]], *, asked: str | None) -> list[Sequence[tuple]]:
    """The boxes that count. asked: `present` keeps only boxes of categories in the row's gold; else all count."""
    if asked != "present":
        return list(found)
    kept = []
    for row, boxes in zip(rows, found, strict=True):
        if "categories" in row:
            present = {normal_name(entry["label"]) for entry in row["gold"]}
            kept.append([box for box in boxes if normal_name(box[2]) in present])
        else:
            kept.append(boxes if row["gold"] else [])
    return kept


def as_coco(rows: Sequence[Row], found: Sequence[Sequence[tuple]]) -> tuple[dict, list[dict]]:
    """Ground truth and results in COCO's form, in the order of the rows.

    A question that repeats a category for the same image (rows without `category` do) counts as another image.
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
    """A box in COCO's form. An inverted box gets area 0: with a negative area, COCO would ignore it."""
    x1, y1, x2, y2 = (float(value) for value in xyxy)
    return [x1, y1, max(x2 - x1, 0.0), max(y2 - y1, 0.0)]


def _known(value: float) -> float | None:
    return None if value < 0 else float(value)


COCO_LIMIT, LVIS_LIMIT = 100, 300
"""Maximum number of detections that count: per image and class in COCO, per image in LVIS."""


@dataclass(frozen=True)
class Evaluation:
    """The result of an official scorer.

    figures: by name, each in [0, 1]; None without gold.
    by_class: `{figure: (K,)}` over the classes by rising id, without figures of frequency groups; NaN without gold.
    matches: for resampling.
    """

    figures: dict[str, float | None]
    by_class: dict[str, np.ndarray]
    matches: Matches


def evaluate_coco(dataset: dict, detections: Sequence[dict], category_ids: Collection) -> Evaluation:
    """COCO's figures of boxes over these categories."""
    evaluator = evaluate_boxes(dataset, detections, category_ids=category_ids)
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    by_class = figures_by_class(precision, recall, COCO_FIGURES, evaluator.params.areaRngLbl, evaluator.params.maxDets)
    return Evaluation(official_figures(evaluator), by_class, coco_matches(evaluator))


def figures_by_class(
    precision: np.ndarray, recall: np.ndarray, figures: Mapping[str, Figure], areas: Sequence[str], limits: list[int]
) -> dict[str, np.ndarray]:
    """Figures by class, from the official tables.

    precision: (T, recall thresholds, K, A, limits). recall: (T, K, A, limits).
    limits: the maximum numbers of detections. Classes without gold, which have -1 in the tables, become NaN.
    """
    values = {}
    for name, figure in figures.items():
        if figure.frequency is not None:
            continue
        a, m = list(areas).index(figure.area), limits.index(figure.most) if figure.most else -1
        table = recall[:, None, :, a, m] if figure.kind == "recall" else precision[:, :, :, a, m]
        if figure.iou is not None:
            table = table[[round((figure.iou - 0.5) / 0.05)]]  # the thresholds are .5, .55 … .95
        mean = table.mean(axis=(0, 1))
        values[name] = np.where(mean < 0, np.nan, mean)
    return values
