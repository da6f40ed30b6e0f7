"""User code: tasks and reward terms by dotted path, from modules that `trust_code` names."""

from __future__ import annotations

import importlib
import math
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vrft.errors import UserError
from vrft.tasks.base import Parsed, Term
from vrft.tasks.reward_terms import RewardOptions
from vrft.tasks.rows import Row, image_paths

_N_WARNINGS = 8  # rows per term: a term that always fails must be noticed, but must not flood the terminal
UserTerm = Callable[[Parsed, Row, list[Path]], float]
"""A user's reward term: a function of the parsed completion, its row and the paths of the row's images, in [0, 1]."""


def load_user_code(dotted: str, *, trust_code: Sequence[str], key: str) -> Any:
    """The object at `package.module.name`.

    Nothing is imported unless `trust_code` names the module or a package around it. The current folder is on the path.
    Raises `UserError` with the config's `key` if the module is not trusted, cannot be imported, or lacks the name.
    """
    module, _, name = dotted.rpartition(".")
    if not any(module == trusted or module.startswith(f"{trusted}.") for trusted in trust_code):
        raise UserError(
            f"{key} names {dotted}, code of your own, and trust_code={list(trust_code)} does not name its module; "
            f"if you trust it, set trust_code=[{','.join([module or dotted, *trust_code])}]"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise UserError(f"{key} names {dotted}, and importing {module} failed: {_describe(error)}") from error
    if not hasattr(found, name):
        raise UserError(
            f"{key} names {dotted}, and {module} ({getattr(found, '__file__', 'built in')}) has no {name!r}"
        )
    return getattr(found, name)


def guarded_term(name: str, term: UserTerm, *, options: RewardOptions, root: Path | None, faults: Counter) -> Term:
    """The user's term with the signature of a built-in one.

    A call fails if it raises, takes longer than `options.timeout_s`, or returns anything but one number in [0, 1].
    It is then counted in `faults` and raises `UserError` with term and row. With `options.on_fault=zero` it pays 0
    instead, and the first failing rows are printed on standard error. root: the folder of relative image paths.
    """
    warned: set[str] = set()  # row ids

    def guarded(parsed: Parsed, row: Row) -> float:
        images = image_paths(row, Path(root).resolve()) if root is not None and "images" in row else []
        value, fault = call_within(lambda: term(parsed, row, images), options.timeout_s)
        fault = fault or _value_fault(value)
        if fault is None:
            return float(value)
        faults[name] += 1
        row_id = str(row.get("row_id", "?"))
        message = f"the reward term {name} failed on row {row_id} (completion {parsed.text[:200]!r}): {fault}"
        if options.on_fault != "zero":
            raise UserError(
                f"{message}\nFix it, or set reward.options.on_fault=zero, which pays 0 and counts such rows."
            )
        if row_id not in warned and len(warned) < _N_WARNINGS:
            print(f"warning: {message}; it pays 0", file=sys.stderr)
            warned.add(row_id)
        return 0.0

    return guarded


class _TooLongError(BaseException):
    """Not an Exception, so that the user's own `except Exception` does not swallow it."""


def call_within(function: Callable[[], Any], timeout_s: float) -> tuple[Any, str | None]:
    """`(value, None)`, or `(None, what went wrong)` if the call raises or takes too long.

    In the main thread a timer interrupts the call. In other threads Python cannot do this: the call is abandoned in a
    thread of its own, which may run on.
    """
    too_long = f"it took longer than reward.options.timeout_s={timeout_s:g} seconds"
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        return _interrupted(function, timeout_s, too_long)
    outcome: list = [None, too_long]

    def call() -> None:
        outcome[:] = _called(function)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return tuple(outcome)


def _interrupted(function: Callable[[], Any], timeout_s: float, too_long: str) -> tuple[Any, str | None]:
    def stop(*_: Any) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        return _called(function)
    except _TooLongError:
        return None, too_long
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _called(function: Callable[[], Any]) -> tuple[Any, str | None]:
    try:
        return function(), None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's term may raise anything
        return None, _describe(error)


def _value_fault(value: Any) -> str | None:
    try:
        number = None if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None:
        return f"it returned {str(value)[:100]!r}; one number in [0, 1] is needed"
    if not math.isfinite(number) or not 0 <= number <= 1:
        return f"it returned {number}; a number in [0, 1] is needed"
    return None


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
