"""Honest answers, against which attacks are measured.

Honest work is a good answer as models give it, not a perfect one: boxes that overlap their golds at an IoU of .74, one
object in four or more missed, one box in five wrong, and every confidence the share of boxes that are right. Counts,
names, points and golds of a task of one's own are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vrft.tasks.base import Task
from vrft.tasks.box_list import Detection, write_boxes
from vrft.tasks.boxes import Frame, iou_matrix
from vrft.tasks.rows import Row, labelled_boxes

_SHRINK = 0.86  # of each side: an IoU of .86² = .74


@dataclass(frozen=True)
class Honest:
    """One row's honest answer. answer: in the task's own form. others: the golds of all rows, from which a guess may
    be drawn."""

    task: Task
    row: Row
    frame: Frame
    answer: Any
    others: Sequence[Any]

    @property
    def block(self) -> str:
        """The inside of its answer block."""
        if self.task.answer_kind == "boxes":
            return write_boxes(self.answer, self.frame)
        return self.task.write(self.answer, self.frame)

    @property
    def completion(self) -> str:
        """The whole completion."""
        return self.wrap(self.block)

    def wrap(self, block: str) -> str:
        """A completion of the form asked for around the inside of an answer block."""
        return f"{self.thought}<answer>{block}</answer>"

    @property
    def thought(self) -> str:
        """What stands before the answer."""
        if not self.task.has_thought:
            return ""
        return f"{'' if self.task.is_prefilled else '<think>'}I look at the image.</think>"


def honest_answers(task: Task, rows: Sequence[Row], frames: Sequence[Frame]) -> list[Honest]:
    """The honest answer of each row; all rows are of the one task."""
    answers = [_honest(task, row) for row in rows]
    if task.answer_kind == "boxes":
        answers = _with_doubt(answers, rows)
    others = [row["gold"] for row in rows]
    return [Honest(task, row, frame, answer, others) for row, frame, answer in zip(rows, frames, answers, strict=True)]


def _honest(task: Task, row: Row) -> Any:
    if task.answer_kind in ("box", "point"):
        return _shrunk(row["gold"])
    if task.answer_kind != "boxes":
        return row["gold"]
    gold = labelled_boxes(row["gold"])
    found = gold[:-1] if len(gold) >= 4 else gold
    return [Detection(tuple(_shrunk(xyxy)), 1.0, label) for xyxy, label in found]


def _with_doubt(answers: Sequence[list[Detection]], rows: Sequence[Row]) -> list[list[Detection]]:
    """One false box for every four right ones, and every confidence the share of right boxes.

    False boxes go to rows where nothing was missed, if there are any. A box counts by one over its row's golds, as in
    the term `calibration`.
    """
    n_right = [len(answer) for answer in answers]
    complete = [index for index, row in enumerate(rows) if row["gold"] and n_right[index] == len(row["gold"])]
    hosts = (complete or [index for index, n in enumerate(n_right) if n])[: sum(n_right) // 4]
    answers = [
        [*answer, Detection(empty_corner(row), 1.0, answer[0].label)] if index in hosts else answer
        for index, (answer, row) in enumerate(zip(answers, rows, strict=True))
    ]
    share = [1 / max(len(row["gold"]), 1) for row in rows]
    right = sum(n * weight for n, weight in zip(n_right, share, strict=True))
    total = sum(len(answer) * weight for answer, weight in zip(answers, share, strict=True))
    confidence = round(right / total, 2) if total else 1.0
    return [[box._replace(confidence=confidence) for box in answer] for answer in answers]


def _shrunk(xyxy: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = xyxy
    dx, dy = (1 - _SHRINK) / 2 * (x2 - x1), (1 - _SHRINK) / 2 * (y2 - y1)
    return [x1 + dx, y1 + dy, x2 - dx, y2 - dy]


def empty_corner(row: Row) -> tuple[float, ...]:
    """A box of a tenth of the image's sides, in the corner where it overlaps the golds least."""
    width, height = row["image_wh"]
    golds = [xyxy for xyxy, _ in labelled_boxes(row["gold"])]
    corners = [(x, y, x + width / 10, y + height / 10) for x in (0.0, 0.9 * width) for y in (0.0, 0.9 * height)]
    return min(corners, key=lambda corner: iou_matrix([corner], golds).max(initial=0.0))
