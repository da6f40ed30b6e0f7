"""Texts of runs and rows in Markdown and CSV, where they must stay texts. Pages escape by themselves (Jinja)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes a cell that begins so
_NO_NUMBER = re.compile(r"(?![+-]?[\d.]+(e[+-]?\d+)?$)", re.IGNORECASE)


def markdown_text(value: Any) -> str:
    r"""A text for a cell or line of Markdown, in which it ends no cell, opens no tag and links to nothing.

    >>> print(markdown_text("a|b <b>x ![](http://c)"))
    a\|b &lt;b>x ![]\(http://c)
    """
    text = re.sub(r"\s+", " ", str(value))
    return text.replace("\\", r"\\").replace("|", r"\|").replace("<", "&lt;").replace("](", r"]\(")


def markdown_rows(rows: Iterable[Sequence[Any]]) -> str:
    """The lines of a table."""
    return "\n".join(f"| {' | '.join(map(markdown_text, row))} |" for row in rows)


def csv_text(value: Any) -> Any:
    """A cell of a CSV file: a text that a spreadsheet would compute gets an apostrophe before it.

    >>> csv_text("=1+1"), csv_text("-0.5"), csv_text(-0.5)
    ("'=1+1", '-0.5', -0.5)
    """
    is_formula = isinstance(value, str) and value.startswith(_FORMULA) and _NO_NUMBER.match(value)
    return f"'{value}" if is_formula else value


def csv_value(cell: Any) -> Any:
    """The text of which `csv_text` has made the cell.

    >>> csv_value(csv_text("=1+1")), csv_value("'s")
    ('=1+1', "'s")
    """
    is_marked = isinstance(cell, str) and cell[:1] == "'" and cell[1:].startswith(_FORMULA)
    return cell[1:] if is_marked else cell
