"""Tasks: what is asked, how the answer is read, what it earns, and how it is measured.

A module of this package that holds a task class as `TASK` is a task; its name is the module's name.
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
from collections.abc import Mapping, Sequence

from vrft.errors import UserError
from vrft.tasks.base import Task
from vrft.tasks.mixed import MixedTask
from vrft.tasks.user_code import load_own


@functools.cache
def task_names() -> tuple[str, ...]:
    """The names of all tasks, sorted; a mixture of them is not one."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(name for name in modules if hasattr(importlib.import_module(f"vrft.tasks.{name}"), "TASK"))


def load_task(name: str, *, trust_code: Sequence[str] = (), **options) -> Task | MixedTask:
    """The task of that name with its options; `mixed` takes `tasks`, `{name: {weight, and the task's options}}`.

    A name with a dot is a task class of the user's own (see `own_code`). Raises `UserError` for an unknown name or
    option.
    """
    if name == "mixed":
        return _load_mixture(trust_code=trust_code, **options)
    if "." in name:
        task = load_own(name, trust_code=trust_code, key="task.name")
        if not (isinstance(task, type) and issubclass(task, Task)):
            raise UserError(f"task.name is {name}, a {type(task).__name__}; a subclass of vrft.tasks.Task is needed")
    elif name in task_names():
        task = importlib.import_module(f"vrft.tasks.{name}").TASK
    else:
        raise UserError(f"task.name is {name!r}; known tasks: {', '.join([*task_names(), 'mixed'])}")
    try:
        return task(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"task={name} does not take {options}: {error}") from None


def _load_mixture(
    *, tasks: Mapping[str, Mapping] | None = None, trust_code: Sequence[str] = (), **options
) -> MixedTask:
    if options or not tasks or "mixed" in tasks:
        raise UserError(
            f"task=mixed takes task.tasks, a mapping of task names to their options; {options or tasks} given"
        )
    weights = {name: (chosen or {}).get("weight", 1.0) for name, chosen in tasks.items()}
    if faults := [
        name for name, weight in weights.items() if type(weight) not in (int, float) or not 0 < weight < math.inf
    ]:
        raise UserError(f"task.tasks.{faults[0]}.weight is {weights[faults[0]]!r}; a number above 0 is needed")
    loaded = {}
    for name, chosen in tasks.items():
        given = {key: value for key, value in (chosen or {}).items() if key != "weight"}
        loaded[name] = load_task(name, trust_code=trust_code, **given)
    if len({task.is_prefilled for task in loaded.values()}) > 1:
        raise UserError("task.tasks: thinking is prefilled for some tasks and not for others; one prompt serves all")
    return MixedTask(loaded, weights)
