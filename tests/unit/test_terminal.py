"""What reaches the terminal, or a file or pipe in its place: text of others, faults of writing, progress."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from vrft import terminal
from vrft.terminal import careful_terminal, progress_bar

PRINTS = "import sys; from vrft.terminal import careful_terminal, progress_bar\n@careful_terminal\ndef main():\n"


def printed(code: str, **options) -> subprocess.CompletedProcess:
    """A process whose entry point, of this body, is decorated."""
    body = "".join(f"    {line}\n" for line in [*code.splitlines(), "return 0"])
    command = [sys.executable, "-c", f"{PRINTS}{body}sys.exit(main())"]
    return subprocess.run(command, check=False, timeout=60, **{"stderr": subprocess.PIPE} | options)


def carefully(words: str, capsys) -> str:
    """What is shown of printed words."""
    careful_terminal(lambda: print(words))()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("dog\x1b[2J\x1b]0;title\x07\rvrft: all is well", r"dog\x1b[2J\x1b]0;title\x07\rvrft: all is well"),
        ("cat\u202egod\u2066", r"cat\u202egod\u2066"),
        ("one\u2028two\x85three\x9b2J", r"one\u2028two\x85three\x9b2J"),
        ("col\tumn\nline 红 × é", "col\tumn\nline 红 × é"),  # what people write
    ],
)
def test_controls_in_text_are_shown_not_obeyed(capsys, words, shown):
    assert carefully(words, capsys) == shown + "\n"


def test_bars_of_other_packages_are_lines_in_a_file(capsys):
    careful_terminal(lambda: [sys.stdout.write(text) for text in ("\r50%", "\r100%", "\n")])()
    assert capsys.readouterr().out == "\n50%\n100%\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_replaced(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert careful_terminal(lambda: print("8 … 红 \udce9"))() in (0, None)
    assert stream.buffer.getvalue() == b"8 ? ? ?\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_nobody_who_reads_is_no_failure(name):
    reader, writer = os.pipe()
    os.close(reader)
    code = f"for n in range(3): print('x' * 10_000, file=sys.{name})\nopen({{!r}}, 'w').close()"
    done = printed(code.format(os.devnull), **{name: writer})
    os.close(writer)
    assert done.returncode == 0
    assert not done.stderr


def test_a_full_disk_ends_nothing_and_lost_output_is_told():
    with open("/dev/full", "w") as full:
        assert printed("for n in range(9): print('x' * 10_000, file=sys.stderr)", stderr=full).returncode == 0
        code = "with progress_bar(total=2, desc='a', unit='row') as bar: bar.update(2)"
        assert printed(code, stderr=full).returncode == 0
        lost = printed("print('a figure')", stdout=full)
        assert lost.returncode == 1
        assert lost.stderr == b"vrft: the output could not be written: No space left on device\n"


def test_a_closed_error_stream_is_no_failure():
    assert printed("print('lost', file=sys.stderr)", stderr=None, preexec_fn=lambda: os.close(2)).returncode == 0


def test_in_a_file_progress_is_plain_lines(capsys, monkeypatch):
    now = iter(range(0, 1000, 4))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))
    assert list(progress_bar(range(5), desc="check rows", unit="row")) == [0, 1, 2, 3, 4]
    with progress_bar(total=8, initial=2, desc="train", unit="step") as bar:
        bar.set_postfix({"reward": "0.500"}, refresh=False)
        bar.update(6)
    assert list(progress_bar(iter(range(4)), desc="read", unit="row")) == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" [")[0] for line in lines] == [
        "check rows:  60% 3/5",
        "check rows: 100% 5/5",
        "train: 100% 8/8",
        "read: 3",
        "read: 4",
    ]
    assert "reward=0.500" in lines[2]
    assert all(len(line) < 100 for line in lines)


def test_what_is_soon_done_says_nothing_in_a_file(capsys):
    assert list(progress_bar(range(3), desc="check rows", unit="row")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_progress_that_is_not_wanted_or_not_left_says_nothing(capsys):
    assert list(progress_bar(range(3), desc="masks", unit="case", is_shown=False)) == [0, 1, 2]
    assert list(progress_bar(range(3), desc="audit", unit="attack", leave=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
