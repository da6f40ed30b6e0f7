"""What an error's text becomes in a message, and in which phase it was raised."""

from __future__ import annotations

import pytest

from vrft.errors import first_line, phase, phase_of


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
