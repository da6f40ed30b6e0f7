"""Classification: the name of what the image shows, open ended or out of given candidates.

    Q: Name the class of the object in the image. …
    A: <think>The strokes look like a seven.</think><answer>seven</answer>

Columns: `gold` (str); optional `instruction` (what to name, in place of the usual first sentence) and `candidates`
(list of str).
"""

from __future__ import annotations

from dataclasses import dataclass

from vrft.answers import normal_name
from vrft.boxes import Frame
from vrft.rewards import RewardOptions, same_name
from vrft.rows import Row
from vrft.tasks.base import Metric, Parsed, Task, Term, require


@dataclass(frozen=True)
class ClassificationTask(Task):
    """A class name; see the module. subject: what kind of thing is named ("species of the flower")."""

    subject: str = "class of the object"

    name = "classification"
    term_names = ("accuracy", "format")
    protocol_scorers = ("classification",)
    asked_column = "instruction"

    def check(self, row: Row) -> None:
        gold = require(row, "gold", str)
        if not normal_name(gold):
            raise ValueError(f"gold {gold!r} has no letter or digit, so that names cannot be compared with it")
        if "candidates" in row and gold not in require(row, "candidates", list):
            raise ValueError(f"gold {gold!r} is not among the candidates {row['candidates']!r}")

    def ask(self, row: Row, frame: Frame) -> str:
        wanted = row.get("instruction") or f"Name the {self.subject} in the image."
        return f"{wanted} Choose from: {', '.join(row['candidates'])}." if "candidates" in row else wanted

    def answer_form(self, frame: Frame) -> str:
        return "name"

    def write(self, gold: str, frame: Frame) -> str:
        return gold

    def read(self, block: str, frame: Frame) -> tuple[str | None, str | None]:
        """The name as written."""
        return block, None

    def terms(self, options: RewardOptions) -> dict[str, Term]:
        def accuracy(parsed: Parsed, row: Row) -> float:
            return 0.0 if parsed.answer is None else same_name(parsed.answer, row["gold"])

        return {"accuracy": accuracy, "format": self.format_term}

    @property
    def metrics(self) -> dict[str, Metric]:
        return {"accuracy": self.terms(RewardOptions())["accuracy"]}


TASK = ClassificationTask
