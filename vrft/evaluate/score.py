"""Scores completions. The task of the training parses and scores them; no model or accelerator is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vrft.errors import raise_all
from vrft.evaluate.bootstrap import mean_with_interval
from vrft.evaluate.box_ranking import rank_by
from vrft.evaluate.protocols import scorer_for
from vrft.tasks.answers import REASONS
from vrft.tasks.base import Parsed, Task
from vrft.tasks.boxes import Frame
from vrft.tasks.reward import RewardFunction
from vrft.tasks.rows import Row


def score_completions(
    rows: Sequence[Row],
    completions: Sequence[Mapping],
    *,
    task: Task,
    frame_for_row: Callable[[Row], Frame],
    protocol: Mapping,
    judge: RewardFunction,
) -> tuple[list[dict], dict[str, dict]]:
    """One scored row per row, in their order, and the protocol's metrics as `{name: {"value", "n", "interval"}}`.

    completions: sample 0 of each row, which is scored, and its further samples if there are any; in any order.
    protocol: `{name, version, scorer, n_resamples}`, and for boxes `score_source` (see `vrft.evaluate.box_ranking`).
    judge: the reward function; it always uses the written confidences.
    Besides the scorer's metrics there are the mean `reward`, the mean `n_tokens`, and the shares of completions that
    are `truncated`, `unreadable`, and unreadable for each reason (`unreadable/no_box`).
    Raises `UserError` if a row has no completion or a sample twice, or a completion has no row, or lacks what
    `score_source` needs.
    """
    scorer = scorer_for(protocol, task)
    by_row = _completions_by_row(rows, completions)
    parsed, scored, faults = [], [], []
    for row, samples in zip(rows, by_row, strict=True):
        frame = frame_for_row(row)
        written = task.parse(samples[0]["text"], row, frame, is_truncated=samples[0]["is_truncated"])
        try:
            one = rank_by(protocol, written, samples, row, task=task, frame=frame)
        except ValueError as error:
            faults.append(f"row_id {row['row_id']!r}: {error}")
            continue
        parsed.append(one)
        scored.append(_scored_row(row, one, judge(written, row), task))
    raise_all(
        faults, heading="the completions lack what protocol.score_source needs; evaluate again with this protocol:"
    )
    metrics, details = scorer(rows, parsed, task=task, protocol=protocol)
    for one, own in zip(scored, details, strict=True):
        one.update(own)
    n_tokens = [samples[0]["n_tokens"] for samples in by_row]
    return scored, {**metrics, **_health_metrics(parsed, scored, n_tokens, protocol["n_resamples"])}


def answered_boxes(scored: Mapping) -> list[tuple]:
    """The boxes of a scored row of detection, `(xyxy, confidence, label)` each; none if it was unreadable."""
    return [(box["xyxy"], box["confidence"], box["label"]) for box in scored["answer"] or []]


def answer_as_json(answer: Any) -> Any:
    """An answer in JSON types: a named tuple becomes an object, a tuple a list.

    >>> answer_as_json(((0.0, 1.0), "seven"))
    [[0.0, 1.0], 'seven']
    """
    if hasattr(answer, "_asdict"):
        return {name: answer_as_json(value) for name, value in answer._asdict().items()}
    if isinstance(answer, list | tuple):
        return [answer_as_json(value) for value in answer]
    return answer


def _scored_row(row: Row, parsed: Parsed, reward: dict, task: Task) -> dict:
    return {
        "row_id": row["row_id"],
        "text": parsed.text,
        "is_truncated": parsed.is_truncated,
        "answer": answer_as_json(parsed.answer),
        "reason": parsed.reason,
        "terms": reward["terms"],
        "total": reward["total"],
        "metrics": {name: _as_float(metric(parsed, row)) for name, metric in task.metrics.items()},
    }


def _as_float(value: float | None) -> float | None:
    """A user's own metric may be a bool, which JSON would keep, or of NumPy."""
    return None if value is None else float(value)


def _health_metrics(
    parsed: Sequence[Parsed], scored: Sequence[dict], n_tokens: Sequence[int], n_resamples: int
) -> dict[str, dict]:
    values = {
        "reward": [row["total"] for row in scored],
        "n_tokens": n_tokens,
        "truncated": [one.is_truncated for one in parsed],
        "unreadable": [one.answer is None for one in parsed],
        **{f"unreadable/{reason}": [one.reason == reason for one in parsed] for reason in REASONS},
    }
    return {name: mean_with_interval(column, n_resamples=n_resamples) for name, column in values.items()}


def _completions_by_row(rows: Sequence[Row], completions: Sequence[Mapping]) -> list[list[Mapping]]:
    """The completions of each row, in the order of the rows and of their samples."""
    found: dict[str, list[Mapping]] = {row["row_id"]: [] for row in rows}
    times = Counter(row["row_id"] for row in rows)
    faults = [f"row_id {row_id!r}: {n} rows; it must be unique" for row_id, n in times.items() if n > 1]
    for completion in completions:
        if completion["row_id"] in found:
            found[completion["row_id"]].append(completion)
        else:
            faults.append(f"row_id {completion['row_id']!r}: a completion without a row")
    for row_id, own in found.items():
        own.sort(key=lambda completion: completion["sample"])
        samples = [completion["sample"] for completion in own]
        if samples != list(range(len(samples))) or not samples:
            given = (
                f"samples {samples} are given; 0 is needed, then 1 and so on, each once" if samples else "no completion"
            )
            faults.append(f"row_id {row_id!r}: {given}")
    raise_all(sorted(faults), heading="completions and rows do not fit:")
    return list(found.values())
