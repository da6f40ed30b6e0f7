"""A mixture of tasks: each row names its task, and training samples the tasks by their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vrft.tasks.base import Metric, Parsed, Task
from vrft.tasks.boxes import Frame
from vrft.tasks.rows import Row


@dataclass(frozen=True)
class MixedTask:
    """Several tasks by name. Question, reader, terms and metrics of a row are those of the row's own task.

    weights: the relative share of each task in the training rows.
    """

    tasks: Mapping[str, Task]
    weights: Mapping[str, float]

    name = "mixed"
    protocol_scorers = ("rows",)
    primary_metrics = ("score",)

    @property
    def term_names(self) -> tuple[str, ...]:
        """The terms of all tasks, each once."""
        return tuple(dict.fromkeys(term for task in self.tasks.values() for term in task.term_names))

    @property
    def is_prefilled(self) -> bool:
        """As `Task.is_prefilled`; it is the same for all tasks."""
        return any(task.is_prefilled for task in self.tasks.values())

    def for_row(self, row: Row) -> Task:
        """The row's own task. Raises ValueError if the row names no task of the mixture."""
        name = row.get("task")
        if not isinstance(name, str) or name not in self.tasks:
            found = "missing" if name is None else repr(name)[:100]
            raise ValueError(f"column 'task' is {found}; one of {', '.join(self.tasks)} is needed")
        return self.tasks[name]

    def check(self, row: Row) -> None:
        """As `Task.check`."""
        self.for_row(row).check(row)

    def question(self, row: Row, frame: Frame) -> str:
        """As `Task.question`."""
        return self.for_row(row).question(row, frame)

    def gold(self, row: Row, frame: Frame, thought: str = "gold") -> str:
        """As `Task.gold`."""
        return self.for_row(row).gold(row, frame, thought)

    def parse(self, text: str, row: Row, frame: Frame, *, is_truncated: bool = False) -> Parsed:
        """As `Task.parse`."""
        return self.for_row(row).parse(text, row, frame, is_truncated=is_truncated)

    @property
    def metrics(self) -> dict[str, Metric]:
        """`score`, the first metric of the row's own task, and every metric of every task as TASK/METRIC."""

        def score(parsed: Parsed, row: Row) -> float | None:
            return next(iter(self.for_row(row).metrics.values()))(parsed, row)

        def only_for(name: str, metric: Metric) -> Metric:
            return lambda parsed, row: metric(parsed, row) if row["task"] == name else None

        own = {
            f"{name}/{metric}": only_for(name, function)
            for name, task in self.tasks.items()
            for metric, function in task.metrics.items()
        }
        return {"score": score, **own}
