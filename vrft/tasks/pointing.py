"""Pointing: one point on the object that a phrase names.

Q: Point at this object in the image: the handle of the cup. Give one point in integers from 0 to 1000. …
A: <think>It is on the right.</think><answer>(812,430)</answer>

Columns: `phrase` (str), `gold` ([x1, y1, x2, y2] in pixels of the original image: the box that the point must hit).
"""

from __future__ import annotations

from dataclasses import dataclass

from vrft.tasks.answers import read_box, read_point
from vrft.tasks.base import AnswerTerm, Metric, Task, coordinate_words, given, require
from vrft.tasks.boxes import Frame, from_frame, to_frame
from vrft.tasks.reward_terms import RewardOptions, point_closeness, point_in_box
from vrft.tasks.rows import Row, check_box

Point = tuple[float, float]


@dataclass(frozen=True)
class PointingTask(Task):
    """A point that must lie in a box; columns are listed above."""

    name = "pointing"
    answer_kind = "point"
    asked_column = "phrase"
    examples = (
        {"phrase": "the handle of the cup", "gold": [402, 120, 470, 233]},
        {"phrase": "the dog", "gold": [31, 205, 240, 470]},
    )

    def check(self, row: Row) -> None:
        if "problem" not in row:
            require(row, "phrase", str)
        check_box(given(row, "gold"), row["image_wh"])

    def ask(self, row: Row, frame: Frame) -> str:
        return f"Point at this object in the image: {row['phrase']}. Give one point in {coordinate_words(frame)}."

    def answer_form(self, frame: Frame) -> str:
        return "(x,y)"

    def write(self, gold: list[float], frame: Frame) -> str:
        """The centre of the gold box."""
        x1, y1, x2, y2 = gold
        x, y = to_frame([(x1 + x2) / 2, (y1 + y2) / 2], frame)
        return f"({x},{y})"

    def read(self, block: str, frame: Frame) -> tuple[Point | None, str | None]:
        point, reason = read_point(block)
        return (tuple(from_frame(point, frame)), None) if point else (None, reason)

    def solution_form(self, frame: Frame) -> str:
        return "(x1,y1),(x2,y2)"

    def read_gold(self, block: str, frame: Frame) -> tuple[list[float] | None, str | None]:
        """The gold box: a solution of this task is a box, `(x1,y1),(x2,y2)`."""
        box, reason = read_box(block)
        return (from_frame(box, frame), None) if box else (None, reason)

    def answer_terms(self, options: RewardOptions) -> dict[str, AnswerTerm]:
        return {
            "accuracy": lambda answer, row: point_in_box(answer, row["gold"]),
            "proximity": lambda answer, row: point_closeness(answer, row["gold"], row["image_wh"]),
        }

    @property
    def metrics(self) -> dict[str, Metric]:
        terms = self.terms(RewardOptions())
        return {"accuracy": terms["accuracy"], "proximity": terms["proximity"]}


TASK = PointingTask
