"""The one exception for a user's mistake, and the collector that shows several of them together."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from typing import Literal

CANNOT_RUN = "The config cannot run:"
USER_ERROR, STOPPED_BY_ALARM, OUT_OF_MEMORY = 2, 3, 77  # exit codes


class UserError(Exception):
    """A mistake in a config, a file or a row, told in full by its text.

    The command line and the worker print the text without a traceback and exit with code 2. Say what is wrong, the
    value, what would be right, and which key, file or row to change.
    """


def raise_all(faults: list[str], *, heading: str) -> None:
    """Raise one `UserError` that lists every fault; do nothing when there is none.

    At most 20 faults are printed; the rest are counted.
    """
    if not faults:
        return
    shown = [f"  - {fault}" for fault in faults[:20]]
    if len(faults) > 20:
        shown.append(f"  … and {len(faults) - 20} more")
    raise UserError("\n".join([heading, *shown]))


Phase = Literal["loading", "evaluation", "rollout", "step"]


@contextlib.contextmanager
def phase(name: Phase) -> Iterator[None]:
    """Errors raised in the block, or in a function decorated with it, carry this phase; of nested blocks the inner."""
    try:
        yield
    except Exception as error:
        error.phase = phase_of(error) or name
        raise


def phase_of(error: BaseException) -> Phase | None:
    """The phase of the run in which the error was raised; None outside of all."""
    return getattr(error, "phase", None)


def first_line(error: BaseException) -> str:
    """The first line of the error's text, or the name of its type where it has none.

    >>> first_line(OSError("no such file\nlook elsewhere")), first_line(OSError())
    ('no such file', 'OSError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def suggestion(name: str, known) -> str:
    """Return `did you mean X? ` for the nearest known name, or nothing.

    >>> suggestion("bta", ["beta", "delta"])
    'did you mean beta? '
    """
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""
