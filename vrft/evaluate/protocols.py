"""Protocols: named, versioned ways to score the completions of a set of rows.

A protocol's config is `{name, version, scorer, n_resamples}` and the options of its scorer. The scorer `lvis` scores
only files of predictions (`vrft score`); `coco`, `masks` and `classification` score files and rows. A scorer of rows
takes the rows, their parsed completions and the protocol. It returns `{metric: {"value", "n", "interval"}}`, and a dict
of further fields for each row. Results are compared by their `primary_metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vrft.errors import UserError
from vrft.evaluate.bootstrap import mean_with_interval
from vrft.tasks import MixedTask, Task
from vrft.tasks.answers import normal_name
from vrft.tasks.base import Parsed
from vrft.tasks.rows import Row

Scored = tuple[dict[str, dict], list[dict]]


def score_rows(rows: Sequence[Row], parsed: Sequence[Parsed], *, task: Task, protocol: Mapping) -> Scored:
    """The mean of each metric of the task, over the rows to which it applies."""
    metrics, n_resamples = {}, protocol["n_resamples"]
    for name, metric in task.metrics.items():
        values = [metric(one, row) for one, row in zip(parsed, rows, strict=True)]
        metrics[name] = mean_with_interval([value for value in values if value is not None], n_resamples=n_resamples)
    return metrics, [{} for _ in rows]


def score_coco(rows: Sequence[Row], parsed: Sequence[Parsed], *, task: Task, protocol: Mapping) -> Scored:
    """The official COCO figures over the images of all rows, then the means of the task's metrics."""
    from vrft.evaluate.coco import asked_boxes, average_precision

    found = asked_boxes(rows, [one.answer or [] for one in parsed], asked=protocol.get("asked"))
    figures = average_precision(rows, found, n_resamples=protocol["n_resamples"])
    means, own = score_rows(rows, parsed, task=task, protocol=protocol)
    return {**figures, **means}, own


def score_masks(rows: Sequence[Row], parsed: Sequence[Parsed], *, task: Task, protocol: Mapping) -> Scored:
    """gIoU and cIoU of the answered boxes, filled, against the rows' polygons, then the means of the task's metrics.

    Each row's field `mask` holds its pixel counts.
    """
    from vrft.evaluate.mask_cases import mask_case
    from vrft.evaluate.masks import score_cases

    cases = [mask_case(row, one.answer) for row, one in zip(rows, parsed, strict=True)]
    figures = score_cases(cases, polygons=protocol.get("polygons") or "all", n_resamples=protocol["n_resamples"])
    means, _ = score_rows(rows, parsed, task=task, protocol=protocol)
    return {**figures["metrics"], **means}, [{"mask": one} for one in figures["cases"]]


SCORERS: dict[str, Callable[..., Scored]] = {
    "coco": score_coco,
    "masks": score_masks,
    **dict.fromkeys(("grounding", "classification", "rows"), score_rows),
}


def ranking_faults(protocol: Mapping) -> list[str]:
    """What is wrong with `score_source` and the keys that it needs."""
    source = protocol.get("score_source") or "written"
    if source == "written":
        return []
    if protocol["scorer"] not in ("coco", "lvis"):
        name = protocol["name"]
        return [
            f"protocol.score_source is {source}, which ranks boxes for AP, but protocol={name} has no AP; leave it out"
        ]
    needed = ("n_samples", "temperature") if source == "agreement" else ()
    return [
        f"protocol.{key} is null, which protocol.score_source={source} needs; a number is right"
        for key in needed
        if protocol.get(key) is None
    ]


def row_faults(protocol: Mapping, rows: Sequence[Row]) -> list[str]:
    """What the rows lack for the protocol."""
    if protocol["scorer"] != "masks":
        return []
    from vrft.evaluate.mask_cases import case_faults, mask_case

    faults = []
    for row in rows:
        polygons = [row.get("target_polygons"), row.get("ignore_polygons") or []]
        if not all(isinstance(own, list) for own in polygons) or not polygons[0]:
            faults.append(f"row {row['row_id']}: no target_polygons; rows of dataset=reasonseg have them")
        else:
            faults += [f"row {row['row_id']}: {fault}" for fault in case_faults(mask_case(row, None))]
    return faults


def questions_not_asked(rows: Sequence[Row], protocol: Mapping) -> int:
    """The number of (image, category) pairs that no row asks for, if the protocol needs all of them; else 0."""
    if protocol["scorer"] != "coco" or protocol.get("asked") != "all":
        return 0
    pairs = {
        (tuple(row["images"]), normal_name(name))
        for row in rows
        for name in row.get("categories", [row.get("category", "object")])
    }
    return len({images for images, _ in pairs}) * len({name for _, name in pairs}) - len(pairs)


def primary_metrics(protocol: Mapping, task: Task | MixedTask) -> tuple[str, ...]:
    """The metrics by which results are compared. Validation maximises the first."""
    own = {"coco": ("AP", "pick_rate"), "masks": ("gIoU", "cIoU")}
    return own.get(protocol["scorer"], task.primary_metrics)


def protocol_key(protocol: Mapping) -> str:
    """The protocol's name in results, with `score_source` unless that is `written`.

    >>> protocol_key({"name": "grounding", "version": 1})
    'grounding_v1'
    >>> agreement = {"score_source": "agreement", "n_samples": 8, "temperature": 1.0}
    >>> protocol_key({"name": "coco_all", "version": 1, **agreement})
    'coco_all_v1_agreement_of_8_at_1'
    """
    name = f"{protocol['name']}_v{protocol['version']}"
    if protocol.get("score_source") == "agreement":
        return f"{name}_agreement_of_{protocol['n_samples']}_at_{protocol['temperature']:g}"
    return f"{name}_token_probability" if protocol.get("score_source") == "token_probability" else name


def scorer_for(protocol: Mapping, task: Task) -> Callable[..., Scored]:
    """The scorer that the protocol names. Raises `UserError` if it is unknown, or does not fit the task."""
    name = protocol["scorer"]
    if name not in SCORERS:
        raise UserError(
            f"protocol.scorer is {name!r}; known scorers of completions: {', '.join(SCORERS)} (lvis scores files of "
            "predictions: vrft score)"
        )
    if name not in task.protocol_scorers:
        raise UserError(
            f"protocol={protocol['name']} uses the scorer {name!r}, which does not fit task={task.name}; "
            f"this task takes: {', '.join(task.protocol_scorers)}"
        )
    return SCORERS[name]
