"""SIGINT, SIGTERM, SIGHUP and SIGUSR2 in a worker: in training it saves and stops, else it ends at once.

A user's second signal ends a run through the parent process, which kills: a scheduler may well send the first to every
process, so that a worker has it twice. SIGUSR2 is SLURM's warning before a time limit or a preemption.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

from vrft import heartbeat

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)
_received: int | None = None
_is_patient = False


def listen() -> None:
    """Take the signals over; outside of `patience` they end the process. The parent's death counts as a SIGTERM.

    A KeyboardInterrupt that Python raises inside some library's `__del__` is swallowed, and the run goes on (seen in
    `regex`); so handlers only note or exit. Nothing is half written: what matters is renamed into place when complete.
    """
    for number in SIGNALS:
        signal.signal(number, _on_signal)
    end_with_parent(signal.SIGTERM)
    os.register_at_fork(after_in_child=_leave)  # or a child could not be terminated, and would speak for its parent


def _leave() -> None:
    heartbeat.fall_silent()
    for number in SIGNALS:
        if signal.getsignal(number) is _on_signal:
            # SLURM sends its warning to every process there is; their work is still wanted for the save.
            signal.signal(number, signal.SIG_IGN if number == signal.SIGUSR2 else signal.SIG_DFL)


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Have this process receive a signal when the one that started it has died, also by SIGKILL. Linux only."""
    if sys.platform == "linux":
        _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, number)


def received() -> int | None:
    """The first signal that has come in, or None."""
    return _received


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """The block looks at `received()` and ends by itself soon after a signal; whoever leaves it has to look again."""
    global _is_patient
    _is_patient = True
    heartbeat.say(saves=True)
    try:
        yield
    finally:
        heartbeat.say(saves=False)
        _is_patient = False


def _on_signal(number: int, frame: object) -> None:
    global _received
    code = None if _is_patient else 128 + number
    heartbeat.note_signal(code)
    if code is not None:
        os._exit(code)
    _received = _received or number
