"""Tasks: the question, the reader of the answer, the reward terms and the metrics.

Each module of this package with a task class named `TASK` defines a task. The task has the module's name.
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
from vrft.tasks.user_code import load_user_code


@functools.cache
def task_names() -> tuple[str, ...]:
    """The names of all tasks, sorted; `mixed` is not among them."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(name for name in modules if hasattr(importlib.import_module(f"vrft.tasks.{name}"), "TASK"))


def load_task(name: str, *, trust_code: Sequence[str] = (), **options) -> Task | MixedTask:
    """The task with this name and these options; `mixed` takes `tasks`, `{name: {weight and options of the task}}`.

    A name with a dot is the path of a user's own class (see `user_code`). Raises `UserError` for an unknown name or
    option.
    """
    if name == "mixed":
        return _load_mixture(trust_code=trust_code, **options)
    if "." in name:
        task = load_user_code(name, trust_code=trust_code, key="task.name")
        if not (isinstance(task, type) and issubclass(task, Task)):
            raise UserError(f"task.name is {name}, a {type(task).__name__}; a subclass of vrft.tasks.Task is needed")
    elif name in task_names():
        task = importlib.import_module(f"vrft.tasks.{name}").TASK
    else:
        raise UserError(f"task.name is {name!r}; known tasks: {', '.join([*task_names(), 'mixed'])}")
    if missing := sorted(task.__abstractmethods__):
        raise UserError(f"task={name}: {task.__name__} lacks {', '.join(missing)}, which every task defines")
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
    weights = {name: (given or {}).get("weight", 1.0) for name, given in tasks.items()}
    if faults := [
        name for name, weight in weights.items() if type(weight) not in (int, float) or not 0 < weight < math.inf
    ]:
        raise UserError(f"task.tasks.{faults[0]}.weight is {weights[faults[0]]!r}; a number above 0 is needed")
    loaded = {}
    for name, given in tasks.items():
        options_of_task = {key: value for key, value in (given or {}).items() if key != "weight"}
        loaded[name] = load_task(name, trust_code=trust_code, **options_of_task)
    if len({task.is_prefilled for task in loaded.values()}) > 1:
        raise UserError("task.tasks: thinking is prefilled for some tasks and not for others; one prompt serves all")
    return MixedTask(loaded, weights)
