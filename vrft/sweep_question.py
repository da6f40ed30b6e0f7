"""What a sweep asks: how its report shows it, and the knobs that it chooses.

Knobs may be chosen on one seed: with the other seeds the chosen value runs, and the others are left out. A *cell* is
what a sweep compares: all children whose configs differ in nothing but the knobs of `question.choose` and the seed.
Where `question.choose_seed` is set, all values of the knobs run with that seed; with another seed a child runs only
if, in its cell, its value had the best validation figure with that one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vrft.errors import UserError
from vrft.resuming import config_hash

CHILDREN = "children"  # the folder of a sweep's records, by which it is known


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


def trial(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Which `cell` (a hash) a child's composed config belongs to, with which `knobs` and `seed`, and `is_choosing`:
    True if that is the seed to choose on. None in a sweep without one.

    Raises `UserError` where a knob is no key of the config.

    >>> def child(lr, seed):
    ...     question = {"choose": ["trainer.learning_rate"], "choose_seed": 0}
    ...     rest = {"model": {"path": None}, "question": question}
    ...     return trial({"trainer": {"learning_rate": lr, "max_steps": 9}, "run": {"seed": seed}, **rest})
    >>> child(1e-4, 0)["cell"] == child(3e-4, 1)["cell"], child(3e-4, 1)["knobs"], child(3e-4, 1)["seed"]
    (True, {'trainer.learning_rate': 0.0003}, 1)
    >>> child(1e-4, 0)["is_choosing"], child(1e-4, 1)["is_choosing"]
    (True, False)
    """
    question = values.get("question") or {}
    if question.get("choose_seed") is None:
        return None
    alike = copy.deepcopy(dict(values))
    knobs = {key: _take(alike, key) for key in question.get("choose") or []}
    seed = _take(alike, "run.seed")
    return {"cell": config_hash(alike), "knobs": knobs, "seed": seed, "is_choosing": seed == question["choose_seed"]}


def rank(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then words: as a key to sort by. Of knobs that do equally well the first is preferred.

    >>> sorted(["b", 3e-5, "0.1", "a"], key=rank)
    [3e-05, '0.1', 'a', 'b']
    """
    try:
        return (0, float(value), "")
    except (TypeError, ValueError):
        return (1, 0.0, str(value))


def _take(config: dict[str, Any], key: str) -> Any:
    *folders, name = key.split(".")
    section: Any = config
    for folder in folders:
        section = section.get(folder) if isinstance(section, dict) else None
    if not isinstance(section, dict) or name not in section or isinstance(section[name], dict):
        raise UserError(f"question.choose has {key!r}, which is no value of the config; choose_seed needs such keys")
    return section.pop(name)
