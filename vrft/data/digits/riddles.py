"""Arithmetic riddles over the digits: operands 1 to 9, one or two steps, every partial result a digit from 0 to 9.

There are 81 expressions of one step and 729 of two. Pre-training uses all of one step and 60 % of two ("seen"); the
other 40 % ("unseen") are for tests only. The split is a fixed permutation and never changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from vrft.data.digits.scenes import DIGIT_NAMES

SEEN_SHARE = 0.6
EXPRESSION_SETS = ("one_step", "seen", "unseen")


@dataclass(frozen=True)
class Riddle:
    """A chain of additions and subtractions: `steps` are (word, operand) with word `plus` or `minus`."""

    first: int
    steps: tuple[tuple[str, int], ...]

    @property
    def results(self) -> tuple[int, ...]:
        """The running result after each step; the last is the riddle's answer.

        >>> Riddle(2, (("plus", 3), ("minus", 1))).results
        (5, 4)
        """
        results = [self.first]
        for word, operand in self.steps:
            results.append(results[-1] + (operand if word == "plus" else -operand))
        return tuple(results[1:])

    @property
    def operations(self) -> str:
        """The operations on the first number, in words.

        >>> Riddle(2, (("plus", 3), ("minus", 1))).operations
        'plus three minus one'
        """
        return " ".join(f"{word} {DIGIT_NAMES[operand]}" for word, operand in self.steps)

    @property
    def phrase(self) -> str:
        """The riddle in words.

        >>> Riddle(2, (("plus", 3), ("minus", 1))).phrase
        'two plus three minus one'
        """
        return f"{DIGIT_NAMES[self.first]} {self.operations}"

    @property
    def thought(self) -> str:
        """The riddle worked out in words.

        >>> Riddle(2, (("plus", 3), ("minus", 1))).thought
        'two plus three is five, minus one is four.'
        """
        worked = ", ".join(
            f"{word} {DIGIT_NAMES[operand]} is {DIGIT_NAMES[result]}"
            for (word, operand), result in zip(self.steps, self.results, strict=True)
        )
        return f"{DIGIT_NAMES[self.first]} {worked}."


@cache
def riddles(which: str) -> tuple[tuple[Riddle, ...], ...]:
    """Return, for each answer 0 to 9, the riddles of an expression set (`one_step`, `seen` or `unseen`)."""
    if which not in EXPRESSION_SETS:
        raise KeyError(which)
    chosen = [Riddle(first, (step,)) for first in range(1, 10) for step in _steps_from(first)]
    if which != "one_step":
        longer = [Riddle(r.first, (*r.steps, step)) for r in chosen for step in _steps_from(r.results[-1])]
        order = np.random.RandomState(0).permutation(len(longer))
        n_seen = round(SEEN_SHARE * len(longer))
        chosen = [longer[i] for i in (order[:n_seen] if which == "seen" else order[n_seen:])]
    return tuple(tuple(r for r in chosen if r.results[-1] == digit) for digit in range(10))


def _steps_from(number: int) -> list[tuple[str, int]]:
    plus = [("plus", operand) for operand in range(1, 10) if number + operand <= 9]
    return plus + [("minus", operand) for operand in range(1, 10) if number - operand >= 0]
