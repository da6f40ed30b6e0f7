"""Protocols: named, versioned ways to judge the completions of a set of rows.

A protocol's config is `{name, version, scorer, n_resamples}`, and what else its scorer must know. The scorers `lvis`
and `masks` judge files of predictions only (`vrft score`), `coco` and `classification` both. A scorer of rows takes the
rows and their parsed completions and returns `{metric: {"value", "n", "interval"}}`; `primary_metrics` are those by
which results are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vrft.errors import UserError
from vrft.metrics import mean_with_interval
from vrft.rows import Row
from vrft.tasks import MixedTask, Task
from vrft.tasks.base import Parsed


def score_rows(rows: Sequence[Row], parsed: Sequence[Parsed], *, task: Task, n_resamples: int) -> dict[str, dict]:
    """The mean of each of the task's metrics over the rows to which it applies."""
    metrics = {}
    for name, metric in task.metrics.items():
        values = [metric(one, row) for one, row in zip(parsed, rows, strict=True)]
        metrics[name] = mean_with_interval([value for value in values if value is not None], n_resamples=n_resamples)
    return metrics


def score_coco(rows: Sequence[Row], parsed: Sequence[Parsed], *, task: Task, n_resamples: int) -> dict[str, dict]:
    """The official COCO figures over all rows' images, then the means of the task's metrics."""
    from vrft.evaluate.average_precision import average_precision

    figures = average_precision(rows, [one.answer or [] for one in parsed], n_resamples=n_resamples)
    return {**figures, **score_rows(rows, parsed, task=task, n_resamples=n_resamples)}


SCORERS: dict[str, Callable[..., dict[str, dict]]] = {
    "coco": score_coco,
    **dict.fromkeys(("grounding", "classification", "rows"), score_rows),
}


def primary_metrics(protocol: Mapping, task: Task | MixedTask) -> tuple[str, ...]:
    """The metrics by which results are compared, the first being the one that validation maximises."""
    return ("AP", "pick_rate") if protocol["scorer"] == "coco" else task.primary_metrics


def protocol_key(protocol: Mapping) -> str:
    """The protocol as it stands in results.

    >>> protocol_key({"name": "grounding", "version": 1})
    'grounding_v1'
    """
    return f"{protocol['name']}_v{protocol['version']}"


def scorer_for(protocol: Mapping, task: Task) -> Callable[..., dict[str, dict]]:
    """The scorer that the protocol names. Raises `UserError` if it is unknown, or cannot judge the task."""
    name = protocol["scorer"]
    if name not in SCORERS:
        raise UserError(
            f"protocol.scorer is {name!r}; known scorers of completions: {', '.join(SCORERS)} (lvis and masks judge "
            "files of predictions: vrft score)"
        )
    if name not in task.protocol_scorers:
        raise UserError(
            f"protocol={protocol['name']} judges by the scorer {name!r}, which does not fit task={task.name}; "
            f"this task takes: {', '.join(task.protocol_scorers)}"
        )
    return SCORERS[name]
