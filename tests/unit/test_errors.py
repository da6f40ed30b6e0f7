"""Exit codes: the enum, the signals' numbers and the users' table agree."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from vrft.errors import SIGNALLED, ExitCode

README = Path(__file__).parents[2] / "launch" / "README.md"


def test_the_table_of_exit_codes_is_the_enum():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: int(code) for code, name in rows} == {code.name: code.value for code in ExitCode}
    assert len(rows) == 12


def test_a_code_after_a_signal_is_128_and_its_number():
    names = {"HUNG_UP": "SIGHUP", "INTERRUPTED": "SIGINT", "KILLED": "SIGKILL", "WARNED": "SIGUSR2"}
    for name, sent in {**names, "TERMINATED": "SIGTERM"}.items():
        assert ExitCode[name] == SIGNALLED + signal.Signals[sent]
