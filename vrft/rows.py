"""Rows: the training and test examples, as JSON lines.

A row is a plain dict that JSON can hold. Every row has

    row_id    str, unique in its file
    images    list of paths, relative to the folder of the rows file, or absolute
    image_wh  [width, height] of the first image, in pixels
    gold      the right answer in the task's own form (boxes: pixels of the original image)

and its task's columns (see `vrft/tasks/`). Optional: `thought` (the thought that leads to the gold, for supervised training),
`distractors` (boxes of the objects that were not asked for), `problem` (the question, verbatim).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vrft.errors import UserError

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file. Raises `UserError` naming file and line where a line is no JSON object."""
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}). Each line must be one JSON object.") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: {type(row).__name__} found; each line must be one JSON object.")
        rows.append(row)
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines with sorted keys, so that the same rows give the same bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


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


def box_fault(xyxy: Any, image_wh: Sequence[int]) -> str | None:
    """What is wrong with a gold box in pixels of its image, or None.

    >>> box_fault([0, 0, 80, 10], (64, 48))
    'box [0, 0, 80, 10] lies outside the image of 64 × 48 pixels'
    """
    is_four_numbers = isinstance(xyxy, list | tuple) and len(xyxy) == 4
    if not is_four_numbers or not all(isinstance(v, int | float) and abs(v) < 1e9 for v in xyxy):
        return f"box {xyxy!r} is not four finite numbers [x1, y1, x2, y2]"
    x1, y1, x2, y2 = xyxy
    if x2 <= x1 or y2 <= y1:
        return f"box {xyxy!r} has no area; [x1, y1, x2, y2] with x1 < x2 and y1 < y2 is right"
    width, height = image_wh
    slack = 1e-6 * max(width, height)
    if min(x1, y1) < -slack or x2 > width + slack or y2 > height + slack:
        return f"box {xyxy!r} lies outside the image of {width} × {height} pixels"
    return None
