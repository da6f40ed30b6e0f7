"""Tasks: what is asked, how the answer is read, what it earns, and how it is measured.

Each module of this package holds one task class as `TASK`; its name is the module's name.
"""

from __future__ import annotations

import importlib
import pkgutil

from vrft.errors import UserError
from vrft.tasks.base import Task

_NOT_TASKS = ("base", "judge", "one_box")


def task_names() -> list[str]:
    """The names of all tasks, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_TASKS)


def load_task(name: str, **options) -> Task:
    """The task of that name with its options. Raises `UserError` for an unknown name or option."""
    if name not in task_names():
        raise UserError(f"task.name is {name!r}; known tasks: {', '.join(task_names())}")
    try:
        return importlib.import_module(f"vrft.tasks.{name}").TASK(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"task={name} does not take {options}: {error}") from None
