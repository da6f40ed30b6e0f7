"""Scores results files of COCO and LVIS: figures with intervals, figures by class, and counts of what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vrft.data.class_names import read_class_names
from vrft.evaluate.bootstrap import (
    COCO_FIGURES,
    LVIS_FIGURES,
    Figure,
    class_samples,
    draw_counts,
    mean_samples,
    percentile_interval,
)
from vrft.evaluate.coco import COCO_LIMIT, LVIS_LIMIT, Evaluation, as_coco, asked_names, evaluate_coco
from vrft.evaluate.detections import count_detections, only_asked, read_detections, read_exist_map
from vrft.evaluate.lvis import evaluate_lvis
from vrft.evaluate.truth import Truth, read_truth
from vrft.tasks.rows import Row


def score_coco_file(annotations: Path, detections: Sequence[Path], **options: Any) -> dict:
    """As `score_coco_detections`, for an annotation file and one or several results files.

    Raises `UserError` that lists what is wrong with them.
    """
    return _score_file(score_coco_detections, annotations, detections, is_federated=False, **options)


def score_lvis_file(annotations: Path, detections: Sequence[Path], **options: Any) -> dict:
    """As `score_lvis_detections`, for an annotation file and one or several results files."""
    return _score_file(score_lvis_detections, annotations, detections, is_federated=True, **options)


def _score_file(
    score: Callable[..., dict], annotations: Path, detections: Sequence[Path], *, is_federated: bool, **options: Any
) -> dict:
    truth = read_truth(annotations, is_federated=is_federated)
    found, n_shared = read_detections(detections, truth)
    result = score(truth, found, **options)
    return {**result, "counts": {**result["counts"], "images_in_several_files": n_shared}}


def score_coco_detections(
    truth: Truth,
    found: Sequence[dict],
    *,
    asked: str = "all",
    exist_map: Path | None = None,
    classes: str | Sequence[str] | None = None,
    n_resamples: int = 1000,
) -> dict:
    """`{"metrics", "per_class", "absent_classes", "counts"}`: COCO's twelve figures of boxes.

    truth, found: from `read_truth` and `read_detections`. asked: which questions count, see `only_asked`.
    classes: names, or a file of names; only these classes are scored. A class without gold (crowds are not gold) is
    listed as absent, and is in no mean. The intervals resample images.
    """
    counts = count_detections(found, truth, most=COCO_LIMIT, is_per_class=True)
    counts["crowd_annotations"] = sum(bool(one.get("iscrowd")) for one in truth.dataset["annotations"])
    pairs, about_map = read_exist_map(exist_map, truth) if asked == "exist_map" else (None, {})
    kept = only_asked(found, truth, asked=asked, exist_map=pairs)
    counts |= about_map | {"detections_not_asked": len(found) - len(kept)}
    category_ids = _chosen(classes, truth)
    evaluation = evaluate_coco(truth.dataset, kept, category_ids)
    result = _result(evaluation, COCO_FIGURES, truth, kept, category_ids, n_resamples=n_resamples)
    return {**result, "counts": counts | _outside(kept, category_ids)}


def score_lvis_detections(
    truth: Truth,
    found: Sequence[dict],
    *,
    classes: str | Sequence[str] | None = None,
    n_resamples: int = 1000,
) -> dict:
    """As `score_coco_detections`: LVIS's thirteen figures of boxes under its federated rule.

    In an image only the categories count that are annotated there or listed as absent. Detections of other categories
    are left out, and counted. If a category is not annotated exhaustively, a box without a match is ignored.
    """
    counts = count_detections(found, truth, most=LVIS_LIMIT, is_per_class=False)
    verified = truth.present | {
        (image["id"], number) for image in truth.dataset["images"] for number in image["neg_category_ids"]
    }
    not_verified = sum((one["image_id"], one["category_id"]) not in verified for one in found)
    category_ids = _chosen(classes, truth)
    evaluation = evaluate_lvis(truth.dataset, found, category_ids)
    result = _result(evaluation, LVIS_FIGURES, truth, found, category_ids, n_resamples=n_resamples)
    counts |= {"detections_not_verified": not_verified} | _outside(found, category_ids)
    return {**result, "counts": counts}


def score_coco_rows(rows: Sequence[Row], found: Sequence[Sequence[tuple]], *, n_resamples: int = 1000) -> dict:
    """As `score_coco_detections`, for vrft's own rows. found: as in `average_precision`. None without gold."""
    dataset, detections = as_coco(rows, found)
    asked = asked_names(rows)
    for category in dataset["categories"]:
        category["name"] = asked.get(category["name"], category["name"])
    truth, counts = Truth(dataset, "rows"), {"detections": len(detections)}
    if not dataset["annotations"]:
        metrics = {name: _metric(None, len(dataset["images"]), None) for name in COCO_FIGURES}
        return {"metrics": metrics, "per_class": {}, "absent_classes": sorted(asked.values()), "counts": counts}
    category_ids = list(truth.class_names)
    evaluation = evaluate_coco(dataset, detections, category_ids)
    result = _result(evaluation, COCO_FIGURES, truth, detections, category_ids, n_resamples=n_resamples)
    absent = sorted(set(asked.values()) - result["per_class"].keys())
    return {**result, "absent_classes": absent, "counts": counts}


