"""Checks the columns and the images of one row of a source. A bad row gets a message."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from vrft.data.images import ImageReader
from vrft.data.readers import Located
from vrft.data.splits import Checked
from vrft.tasks import Task
from vrft.tasks.boxes import Frame
from vrft.tasks.rows import Row, box_fault

_IMAGE_COLUMNS = ("image", "images", "image_path")
_SPECIAL_TOKEN = re.compile(r"<\|\w+\|>")
_MARK = r"<image(?:[ _]?\d+)?>"  # for an image, in the rows of other tools
_MARK_ALONE = re.compile(rf"\A\s*(?:{_MARK}\s*)+|\s*(?:{_MARK}\s*)+\Z|^[^\S\n]*(?:{_MARK}[^\S\n]*)+\n", re.I | re.M)
_COLUMNS_OF_TASKS = {
    *("row_id", "image_wh", "task", "problem", "solution", "gold", "thought", "distractors"),
    *("category", "categories", "aliases", "definition", "phrase", "candidates", "instruction"),
}
"""The columns that some task reads, and `build_splits` itself."""


class Opened(NamedTuple):
    """A raw row with renamed columns. fault: why it has no columns, or None.

    place: file and row number, for messages. default_id: used if the row has no `row_id`. values: of the image column.
    """

    place: str
    default_id: str
    row: Row
    values: list
    fault: str | None = None


def open_rows(located: Iterable[Located], names: dict[str, str], *, what: str) -> Iterator[Opened]:
    """Yield each row of a source with its columns renamed. what: prefix of the default ids."""
    for position, (file, number, columns) in enumerate(located, 1):
        place, default_id = f"{file}, row {number}", f"{what}-{position:06d}"
        try:
            row = {name: value for name, value in _renamed(columns, names).items() if value is not None}
            yield Opened(place, default_id, row, _image_values(row))
        except ValueError as error:
            yield Opened(place, default_id, {}, [], str(error))


def check_row(item: Opened, *, frame: str | None, task: Task, images: ImageReader, left_out: Counter[str]) -> Checked:
    """The row in vrft's form. Raises ValueError that says what is wrong with it.

    left_out: counts, by their names, the columns that no task reads and that JSON cannot hold or that are blank.
    """
    if item.fault:
        raise ValueError(item.fault)
    read, row = [images.read(value) for value in item.values], dict(item.row)
    for name in [name for name in row if name not in _COLUMNS_OF_TASKS and _value_fault(row, name)]:
        left_out[name] += 1
        del row[name]
    _check_columns(row)
    if "problem" in row:
        row["problem"] = _without_marks(row["problem"], n_images=len(read))
    image_wh = list(read[0].image_wh)
    if row.setdefault("image_wh", image_wh) != image_wh:
        raise ValueError(
            f"image_wh is {row['image_wh']}, but the upright image has {image_wh}; boxes must refer to that"
        )
    row |= {"row_id": str(row.get("row_id", item.default_id)), "images": [image.path for image in read]}
    if "solution" in row:
        row["gold"] = _gold(row, task.for_row(row), frame)
        del row["solution"]
    task.check(row)
    for xyxy in row.get("distractors", []):
        if fault := box_fault(xyxy, image_wh):
            raise ValueError(f"distractors: {fault}")
    return Checked(row, [image.content for image in read])


def _renamed(columns: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    row = dict(columns)
    for name, name_there in names.items():
        if name_there in columns:
            row[name] = row.pop(name_there)
        elif name_there != name:
            raise ValueError(
                f"column {name_there!r} (dataset.columns.{name}) is missing; the row has {', '.join(columns) or 'none'}"
            )
    return row


def _image_values(row: Row) -> list:
    """Remove the image column from the row and return its values, at least one."""
    present = [name for name in _IMAGE_COLUMNS if name in row]
    if len(present) != 1:
        raise ValueError(f"one column of {', '.join(_IMAGE_COLUMNS)} is needed; the row has {', '.join(row) or 'none'}")
    values = row.pop(present[0])
    values = values if isinstance(values, list) else [values]
    if not values:
        raise ValueError(f"column {present[0]!r} is an empty list; at least one image is needed")
    return values


def _check_columns(row: Row) -> None:
    """Raise ValueError for a column of a wrong type, not valid in JSON, blank, or with a special token."""
    for name, kind in (("problem", str), ("solution", str), ("thought", str), ("distractors", list)):
        if name in row and not isinstance(row[name], kind):
            raise ValueError(f"column {name!r} is {str(row[name])[:100]!r}; a {kind.__name__} is needed")
    for name, value in row.items():
        if fault := _value_fault(row, name):
            raise ValueError(fault)
        if token := _SPECIAL_TOKEN.search(json.dumps(value, ensure_ascii=False)):
            raise ValueError(f"column {name!r} holds the special token {token.group()!r}, which models obey; remove it")


def _value_fault(row: Row, name: str) -> str | None:
    """Why a row cannot hold the value of that column, or None."""
    value = row[name]
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        return f"column {name!r} is {str(value)[:100]!r}, which JSON cannot hold ({error})"
    if isinstance(value, str) and not value.strip():
        return f"column {name!r} is {value!r}; a text is needed, or no such column"
    return None


def _without_marks(problem: str, *, n_images: int) -> str:
    """The question without the `<image>` marks at its start, at its end or on lines of their own: there the images
    stand anyway. Raises ValueError for a mark within a sentence, for as many as there are not images, and for no text.

    >>> _without_marks("<image>\\nHow many?", n_images=1)
    'How many?'
    """
    n_marks = len(re.findall(_MARK, problem, re.I))
    if not n_marks:
        return problem
    text = _MARK_ALONE.sub("", problem)
    if n_marks != n_images or re.search(_MARK, text, re.I) or not text:
        raise ValueError(
            f"column 'problem' is {problem[:200]!r} with {n_marks} times <image>, and the row has {n_images} images; "
            "images stand before the question, so write it without <image>"
        )
    return text


def _gold(row: Row, task: Task, frame_name: str | None) -> Any:
    if "gold" in row:
        raise ValueError("both gold and solution are given; keep one of them")
    width, height = image_wh = row["image_wh"]
    gold = task.gold_of(row["solution"], Frame("pixels", image_wh, image_wh))  # the numbers as they are written
    largest = max(_coordinates(gold), default=None)
    if largest is None:
        return gold
    if frame_name is None:
        raise ValueError(
            "the boxes of its solution are in a frame that dataset.frame must name: norm1000, pixels or norm1. Their "
            f"largest number is {largest:g}, and the image has {width} × {height} pixels: type dataset.frame=pixels if "
            "they are pixels of it, dataset.frame=norm1000 if they run from 0 to 1000, dataset.frame=norm1 from 0 to 1"
        )
    if largest <= 1 and frame_name != "norm1":
        raise ValueError(
            f"the boxes of its solution are fractions, up to {largest:g}, and dataset.frame is {frame_name}; type "
            "dataset.frame=norm1"
        )
    return task.gold_of(row["solution"], Frame(frame_name, image_wh, image_wh))


def _coordinates(gold: Any) -> list[float]:
    """The numbers of the boxes of a gold; none of a name or a count, which have no frame."""
    parts = gold.values() if isinstance(gold, dict) else gold if isinstance(gold, list | tuple) else ()
    return [number for part in parts for number in ([part] if isinstance(part, float) else _coordinates(part))]
