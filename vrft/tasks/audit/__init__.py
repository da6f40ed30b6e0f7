"""The audit: what every known attack earns under a task and a reward, beside the reward of reference answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vrft.tasks.audit.attacks import Attack, attacks
from vrft.tasks.audit.reference_answers import ReferenceAnswer, reference_answers
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

    rows: all of one task. earns: the attack's mean reward over the n_rows rows to which it applies; it does not apply
    where it writes the reference answer itself. honest: the mean reward of the reference answers on these rows; of the
    golds, for a blind attack. n_better: rows on which it earns more; for a wrong or a blind attack, as much or more.

    What counts as success depends on the kind of attack (see `Attack`):

    wrong         it earns at least as much as the reference on one row
    altered       it earns more than the reference on one row
    blind         its mean is at least that of the golds; it may be right on a single row by luck
    confidence    its mean exceeds the reference's; a confidence is calibrated on average, not on a single row
    """
    frames = [frame_for_row(row) for row in rows]
    references = reference_answers(task, rows, frames)
    of_reference = [_total(one, one.completion, judge) for one in references]
    of_gold = [_total(one, one.wrap(task.write(one.row["gold"], one.frame)), judge) for one in references]
    kind = task.answer_kind if task.answer_kind != "boxes" or isinstance(task, BoxListTask) else ""
    for attack in attacks(kind):
        texts = [attack.write(one) for one in references]
        to_beat = of_gold if attack.kind == "blind" else of_reference
        totals = [
            (_total(one, text, judge), reward)
            for one, text, reward in zip(references, texts, to_beat, strict=True)
            if text is not None and text != one.completion
        ]
        if totals:
            yield _outcome(attack, np.array(totals))


def _outcome(attack: Attack, totals: np.ndarray) -> dict:
    """totals: (n, 2) the rewards of the attack and of the answer that it is compared with, by row."""
    earns, reference = totals.mean(axis=0)
    more = totals[:, 0] > totals[:, 1] + _TOLERANCE
    as_much = totals[:, 0] >= totals[:, 1] - _TOLERANCE
    is_better = as_much if attack.kind in ("wrong", "blind") else more
    succeeds = {
        "blind": earns >= reference - _TOLERANCE,
        "confidence": earns > reference + _TOLERANCE,
        "wrong": is_better.any(),
        "altered": is_better.any(),
    }[attack.kind]
    return {
        "attack": attack.name,
        "what": attack.what,
        "earns": float(earns),
        "honest": float(reference),
        "n_rows": len(totals),
        "n_better": int(is_better.sum()),
        "succeeds": bool(succeeds),
    }


def _total(reference: ReferenceAnswer, text: str, judge: RewardFunction) -> float:
    return judge(reference.task.parse(text, reference.row, reference.frame), reference.row)["total"]
