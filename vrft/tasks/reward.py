"""The reward of a completion under a reward preset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vrft.errors import UserError
from vrft.tasks.base import Parsed, Task, Term
from vrft.tasks.mixed import MixedTask
from vrft.tasks.reward_terms import RewardOptions
from vrft.tasks.rows import Row
from vrft.tasks.user_code import guarded_term, load_user_code


class RewardFunction:
    """The weighted sum of a task's reward terms under a preset; call it with a parsed completion and its row.

    faults: how often each user-defined term failed and gave 0 (`reward.options.on_fault=zero`).
    """

    def __init__(
        self, task: Task | MixedTask, reward: Mapping, *, trust_code: Sequence[str] = (), root: Path | None = None
    ) -> None:
        """reward: `{weights, weights_for, options}` as in `conf/reward/`. root: the folder of relative image paths.

        Raises `UserError` if the preset has no term for a task, or a user-defined term cannot be loaded.
        """
        self.task, self.faults = task, Counter()
        self.options = options = RewardOptions(**reward.get("options") or {})
        tasks = task.tasks.values() if isinstance(task, MixedTask) else [task]
        self._weights = {one.name: weights_for(one, reward) for one in tasks}
        own = {
            name: guarded_term(
                name,
                load_user_code(name, trust_code=trust_code, key="reward.weights"),
                options=options,
                root=root,
                faults=self.faults,
            )
            for weights in self._weights.values()
            for name in filter(is_own, weights)
        }
        self._terms = {one.name: _chosen({**one.terms(options), **own}, self._weights[one.name], one) for one in tasks}
        self._answer_terms = {one.name: one.answer_terms(options) for one in tasks}

    def weights(self, row: Row) -> dict[str, float]:
        """The weight of each term that applies to this row."""
        return self._weights[self.task.for_row(row).name]

    def __call__(self, parsed: Parsed, row: Row) -> dict:
        """`{"terms": {name: value in [0, 1]}, "total": float}`: terms are unweighted; total is their weighted sum."""
        task = self.task.for_row(row)
        name, values = task.name, self._values(task, parsed, row)
        for term, value in values.items():
            if not 0 <= value <= 1:  # by a user-defined task; built-in tasks are tested
                raise UserError(
                    f"the term {term} of task={name} is {value} on row {row.get('row_id', '?')}; "
                    "a number in [0, 1] is needed"
                )
        return {"terms": values, "total": sum(self._weights[name][term] * value for term, value in values.items())}

    def _values(self, task: Task, parsed: Parsed, row: Row) -> dict[str, float]:
        terms = self._terms[task.name]
        # Matching boxes is most of the work. All terms of one answer share the match.
        of_answer = {} if parsed.answer is None else terms.keys() & self._answer_terms[task.name]
        measured = task.measure(parsed.answer, row, self.options) if of_answer else None
        return {
            name: float(self._answer_terms[task.name][name](measured, row)) if name in of_answer else term(parsed, row)
            for name, term in terms.items()
        }

    @property
    def columns(self) -> list[tuple[str, float]]:
        """Each (term, weight) pair that some task has, once, in order."""
        return list(dict.fromkeys(pair for weights in self._weights.values() for pair in weights.items()))


def weights_for(task: Task, reward: Mapping) -> dict[str, float]:
    """The preset's weights of the task's terms, in the task's order, and then of user-defined terms."""
    given = {**reward["weights"], **(reward.get("weights_for") or {}).get(task.name, {})}
    return {name: given[name] for name in [*task.term_names, *filter(is_own, given)] if name in given}


def is_own(term: str) -> bool:
    """True if the term is user code, named by its dotted path."""
    return "." in term


def _chosen(terms: Mapping[str, Term], weights: Iterable[str], task: Task) -> dict[str, Term]:
    chosen = {name: terms[name] for name in weights}
    if not chosen:
        raise UserError(f"the reward has no term of task={task.name}; its terms are {', '.join(task.term_names)}")
    return chosen
