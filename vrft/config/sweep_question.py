"""What a sweep asks: how its report shows it, and the knobs that it chooses.

Knobs may be chosen on one seed: with the other seeds the chosen value runs, and the others are left out. A *cell* is
what a sweep compares: all children whose configs differ in nothing but the knobs of `question.choose` and the seed.
Where `question.choose_seed` is set, all values of the knobs run with that seed; with another seed a child runs only
if, in its cell, its value had the best validation figure with that one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Question:
    """How `vrft report` shows a sweep; each of these is a config's key, or a group's name.

    x: the axis across. lines: what makes a line of the plots. panels: what makes a plot of its own. choose: knobs of
    which the best by validation is shown. choose_seed: the one seed with which all their values run and the best is
    chosen, the other seeds run that alone; null: every seed runs all, and their mean chooses. measure: figures of a
    run, `{test set}/{metric}`, or null for the primary metric on every test set. labels: what values are called.
    """

    title: str
    x: str | None = None
    lines: list[str] | None = None
    panels: list[str] | None = None
    choose: list[str] | None = None
    choose_seed: int | None = None
    measure: list[str] | None = None
    labels: dict[str, str] | None = None
