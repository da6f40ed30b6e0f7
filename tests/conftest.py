"""What every test relies on."""

from __future__ import annotations

import signal


def pytest_sessionstart(session) -> None:
    """Make Ctrl-C reach the processes that tests start, also where CI runs in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
