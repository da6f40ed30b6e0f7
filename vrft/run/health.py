"""What each process of a run is doing, in a small file that outlives it: `health/rank_0.json` of the run directory.

A worker writes it at every batch; the parent reads it to tell a hang from work, and after a death to say where.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vrft.errors import SIGNALLED
from vrft.files import write_text_atomically

FOLDER = "health"
_SIGNAL = ".signal"
_own: Path | None = None  # this process's file; None: nobody listens
_said: dict[str, Any] = {}


def forget(run_dir: Path, node: int = 0) -> None:
    """Remove what an earlier run's processes have said; a node but the first removes its own words alone."""
    folder = run_dir / FOLDER
    if node:
        for word in heard(run_dir, node):
            _file_of(run_dir, word["rank"]).unlink(missing_ok=True)
        return
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder, ignore_errors=True)  # other nodes remove their own words at the same time


def fall_silent() -> None:
    """Say nothing more, as in a child process."""
    global _own
    _own = None


def begin(run_dir: Path, rank: int, node: int = 0) -> None:
    """Say from now on what this process does. node: the machine's number among those of the run."""
    global _own
    _own = _file_of(run_dir, rank)
    _own.parent.mkdir(exist_ok=True)
    _own.with_suffix(_SIGNAL).unlink(missing_ok=True)
    _said.clear()
    say(rank=rank, node=node, pid=os.getpid(), state="runs")


def say(**what: Any) -> None:
    """Note what this process does (`doing`, `step`, `rows`: the samples at hand), beside what it said before.

    state: `runs`, `failed` (with `error`) or `finished` (with `code`). saves: whether a signal lets it save and stop.
    `time` is that of the machine's monotonic clock, which says nothing on another machine. A process that has not
    begun says nothing, and on a full disk what it says is lost.
    """
    if _own is not None:
        _said.update(what, time=time.monotonic())
        with contextlib.suppress(OSError):
            write_text_atomically(_own, json.dumps(_said))


def note_signal(code: int | None) -> None:
    """Note that a signal has come in, and the code with which it ends the process, if it does.

    Callable from the signal's handler, thus in the middle of `say`: a file of its own.
    """
    if _own is not None:
        with contextlib.suppress(OSError):
            _own.with_suffix(_SIGNAL).write_text(json.dumps(code), encoding="utf-8")


def heard(run_dir: Path, node: int | None = None) -> list[dict[str, Any]]:
    """The latest word of every process that has begun, by rank; the state is `interrupted` where it ran at a signal.

    node: the machine whose processes are meant; None for all.
    """
    words = []
    for path in (run_dir / FOLDER).glob("rank_*.json"):
        with contextlib.suppress(OSError, ValueError):  # a network's file system may say so, and a word may be cut
            word = json.loads(path.read_text(encoding="utf-8"))
            signal_file = path.with_suffix(_SIGNAL)
            if word["state"] == "runs" and signal_file.exists():
                code = signal_file.read_text(encoding="utf-8")
                word |= {"state": "interrupted"} | ({} if code in ("", "null") else {"code": int(code)})
            words.append(word)
    return sorted(
        (word for word in words if node is None or word.get("node", 0) == node), key=lambda word: word["rank"]
    )


def _file_of(run_dir: Path, rank: int) -> Path:
    return run_dir / FOLDER / f"rank_{rank}.json"


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
    fall_silent()
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
    say(saves=True)
    try:
        yield
    finally:
        say(saves=False)
        _is_patient = False


def _on_signal(number: int, frame: object) -> None:
    global _received
    code = None if _is_patient else SIGNALLED + number
    note_signal(code)
    if code is not None:
        os._exit(code)
    _received = _received or number
