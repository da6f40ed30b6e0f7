"""What every test relies on."""

from __future__ import annotations

import signal
import sys

import pytest


def pytest_sessionstart(session) -> None:
    """Make Ctrl-C reach the processes that tests start, also where CI runs in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _modules_of_a_test_are_its_own(tmp_path_factory):
    """Forget what a test imported from a temporary folder: the next test's module of that name is another file."""
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(folder):
            del sys.modules[name]
