"""Exit codes, what an error's text becomes in a message, and in which phase it was raised."""

from __future__ import annotations

import errno
import os
import re
import signal
from pathlib import Path

import pytest

from vrft.errors import SIGNALLED, ExitCode, UserError, disk_errors_explained, first_line, phase, phase_of

README = Path(__file__).parents[2] / "launch" / "README.md"


def test_the_table_of_exit_codes_is_the_enum():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: int(code) for code, name in rows} == {code.name: code.value for code in ExitCode}
    assert len(rows) == 12


def test_a_code_after_a_signal_is_128_and_its_number():
    names = {"HUNG_UP": "SIGHUP", "INTERRUPTED": "SIGINT", "KILLED": "SIGKILL", "WARNED": "SIGUSR2"}
    for name, sent in {**names, "TERMINATED": "SIGTERM"}.items():
        assert ExitCode[name] == SIGNALLED + signal.Signals[sent]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/rows.jsonl"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # as safetensors
    ],
)
def test_a_disk_that_takes_no_more_is_told_with_what_to_do(error):
    with pytest.raises(UserError) as caught, disk_errors_explained(then="resume with run.resume=true"):
        raise error
    assert first_line(error) in str(caught.value)
    assert str(caught.value).endswith("make room there, then resume with run.resume=true")


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), ValueError("3"), UserError("mine")])
def test_other_errors_of_a_write_stay_as_they_are(error):
    with pytest.raises(type(error), match=re.escape(str(error))), disk_errors_explained(then="resume"):
        raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("no such file"), "no such file"),
        (ValueError("\n  first\nsecond"), "first"),
        (MemoryError(), "MemoryError"),  # Python's own has no text
        (OSError(" \n"), "OSError"),
    ],
)
def test_an_error_without_a_text_is_named_by_its_type(error, line):
    assert first_line(error) == line


def test_the_innermost_phase_is_that_of_an_error():
    @phase("rollout")
    def sample():
        raise MemoryError

    def step():
        with phase("evaluation"):
            pass  # over by then
        sample()

    with pytest.raises(MemoryError) as caught, phase("step"):
        step()
    assert phase_of(caught.value) == "rollout"
    assert phase_of(MemoryError()) is None
