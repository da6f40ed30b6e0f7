"""Judging completions: no model, no accelerator; the same task that trained reads and scores them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vrft.answers import REASONS
from vrft.boxes import Frame
from vrft.errors import raise_all
from vrft.evaluate.protocols import scorer_for
from vrft.metrics import mean_with_interval
from vrft.rows import Row
from vrft.tasks.base import Parsed, Task
from vrft.tasks.judge import Judge


def score_completions(
    rows: Sequence[Row],
    completions: Sequence[Mapping],
    *,
    task: Task,
    frame_for_row: Callable[[Row], Frame],
    protocol: Mapping,
    judge: Judge,
) -> tuple[list[dict], dict[str, dict]]:
    """One scored row per row, in their order, and the protocol's metrics as `{name: {"value", "n", "interval"}}`.

    completions: one per row, in any order.
    protocol: `{name, version, scorer, n_resamples}`.
    judge: what a completion earns.
    Beside the scorer's metrics there are the mean `reward`, the mean `n_tokens`, and the shares of completions that are
    `truncated`, `unreadable`, and unreadable for each reason (`unreadable/no_box`).
    Raises `UserError` if a row has no completion or several, or a completion no row.
    """
    scorer = scorer_for(protocol, task)
    by_row = _completions_by_row(rows, completions)
    parsed, scored = [], []
    for row, completion in zip(rows, by_row, strict=True):
        one = task.parse(completion["text"], row, frame_for_row(row), is_truncated=completion["is_truncated"])
        parsed.append(one)
        scored.append(_scored_row(row, one, judge(one, row), task))
    metrics = scorer(rows, parsed, task=task, n_resamples=protocol["n_resamples"])
    n_tokens = [completion["n_tokens"] for completion in by_row]
    return scored, {**metrics, **_health_metrics(parsed, scored, n_tokens, protocol["n_resamples"])}


def plain(answer: Any) -> Any:
    """An answer as JSON holds it: records as objects, tuples as lists.

    >>> plain(((0.0, 1.0), "seven"))
    [[0.0, 1.0], 'seven']
    """
    if hasattr(answer, "_asdict"):
        return {name: plain(value) for name, value in answer._asdict().items()}
    if isinstance(answer, list | tuple):
        return [plain(value) for value in answer]
    return answer


def _scored_row(row: Row, parsed: Parsed, verdict: dict, task: Task) -> dict:
    return {
        "row_id": row["row_id"],
        "text": parsed.text,
        "is_truncated": parsed.is_truncated,
        "answer": plain(parsed.answer),
        "reason": parsed.reason,
        "terms": verdict["terms"],
        "total": verdict["total"],
        "metrics": {name: metric(parsed, row) for name, metric in task.metrics.items()},
    }


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


def _completions_by_row(rows: Sequence[Row], completions: Sequence[Mapping]) -> list[Mapping]:
    """The completion of each row, in the order of the rows."""
    counts = Counter(completion["row_id"] for completion in completions)
    row_ids = {row["row_id"] for row in rows}
    faults = [f"row_id {row_id!r}: {counts[row_id]} completions" for row_id in row_ids if counts[row_id] != 1]
    faults += [f"row_id {row_id!r}: a completion of no row" for row_id in counts if row_id not in row_ids]
    raise_all(sorted(faults), heading="completions and rows do not fit; each row must have exactly one completion:")
    found = {completion["row_id"]: completion for completion in completions}
    return [found[row["row_id"]] for row in rows]
