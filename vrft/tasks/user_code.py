"""Code of the user's own: tasks and reward terms by dotted path, from modules that the config trusts by name."""

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

_N_ROWS_TOLD = 8  # of each term: one that always fails is to be noticed, not to fill the terminal
OwnTerm = Callable[[Parsed, Row, list[Path]], float]
"""A term of the user's own: the completion as read, its row, and the paths of the row's images; in [0, 1]."""


def load_own(dotted: str, *, trust_code: Sequence[str], key: str) -> Any:
    """The object at `package.module.name`.

    Nothing is imported unless `trust_code` names its module or a package that holds it. Modules are also found in the
    current folder. Raises `UserError`, naming the config's `key`, if it is not trusted or not there.
    """
    module, _, name = dotted.rpartition(".")
    if not any(module == trusted or module.startswith(f"{trusted}.") for trusted in trust_code):
        raise UserError(
            f"{key} names {dotted}, code of your own, and trust_code={list(trust_code)} does not name its module; "
            f"if you trust it: trust_code=[{module or dotted}]"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise UserError(f"{key} names {dotted}, and importing {module} failed: {_words(error)}") from error
    if not hasattr(found, name):
        raise UserError(
            f"{key} names {dotted}, and {module} ({getattr(found, '__file__', 'built in')}) has no {name!r}"
        )
    return getattr(found, name)


def guarded_term(name: str, term: OwnTerm, *, options: RewardOptions, root: Path | None, faults: Counter) -> Term:
    """The user's term as one of ours. A call that raises, takes longer than `options.timeout_s`, or returns anything
    but one number in [0, 1], raises `UserError` naming term and row; with `options.on_fault=zero` it pays 0, is
    counted in `faults`, and the first rows are named on the standard error."""
    told: set[str] = set()  # rows

    def guarded(parsed: Parsed, row: Row) -> float:
        images = image_paths(row, Path(root).resolve()) if root is not None and "images" in row else []
        value, fault = call_within(lambda: term(parsed, row, images), options.timeout_s)
        fault = fault or _value_fault(value)
        if fault is None:
            return float(value)
        faults[name] += 1
        row_id = str(row.get("row_id", "?"))
        words = f"the reward term {name} failed on row {row_id} (completion {parsed.text[:200]!r}): {fault}"
        if options.on_fault != "zero":
            raise UserError(
                f"{words}\nMend it; or choose reward.options.on_fault=zero, which pays 0 for it and counts such rows."
            )
        if row_id not in told and len(told) < _N_ROWS_TOLD:
            print(f"warning: {words}; it pays 0", file=sys.stderr)
            told.add(row_id)
        return 0.0

    return guarded


class _TooLongError(BaseException):
    """Not an Exception, so that the user's own `except Exception` does not swallow it."""


def call_within(function: Callable[[], Any], timeout_s: float) -> tuple[Any, str | None]:
    """`(value, None)`, or `(None, what went wrong)`.

    In the main thread a call that takes too long is interrupted by a timer; elsewhere it is left behind in a thread.
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
        return None, _words(error)


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


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