def _chosen(classes: str | Sequence[str] | None, truth: Truth) -> list:
    """The ids of the chosen classes, ascending; classes=None: of all classes."""
    if classes is None:
        return sorted(truth.class_names)
    source = f"classes={classes}" if isinstance(classes, str) else "classes"
    return sorted(truth.ids_of(read_class_names(classes, key="classes"), source))


def _outside(detections: Sequence[dict], category_ids: Collection) -> dict[str, int]:
    return {"detections_of_other_classes": sum(one["category_id"] not in category_ids for one in detections)}


def _result(
    evaluation: Evaluation,
    figures: Mapping[str, Figure],
    truth: Truth,
    detections: Sequence[dict],
    category_ids: list,
    *,
    n_resamples: int,
) -> dict:
    n_images, intervals, class_intervals = len(truth.image_ids), {}, {}
    frequency_of = {one["id"]: one.get("frequency", "") for one in truth.dataset["categories"]}
    if n_images:
        counts = draw_counts(n_images, n_resamples=n_resamples)
        samples = class_samples(evaluation.matches, counts, figures)
        means = mean_samples(samples, figures, [frequency_of[number] for number in category_ids])
        intervals = {name: percentile_interval(values) for name, values in means.items()}
        class_intervals = {name: list(map(percentile_interval, values)) for name, values in samples.items()}
    metrics = {name: _metric(evaluation.figures[name], n_images, intervals.get(name)) for name in figures}
    n_gold = Counter(one["category_id"] for one in truth.dataset["annotations"] if not one.get("iscrowd"))
    n_found = Counter(one["category_id"] for one in detections)
    shown = ("AP", "AP50", "AP75", next(name for name in figures if name in ("AR100", "AR@300")))
    per_class = {}
    for k, number in enumerate(category_ids):
        if np.isnan(evaluation.by_class["AP"][k]):
            continue
        own = {
            name: _metric(float(evaluation.by_class[name][k]), n_images, class_intervals.get(name, {k: None})[k])
            for name in shown
        }
        extra = {"frequency": frequency_of[number]} if frequency_of[number] else {}
        n_boxes = {"n_gold": n_gold[number], "n_detections": n_found[number]}
        per_class[truth.class_names[number]] = {**own, **n_boxes, **extra}
    absent = [name for number, name in truth.class_names.items() if number in category_ids and name not in per_class]
    return {"metrics": metrics, "per_class": per_class, "absent_classes": absent}


def _metric(value: float | None, n: int, interval: list[float] | None) -> dict:
    return {"value": value, "n": n, "interval": interval}
