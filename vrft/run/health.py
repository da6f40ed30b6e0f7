"""The status of each process of a run, in a small file that outlives it: `health/rank_0.json` of the run directory.

A worker writes it at every batch. The parent reads it to see whether the run hangs, and after a death to say where.
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
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
_SIGNAL = ".signal"
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)


class Status:
    """What this process does, in its file of the run directory, and the signals that it has received.

    The worker creates one in its main function and hands it on. Before `begin` it writes nothing, as under the verb
    `probe`, where no parent reads it.
    """

    def __init__(self) -> None:
        self._file: Path | None = None
        self._said: dict[str, Any] = {}
        self._received: int | None = None
        self._is_patient = False

    def listen(self) -> None:
        """Handle the signals from now on; outside of `patience` they end the process. The parent's death counts as a
        SIGTERM.

        A KeyboardInterrupt that Python raises inside some library's `__del__` is swallowed, and the run continues (seen
        in `regex`); so the handler only notes the signal or exits. Nothing is left half written: what matters is
        renamed into place when complete.
        """
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        end_with_parent(signal.SIGTERM)
        os.register_at_fork(after_in_child=self._leave)

    def begin(self, run_dir: Path, rank: int, node: int = 0) -> None:
        """Write from now on what this process does. node: the machine's number among those of the run."""
        self._file = _file_of(run_dir, rank)
        self._file.parent.mkdir(exist_ok=True)
        self._file.with_suffix(_SIGNAL).unlink(missing_ok=True)
        self._said = {}
        self.say(rank=rank, node=node, pid=os.getpid(), state="runs")

    def fall_silent(self) -> None:
        """Write nothing more."""
        self._file = None

    def say(self, **what: Any) -> None:
        """Note what this process does (`doing`, `step`, `rows`: the samples at hand), beside what it said before.

        state: `runs`, `failed` (with `error`) or `finished` (with `code`). saves: whether a signal lets it save and
        stop. `time` is that of the machine's monotonic clock, which cannot be compared with another machine's. On a
        full disk what it says is lost.
        """
        if self._file is not None:
            self._said.update(what, time=time.monotonic())
            with contextlib.suppress(OSError):
                write_text_atomically(self._file, json.dumps(self._said))

    def received(self) -> int | None:
        """The first signal received in `patience`, or None."""
        return self._received

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """The block reads `received()` and ends by itself soon after a signal; read it once more after the block."""
        self._is_patient = True
        self.say(saves=True)
        try:
            yield
        finally:
            self.say(saves=False)
            self._is_patient = False

    def _on_signal(self, number: int, frame: object) -> None:
        code = None if self._is_patient else SIGNALLED + number
        self._note_signal(code)
        if code is not None:
            os._exit(code)
        self._received = self._received or number

    def _note_signal(self, code: int | None) -> None:
        """Note that a signal was received, and the exit code if it ends the process.

        The handler may run in the middle of `say`, so this is a file of its own.
        """
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.with_suffix(_SIGNAL).write_text(json.dumps(code), encoding="utf-8")

    def _leave(self) -> None:
        """In a forked child: it must not inherit these handlers, nor overwrite its parent's status file."""
        self.fall_silent()
        for number in SIGNALS:
            if signal.getsignal(number) == self._on_signal:
                # SLURM sends its warning to all processes of a job; the save still needs the children's work.
                signal.signal(number, signal.SIG_IGN if number == signal.SIGUSR2 else signal.SIG_DFL)


def remove_statuses(run_dir: Path, node: int = 0) -> None:
    """Remove the statuses of an earlier run's processes: machine 0 all, any other those of its own processes."""
    folder = run_dir / FOLDER
    if node:
        for status in read_statuses(run_dir, node):
            _file_of(run_dir, status["rank"]).unlink(missing_ok=True)
    elif folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder, ignore_errors=True)  # other machines remove their own at the same time


def read_statuses(run_dir: Path, node: int | None = None) -> list[dict[str, Any]]:
    """The latest status of every process, by rank; its state is `interrupted` if a signal came while it ran.

    node: the machine whose processes are meant; None for all.
    """
    statuses = []
    for path in (run_dir / FOLDER).glob("rank_*.json"):
        with contextlib.suppress(OSError, ValueError):  # a network's file system may fail, or show half a file
            status = json.loads(path.read_text(encoding="utf-8"))
            signal_file = path.with_suffix(_SIGNAL)
            if status["state"] == "runs" and signal_file.exists():
                code = signal_file.read_text(encoding="utf-8")
                status |= {"state": "interrupted"} | ({} if code in ("", "null") else {"code": int(code)})
            statuses.append(status)
    of_node = [status for status in statuses if node is None or status.get("node", 0) == node]
    return sorted(of_node, key=lambda status: status["rank"])


def _file_of(run_dir: Path, rank: int) -> Path:
    return run_dir / FOLDER / f"rank_{rank}.json"


@contextlib.contextmanager
def handling(handler: Any) -> Iterator[list[int]]:
    """Set one handler for the signals within the block; yields their numbers.

    A signal that is ignored stays so: nohup ignores SIGHUP.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
    try:
        for number in handled:
            signal.signal(number, handler)
        yield handled
    finally:
        for number in handled:
            signal.signal(number, before[number])


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Have this process receive a signal when the one that started it has died, also by SIGKILL. Linux only."""
    if sys.platform == "linux":
        _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, number)
