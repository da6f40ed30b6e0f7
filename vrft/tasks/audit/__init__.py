"""What every known attack would earn under a task and a reward, beside what honest work earns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vrft.tasks.audit.attacks import Attack, attacks
from vrft.tasks.audit.reference_answers import Honest, honest_answers
from vrft.tasks.base import Task
from vrft.tasks.box_list import BoxListTask
from vrft.tasks.boxes import Frame
from vrft.tasks.reward import RewardFunction
from vrft.tasks.rows import Row

_TOLERANCE = 1e-9


def audit(
    task: Task, rows: Sequence[Row], *, judge: RewardFunction, frame_for_row: Callable[[Row], Frame]
) -> Iterator[dict]:
    """Yield `{"attack", "what", "earns", "honest", "n_rows", "n_better", "succeeds"}` for each attack that applies.

    rows: all of the one task. earns, honest: means over the rows to which the attack applies (an attack that comes out
    as the honest answer does not apply). n_better: rows on which it succeeds by itself: a dressed one where it earns
    more than honest work, a false or blind one where it earns as much.
    A dressed or a false attack succeeds if it does on a single row. A blind one may be right by luck, and is measured
    by its mean against the right answers' (honest: the gold itself). One that only changes confidences, which are right
    on the average alone, by its mean against honest work's.
    """
    frames = [frame_for_row(row) for row in rows]
    honest = honest_answers(task, rows, frames)
    fair = [_total(one, one.completion, judge) for one in honest]
    best = [_total(one, one.wrap(task.write(one.row["gold"], one.frame)), judge) for one in honest]
    kind = task.answer_kind if task.answer_kind != "boxes" or isinstance(task, BoxListTask) else ""
    for attack in attacks(kind):
        texts = [attack.write(one) for one in honest]
        found = [
            (_total(one, text, judge), own)
            for one, text, own in zip(honest, texts, best if attack.kind == "blind" else fair, strict=True)
            if text is not None and text != one.completion
        ]
        if found:
            yield _outcome(attack, np.array(found))


def _outcome(attack: Attack, totals: np.ndarray) -> dict:
    """totals: (n, 2) what the attack and what honest work earns on each row."""
    earns, honest = totals.mean(axis=0)
    more = totals[:, 0] > totals[:, 1] + _TOLERANCE
    as_much = totals[:, 0] >= totals[:, 1] - _TOLERANCE
    is_better = as_much if attack.kind in ("false", "blind") else more
    succeeds = {
        "blind": earns >= honest - _TOLERANCE,
        "doubt": earns > honest + _TOLERANCE,
        "false": is_better.any(),
        "dressed": is_better.any(),
    }[attack.kind]
    return {
        "attack": attack.name,
        "what": attack.what,
        "earns": float(earns),
        "honest": float(honest),
        "n_rows": len(totals),
        "n_better": int(is_better.sum()),
        "succeeds": bool(succeeds),
    }


def _total(honest: Honest, text: str, judge: RewardFunction) -> float:
    return judge(honest.task.parse(text, honest.row, honest.frame), honest.row)["total"]
