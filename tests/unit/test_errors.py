"""What an error's text becomes in a message."""

from __future__ import annotations

import pytest

from vrft.errors import first_line


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
