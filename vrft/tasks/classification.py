"""Classification: the name of what the image shows, open-ended or from a list of candidates.

    Q: Name the class of the object in the image. …
    A: <think>The strokes look like a seven.</think><answer>seven</answer>

Columns: `gold` (str). Optional: `instruction` (str, replaces the first sentence of the question), `candidates` (list of
str, listed in the question) and `aliases` (list of str, other right names).
"""

from __future__ import annotations

from dataclasses import dataclass

from vrft.tasks.answers import normal_name, read_name
from vrft.tasks.base import AnswerTerm, Metric, Task, require, require_distinct, require_own_aliases, require_texts
from vrft.tasks.boxes import Frame
from vrft.tasks.reward_terms import RewardOptions, same_name
from vrft.tasks.rows import Row


@dataclass(frozen=True)
class ClassificationTask(Task):
    """A class name; columns are listed above. subject: what the question asks for ("species of the flower")."""

    subject: str = "class of the object"

    name = "classification"
    answer_kind = "name"
    protocol_scorers = ("classification",)
    asked_column = "instruction"
    examples = (
        {"gold": "Maine Coon"},
        {"gold": "737-300", "candidates": ["737-300", "737-400", "A320"]},
        {"gold": "aubergine", "aliases": ["eggplant"], "instruction": "Name the vegetable."},
    )

    def check(self, row: Row) -> None:
        gold = require(row, "gold", str)
        if not normal_name(gold):
            raise ValueError(f"gold {gold!r} has no letter or digit, so that names cannot be compared with it")
        if "candidates" in row and gold not in require_texts(row, "candidates"):
            raise ValueError(f"gold {gold!r} is not among the candidates {row['candidates']!r}")
        require_distinct(row.get("candidates", []), "candidates")
        if "aliases" in row:
            require_own_aliases({gold: require_texts(row, "aliases")}, row.get("candidates", []))
        if "instruction" in row:
            require(row, "instruction", str)

    def ask(self, row: Row, frame: Frame) -> str:
        wanted = row.get("instruction") or f"Name the {self.subject} in the image."
        return f"{wanted} Choose from: {', '.join(row['candidates'])}." if "candidates" in row else wanted

    def answer_form(self, frame: Frame) -> str:
        return "name"

    def write(self, gold: str, frame: Frame) -> str:
        return gold

    def read(self, block: str, frame: Frame) -> tuple[str | None, str | None]:
        """The name, without marks around it."""
        return read_name(block)

    def read_gold(self, block: str, frame: Frame) -> tuple[str | None, str | None]:
        """The name exactly as written."""
        return block, None

    def answer_terms(self, options: RewardOptions) -> dict[str, AnswerTerm]:
        return {
            "accuracy": lambda answer, row: same_name(answer, [row["gold"], *row.get("aliases", ())]),
            "exact": lambda answer, row: same_name(answer, [row["gold"]]),
        }

    @property
    def metrics(self) -> dict[str, Metric]:
        return {"accuracy": self.terms(RewardOptions())["accuracy"]}


TASK = ClassificationTask
