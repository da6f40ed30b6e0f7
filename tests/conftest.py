"""What every test relies on."""

from __future__ import annotations

import signal


def pytest_sessionstart(session) -> None:
    """Make Ctrl-C reach the processes that tests start: a CI that runs in the background ignores it, and they would too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
