"""What every known attack would earn under a task and a reward, beside what honest work earns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vrft.boxes import Frame
from vrft.rows import Row
from vrft.tasks.attacks import Attack, Honest, attacks, honest_answers
from vrft.tasks.base import Task
from vrft.tasks.judge import Judge

_TOLERANCE = 1e-9


def audit(task: Task, rows: Sequence[Row], *, judge: Judge, frame_for_row: Callable[[Row], Frame]) -> Iterator[dict]:
    """Yield `{"attack", "what", "earns", "honest", "n_rows", "n_better", "succeeds"}` for each attack that applies.

    rows: all of the one task. earns, honest: means over the rows to which the attack applies. n_better: rows on which
    it earns more than honest work. A guess succeeds if its mean is above honest work's (it may be right by luck on a
    row), any other attack if it earns more on a single row.
    """
    honest = honest_answers(task, rows, [frame_for_row(row) for row in rows])
    fair = [_total(one, one.completion, judge) for one in honest]
    for attack in attacks(task.answer_kind):
        found = [(_total(one, text, judge), own) for one, own in zip(honest, fair, strict=True)
                 if (text := attack.write(one)) is not None]  # fmt: skip
        if found:
            yield _outcome(attack, np.array(found))


def _outcome(attack: Attack, totals: np.ndarray) -> dict:
    """totals: (n, 2) what the attack and what honest work earns on each row."""
    earns, honest = totals.mean(axis=0)
    n_better = int((totals[:, 0] > totals[:, 1] + _TOLERANCE).sum())
    return {
        "attack": attack.name,
        "what": attack.what,
        "earns": float(earns),
        "honest": float(honest),
        "n_rows": len(totals),
        "n_better": n_better,
        "succeeds": bool(earns > honest + _TOLERANCE) if attack.is_guess else n_better > 0,
    }


def _total(honest: Honest, text: str, judge: Judge) -> float:
    return judge(honest.task.parse(text, honest.row, honest.frame), honest.row)["total"]
