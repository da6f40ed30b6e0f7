"""Rows: the training and test examples, as JSON lines.

A row is a plain dict that JSON can hold. Every row has

    row_id    str, unique in its file
    images    list of paths, relative to the folder of the rows file, or absolute
    image_wh  [width, height] of the first image, in pixels
    gold      the right answer in the task's own form (boxes: pixels of the original image)

and its task's columns (see `vrft/tasks/`). Optional: `thought` (the thought that leads to the gold, for supervised
training), `distractors` (boxes of the objects that were not asked for), `problem` (the question, verbatim).
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vrft.errors import raise_all

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file, blank lines aside. Raises `UserError` naming the lines that are no JSON object."""
    faults = []
    rows = [row for _, row in numbered_rows(path, faults)]
    raise_all(faults, heading=f"{path} has lines that cannot be read:")
    return rows


def numbered_rows(path: Path, faults: list[str]) -> Iterator[tuple[int, Row]]:
    """`(line number, row)` of each line of a JSON-lines file, in UTF-8 with or without a byte order mark.

    A line that is no JSON object is left out, and what is wrong with it is appended to `faults`.
    """
    # Not str.splitlines, which also splits at the U+2028 that JSON may hold.
    for number, line in enumerate(Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            faults.append(f"{path}, line {number}: not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8")
        except (ValueError, RecursionError) as error:
            faults.append(f"{path}, line {number}: not JSON ({error}); each line must be one JSON object")
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                faults.append(f"{path}, line {number}: {type(row).__name__} found; each line must be one JSON object")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines with sorted keys, so that the same rows give the same bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_text_atomically(path, "".join(lines))


def append_lines(path: Path, entries: Iterable[Any]) -> None:
    """Append entries to a file of JSON lines and have them on the disk: what is saved later must not outlive them."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(entry, ensure_ascii=False, default=float) + "\n" for entry in entries)
        file.flush()
        os.fsync(file.fileno())


def write_text_atomically(path: Path, text: str, *, is_lasting: bool = False) -> Path:
    """Write the whole text or nothing; the path. is_lasting: it also stands after a power cut."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        if is_lasting:
            file.flush()
            os.fsync(file.fileno())
    return partial.replace(path)


def image_paths(row: Row, root: Path) -> list[Path]:
    """The row's images, relative ones taken from `root`."""
    return [Path(root) / path for path in row["images"]]


def rows_hash(rows: Sequence[Row], root: Path) -> str:
    """SHA-256 over the rows and the bytes of their images, in order, as a hex string."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
        for path in image_paths(row, root):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def labelled_boxes(gold: Sequence) -> list[tuple[Sequence[float], str]]:
    """The boxes of a detection gold with their labels ("" for a bare box).

    >>> labelled_boxes([[0, 0, 9, 9], {"label": "dog", "xyxy": [1, 1, 5, 5]}])
    [([0, 0, 9, 9], ''), ([1, 1, 5, 5], 'dog')]
    """
    return [(entry["xyxy"], entry["label"]) if isinstance(entry, dict) else (entry, "") for entry in gold]


class GoldBoxError(ValueError):
    """A gold box that cannot be right."""


def check_box(xyxy: Any, image_wh: Sequence[int]) -> None:
    """Raise `GoldBoxError` with what is wrong with a gold box in pixels of its image."""
    if fault := box_fault(xyxy, image_wh):
        raise GoldBoxError(fault)


def box_fault(xyxy: Any, image_wh: Sequence[int]) -> str | None:
    """What is wrong with a gold box in pixels of its image, or None.

    >>> box_fault([0, 0, 80, 10], (64, 48))
    'box [0, 0, 80, 10] lies outside the image of 64 × 48 pixels; give boxes in its pixels'
    """
    is_four_numbers = isinstance(xyxy, list | tuple) and len(xyxy) == 4
    if not is_four_numbers or not all(type(v) in (int, float) and abs(v) < 1e9 for v in xyxy):
        return f"box {xyxy!r} is not four finite numbers [x1, y1, x2, y2]"
    x1, y1, x2, y2 = xyxy
    if x2 <= x1 or y2 <= y1:
        return f"box {xyxy!r} has no area; [x1, y1, x2, y2] with x1 < x2 and y1 < y2 is right"
    width, height = image_wh
    slack = 1e-6 * max(width, height)
    if min(x1, y1) < -slack or x2 > width + slack or y2 > height + slack:
        return f"box {xyxy!r} lies outside the image of {width} × {height} pixels; give boxes in its pixels"
    return None
