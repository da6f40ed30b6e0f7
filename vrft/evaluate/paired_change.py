"""The change of a metric between two evaluations of the same rows, with a paired bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence

from vrft.evaluate.bootstrap import mean_with_interval
from vrft.evaluate.score import answered_boxes
from vrft.tasks.rows import Row


def metric_change(
    rows: Sequence[Row],
    before: Sequence[dict],
    after: Sequence[dict],
    *,
    metric: str,
    asked: str | None = None,
    n_resamples: int = 1000,
) -> dict | None:
    """`{"value", "n", "interval"}` of `after` minus `before`; None if the scored rows lack the metric.

    before, after: scored rows (see `vrft.evaluate.score`) in the order of `rows`. Both sides use the same resamples, so
    what they have in common, such as hard questions, does not widen the interval. asked: of the protocol (see
    `asked_boxes`).
    """
    from vrft.evaluate.coco import NAMES, asked_boxes, average_precision_change
    from vrft.evaluate.masks import cumulative_iou_change

    if metric in NAMES:
        found = [asked_boxes(rows, list(map(answered_boxes, side)), asked=asked) for side in (before, after)]
        return average_precision_change(rows, *found, n_resamples=n_resamples)[metric]
    if metric == "cIoU":
        masks = [[scored.get("mask") for scored in side] for side in (before, after)]
        return cumulative_iou_change(*masks, n_resamples=n_resamples) if all(map(all, masks)) else None
    pairs = [(_value(old, metric), _value(new, metric)) for old, new in zip(before, after, strict=True)]
    differences = [new - old for old, new in pairs if old is not None and new is not None]
    return mean_with_interval(differences, n_resamples=n_resamples) if differences else None


def _value(scored: dict, metric: str) -> float | None:
    return scored.get("mask", {}).get("iou") if metric == "gIoU" else scored["metrics"].get(metric)
