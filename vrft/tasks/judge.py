"""What one completion earns."""

from __future__ import annotations

from collections.abc import Mapping

from vrft.errors import UserError
from vrft.rewards import RewardOptions
from vrft.rows import Row
from vrft.tasks.base import Parsed, Task, Term


def chosen_terms(task: Task, weights: Mapping[str, float], options: RewardOptions) -> dict[str, Term]:
    """The terms of `task` that the preset gives a weight, in the task's order. Raises `UserError` if there is none."""
    terms = {name: term for name, term in task.terms(options).items() if name in weights}
    if not terms:
        raise UserError(
            f"reward.weights has {', '.join(weights) or 'no term'}, and task={task.name} has none of them; "
            f"its terms are {', '.join(task.term_names)}"
        )
    return terms


def judge(task: Task, parsed: Parsed, row: Row, *, weights: Mapping[str, float], options: RewardOptions) -> dict:
    """`{"terms": {name: value in [0, 1]}, "total": float}`: terms unweighted, the total their weighted sum."""
    values = {name: term(parsed, row) for name, term in chosen_terms(task, weights, options).items()}
    return {"terms": values, "total": sum(weights[name] * value for name, value in values.items())}
