"""The terminal, or the file or pipe in its place: no text harms it, none of its faults ends a run; progress on it."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TextIO

from tqdm import tqdm

from vrft.errors import ExitCode

_EVERY_S = 10.0
_NOBODY_READS = (errno.EPIPE, errno.EIO)  # a pipe's end, and a terminal's
_LINE_WITHOUT_TOTAL = "{desc}: {n_fmt} [{elapsed}, {rate_fmt}{postfix}]"
_LINE = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
# Controls but tab and line feed, the separators that end a line, and what reverses the direction of writing.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_REDRAWN = re.compile(r"(\r(?:\x1b\[K)?|(?:\x1b\[A)*)([^\x00-\x1f]*)(\r?)")  # as a bar writes its line again


def printable(text: str) -> str:
    r"""The text with control characters escaped: on a terminal they clear the screen, forge lines, reverse words.

    >>> printable("dog\x1b[2J\tcat\u202e")
    'dog\\x1b[2J\tcat\\u202e'
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def careful_terminal(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a process's entry point: what it prints is made `printable`, in any encoding, and where the standard
    error or output cannot be written to (a full disk, a closed pipe) it runs on.

    Lost output makes exit code 0 to 1, unless nobody reads it any more (`| head`).
    """

    @functools.wraps(main)
    def run(*arguments: Any) -> int:
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = out, err = [_Careful(stream) for stream in before]
        try:
            code = main(*arguments)
        finally:
            out.finish()
            err.finish()
            sys.stdout, sys.stderr = before
        if out.fault and out.fault.errno not in _NOBODY_READS and not code:
            err.write(f"vrft: the output could not be written: {out.fault.strerror}\n")
            err.finish()
            return ExitCode.FAILED
        return code

    return run


class _Careful:
    """A text stream whose `write` and `flush` never raise `OSError`; all else is the stream's own.

    fault: why text was lost, or None.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (2>&-)
        self.fault: OSError | None = None
        with contextlib.suppress(AttributeError):
            self.stream.reconfigure(errors="replace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        if redrawn := _REDRAWN.fullmatch(text):  # also of other packages; in a file each time a line
            before, words, after = redrawn.groups()
            shown = before + printable(words) + after if self.isatty() else "\n" * bool(before) + printable(words)
        else:
            shown = printable(text)
        self._try(lambda: self.stream.write(shown))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def isatty(self) -> bool:
        return self.stream.isatty()

    def finish(self) -> None:
        """Flush; where that fails, drop the rest, or the interpreter would fail at it with exit code 120."""
        self.flush()
        if self.fault:
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    def _try(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except OSError as error:
            self.fault = self.fault or error


def progress_bar(
    items: Iterable | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    leave: bool = True,
    is_shown: bool = True,
) -> Any:
    """A bar on a terminal; in a file or pipe a plain line every ten seconds and at the end, but none for what is done
    within ten seconds and has no figures.

    It iterates over `items`, or is a context with `update(n)`; `set_postfix` shows figures. leave: True to leave the
    finished bar. is_shown: False for no progress at all.
    """
    if not is_shown or sys.stderr.isatty():
        options = {"dynamic_ncols": True, "delay": 0 if leave else 1, "disable": not is_shown}
        return tqdm(items, total=total, initial=initial, desc=printable(desc), unit=unit, leave=leave, **options)
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    return _Lines(items, total=total, initial=initial, desc=desc, unit=unit, leave=leave)


class _Lines:
    """The part of tqdm that vrft uses, as lines."""

    def __init__(
        self, items: Iterable | None, *, total: int | None, initial: int, desc: str, unit: str, leave: bool
    ) -> None:
        self.items, self.total, self.desc, self.unit, self.leave = items, total, desc, unit, leave
        self.n = self.initial = self.n_printed = initial
        self.started = self.printed_at = time.monotonic()
        self.figures = ""

    def __iter__(self) -> Iterator:
        for item in self.items:
            yield item
            self.update()
        self.close()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self.close()

    def update(self, n: int = 1) -> None:
        self.n += n
        if n and time.monotonic() - self.printed_at >= _EVERY_S:
            self._print()

    def set_postfix(self, figures: Mapping[str, str], refresh: bool = True) -> None:
        self.figures = ", ".join(f"{name}={value}" for name, value in figures.items())

    def close(self) -> None:
        is_worth_a_line = bool(self.figures) or time.monotonic() - self.started >= _EVERY_S
        if self.leave and self.n > self.n_printed and is_worth_a_line:
            self._print()

    def _print(self) -> None:
        self.printed_at, self.n_printed = time.monotonic(), self.n
        options = {"prefix": self.desc, "unit": self.unit, "initial": self.initial, "postfix": self.figures}
        form = _LINE_WITHOUT_TOTAL if self.total is None else _LINE
        line = tqdm.format_meter(self.n, self.total, self.printed_at - self.started, bar_format=form, **options)
        print(line, file=sys.stderr, flush=True)
