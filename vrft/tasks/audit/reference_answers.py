"""Reference answers: the answers whose reward an attack must not reach.

They are good but not perfect, as a trained model's: boxes have an IoU of 0.74 with their golds, one object of four or
more is missed, one box in five is wrong, and each confidence is the share of boxes that are right. Against perfect
answers an attack on the reward of real ones would go unnoticed. Counts, names, points, and answers of user tasks are
right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vrft.tasks.base import Task
from vrft.tasks.box_list import Detection, write_boxes
from vrft.tasks.boxes import Frame, iou_matrix
from vrft.tasks.rows import Row, labelled_boxes

_SHRINK = 0.86  # of each side; the IoU is 0.86² = 0.74


@dataclass(frozen=True)
class ReferenceAnswer:
    """One row's reference answer. answer: in the task's own form. others: the golds of all rows, for guesses."""

    task: Task
    row: Row
    frame: Frame
    answer: Any
    others: Sequence[Any]

    @property
    def block(self) -> str:
        """The text inside its answer block."""
        if self.task.answer_kind == "boxes":
            return write_boxes(self.answer, self.frame)
        return self.task.write(self.answer, self.frame)

    @property
    def completion(self) -> str:
        """The whole completion."""
        return self.wrap(self.block)

    def wrap(self, block: str) -> str:
        """A well-formed completion with this text inside its answer block."""
        return f"{self.thought}<answer>{block}</answer>"

    @property
    def thought(self) -> str:
        """The text before the answer block."""
        if not self.task.has_thought:
            return ""
        return f"{'' if self.task.is_prefilled else '<think>'}I look at the image.</think>"


def reference_answers(task: Task, rows: Sequence[Row], frames: Sequence[Frame]) -> list[ReferenceAnswer]:
    """The reference answer of each row; all rows are of this task."""
    answers = [_answer(task, row) for row in rows]
    if task.answer_kind == "boxes":
        answers = _with_errors(answers, rows)
    others = [row["gold"] for row in rows]
    return [
        ReferenceAnswer(task, row, frame, answer, others)
        for row, frame, answer in zip(rows, frames, answers, strict=True)
    ]


def _answer(task: Task, row: Row) -> Any:
    if task.answer_kind in ("box", "point"):
        return _shrunk(row["gold"])
    if task.answer_kind != "boxes":
        return row["gold"]
    gold = labelled_boxes(row["gold"])
    found = gold[:-1] if len(gold) >= 4 else gold
    return [Detection(tuple(_shrunk(xyxy)), 1.0, label) for xyxy, label in found]


def _with_errors(answers: Sequence[list[Detection]], rows: Sequence[Row]) -> list[list[Detection]]:
    """The answers with one wrong box per four right ones, and with the share of right boxes as every confidence.

    Wrong boxes go to rows without a missed object, if there are any. A box weighs 1 / golds of its row, as in the term
    `calibration`.
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
    """A box with a tenth of the image's sides, in the corner where its IoU with the golds is lowest."""
    width, height = row["image_wh"]
    golds = [xyxy for xyxy, _ in labelled_boxes(row["gold"])]
    corners = [(x, y, x + width / 10, y + height / 10) for x in (0.0, 0.9 * width) for y in (0.0, 0.9 * height)]
    return min(corners, key=lambda corner: iou_matrix([corner], golds).max(initial=0.0))
