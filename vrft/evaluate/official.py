"""Boxes judged by the official scorers: `pycocotools`, `lvis`, and `faster-coco-eval`, which must agree with both."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vrft.errors import UserError
from vrft.evaluate.average_precision import evaluate_boxes, official_figures
from vrft.evaluate.packages import lvis_package
from vrft.evaluate.resamples import (
    COCO_FIGURES,
    LVIS_FIGURES,
    Figure,
    Matches,
    coco_matches,
    lvis_matches,
    mean_samples,
)

COCO_LIMIT, LVIS_LIMIT = 100, 300
"""How many detections count: of an image and class in COCO, of an image in LVIS."""


@dataclass(frozen=True)
class Evaluation:
    """What an official scorer says.

    figures: each in [0, 1], by name; None without gold.
    by_class: `{figure: (K,)}` over the classes by rising id, the figures of groups aside; NaN without gold.
    matches: for resampling; None where the engine keeps them to itself.
    """

    figures: dict[str, float | None]
    by_class: dict[str, np.ndarray]
    matches: Matches | None


def evaluate_coco(dataset: dict, detections: Sequence[dict], category_ids: Collection, *, engine: str) -> Evaluation:
    """COCO's figures of boxes, over these categories."""
    if engine == "faster":
        return _evaluate_faster(dataset, detections, category_ids, figures=COCO_FIGURES, limits=[1, 10, COCO_LIMIT])
    evaluator = evaluate_boxes(dataset, detections, category_ids=category_ids)
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    by_class = _by_class(precision, recall, COCO_FIGURES, evaluator.params.areaRngLbl, evaluator.params.maxDets)
    return Evaluation(official_figures(evaluator), by_class, coco_matches(evaluator))


def evaluate_lvis(dataset: dict, detections: Sequence[dict], category_ids: Collection, *, engine: str) -> Evaluation:
    """LVIS's figures of boxes, over these categories; the 300 surest of an image are taken of all categories."""
    if engine == "faster":
        surest = _surest(detections, LVIS_LIMIT)  # this engine would take 300 of each category
        return _evaluate_faster(dataset, surest, category_ids, figures=LVIS_FIGURES, limits=[LVIS_LIMIT])
    with lvis_package() as lvis:
        evaluator = _lvis_evaluator(lvis, dataset, detections)
        evaluator.params.cat_ids = sorted(category_ids)
        evaluator.run()
    found = {name: None if value < 0 else float(value) for name, value in evaluator.get_results().items()}
    precision, recall = (evaluator.eval[key][..., None] for key in ("precision", "recall"))
    by_class = _by_class(precision, recall, LVIS_FIGURES, evaluator.params.area_rng_lbl, [LVIS_LIMIT])
    return Evaluation({name: found[name] for name in LVIS_FIGURES}, by_class, lvis_matches(evaluator))


def _lvis_evaluator(lvis, dataset: dict, detections: Sequence[dict]):
    class Given(lvis.LVIS):
        """Ground truth from memory: the official class reads only files."""

        def _load_json(self, path):
            return path

    gold = Given(copy.deepcopy(dataset))
    # The official reader of results fails for an empty list: one box stands in until the reader is done.
    box = {"image_id": dataset["images"][0]["id"], "category_id": dataset["categories"][0]["id"], "score": 0.0}
    found = lvis.LVISResults(gold, [dict(one) for one in detections] or [box | {"bbox": [0, 0, 1, 1]}])
    if not detections:
        found.dataset["annotations"] = []
        found._create_index()
    return lvis.LVISEval(gold, found, iou_type="bbox")


def _evaluate_faster(
    dataset: dict,
    detections: Sequence[dict],
    category_ids: Collection,
    *,
    figures: Mapping[str, Figure],
    limits: list[int],
) -> Evaluation:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise UserError(
            f"engine=faster needs faster-coco-eval, which cannot be loaded ({error}); pip install 'vrft[faster]', or "
            "leave engine=official"
        ) from None
    is_lvis = figures is LVIS_FIGURES
    quiet = {"print_function": lambda *_: None}
    gold = COCO(copy.deepcopy(dataset), **quiet)
    found = gold.loadRes([dict(one) for one in detections])
    evaluator = COCOeval_faster(gold, found, "bbox", lvis_style=is_lvis, **quiet)
    evaluator.params.catIds, evaluator.params.maxDets = sorted(category_ids), limits
    evaluator.evaluate()
    evaluator.accumulate()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    by_class = _by_class(precision, recall, figures, evaluator.params.areaRngLbl, limits)
    frequency_of = {one["id"]: one.get("frequency", "") for one in dataset["categories"]}
    frequencies = [frequency_of[number] for number in sorted(category_ids)]
    means = mean_samples({name: values[:, None] for name, values in by_class.items()}, figures, frequencies)
    known = {name: None if np.isnan(values[0]) else float(values[0]) for name, values in means.items()}
    return Evaluation(known, by_class, None)


def _by_class(
    precision: np.ndarray, recall: np.ndarray, figures: Mapping[str, Figure], areas: Sequence[str], limits: list[int]
) -> dict[str, np.ndarray]:
    """The official tables, precision (T, recall thresholds, K, A, limits) and recall (T, K, A, limits), by class.

    A class without gold, which they mark by -1, becomes NaN.
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


def _surest(detections: Sequence[dict], most: int) -> list[dict]:
    """The surest detections of each image; of equal ones the earlier."""
    by_image: dict = {}
    for one in detections:
        by_image.setdefault(one["image_id"], []).append(one)
    return [
        one
        for own in by_image.values()
        for one in (sorted(own, key=lambda one: -one["score"])[:most] if len(own) > most else own)
    ]
