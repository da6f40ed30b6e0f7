"""Every exit code, the one exception for a user's mistake, and the collector that shows several together."""

from __future__ import annotations

import difflib
from enum import IntEnum

CANNOT_RUN = "The config cannot run:"
SIGNALLED = 128
"""A process that a signal has ended has this exit code plus the signal's number, as in a shell."""


class ExitCode(IntEnum):
    """The exit codes of `vrft` and of its workers; `launch/README.md` has the same table for users."""

    DONE = 0
    FAILED = 1
    USER_ERROR = 2
    STOPPED_BY_ALARM = 3
    BUSY = 75  # temporary failure in sysexits.h
    OUT_OF_MEMORY = 77
    HUNG = 124  # as timeout(1) has it
    HUNG_UP = SIGNALLED + 1  # SIGHUP
    INTERRUPTED = SIGNALLED + 2  # SIGINT
    KILLED = SIGNALLED + 9  # SIGKILL
    WARNED = SIGNALLED + 12  # SIGUSR2, SLURM's warning before the time limit
    TERMINATED = SIGNALLED + 15  # SIGTERM


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


def suggestion(name: str, known) -> str:
    """Return `did you mean X? ` for the nearest known name, or nothing.

    >>> suggestion("bta", ["beta", "delta"])
    'did you mean beta? '
    """
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""
