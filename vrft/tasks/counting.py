"""Counting: how many objects of a kind the image shows.

Q: How many objects of the kind 'dog' are in the image? …
A: <think>One on the left, two on the right.</think><answer>3</answer>

Columns: `category` (str), `gold` (int from 0).
"""

from __future__ import annotations

from dataclasses import dataclass

from vrft.tasks.answers import read_count
from vrft.tasks.base import AnswerTerm, Metric, Parsed, Task, given, require
from vrft.tasks.boxes import Frame
from vrft.tasks.reward_terms import RewardOptions, count_closeness
from vrft.tasks.rows import Row


@dataclass(frozen=True)
class CountingTask(Task):
    """A whole number; see the module."""

    name = "counting"
    answer_kind = "count"
    asked_column = "category"
    examples = ({"category": "dog", "gold": 3}, {"category": "zebra", "gold": 0}, {"category": "grape", "gold": 41})

    def check(self, row: Row) -> None:
        if "problem" not in row:
            require(row, "category", str)
        gold = given(row, "gold")
        if type(gold) is not int or not 0 <= gold < 10**9:
            raise ValueError(f"gold is {gold!r}; a whole number from 0 is needed")

    def ask(self, row: Row, frame: Frame) -> str:
        return f"How many objects of the kind '{row['category']}' are in the image?"

    def answer_form(self, frame: Frame) -> str:
        return "whole number in digits"

    def write(self, gold: int, frame: Frame) -> str:
        return str(gold)

    def read(self, block: str, frame: Frame) -> tuple[int | None, str | None]:
        return read_count(block)

    def answer_terms(self, options: RewardOptions) -> dict[str, AnswerTerm]:
        return {
            "accuracy": lambda answer, row: answer == row["gold"],
            "count": lambda answer, row: count_closeness(answer, row["gold"]),
        }

    @property
    def metrics(self) -> dict[str, Metric]:
        terms = self.terms(RewardOptions())
        return {"accuracy": terms["accuracy"], "count": terms["count"], "absolute_error": absolute_error}


def absolute_error(parsed: Parsed, row: Row) -> float | None:
    """How far the count is off; None for an unreadable answer, whose share is a metric of its own."""
    return None if parsed.answer is None else float(abs(parsed.answer - row["gold"]))


TASK = CountingTask
