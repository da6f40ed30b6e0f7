"""One run at a time in a run directory: also where a parent process was killed and its workers go on."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vrft import heartbeat
from vrft.errors import UserError

FILE = ".lock"


class OccupiedError(UserError):
    """Another process works in the run directory."""


@contextlib.contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Raises `OccupiedError` if a process works in the run directory by now; keeps others out while the block runs.

    A file system without locks lets everybody in.
    """
    with (run_dir / FILE).open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            join(file)  # the workers do the same
        except BlockingIOError:  # the two are not one step, and another parent may come between
            ids = ", ".join(str(word["pid"]) for word in heartbeat.heard(run_dir) if word["state"] != "finished")
            raise OccupiedError(
                f"another process works in run.dir={run_dir}"
                + (f" (processes {ids}, perhaps left behind by one that was killed)" if ids else "")
                + "; wait for its end, or end it"
            ) from None
        except OSError:
            pass
        yield


def join(file: TextIO) -> None:
    """Hold the lock together with other processes of the run, until the file is closed."""
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
