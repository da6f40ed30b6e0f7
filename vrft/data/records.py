"""Users' own rows, and the published sets of `image, problem, solution`.

    {"image": "dogs/1.jpg", "problem": "Where is …", "solution": "<answer>(10,20),(300,400)</answer>"}
    {"image": "dogs/1.jpg", "category": "dog", "gold": [[12.5, 30, 96, 118]]}

A row names its image (`image` or `image_path`, or a list in `images`) and either holds its task's own columns (`gold`
in pixels of the upright image), or `solution`, which the task reads in `dataset.frame`; a `problem` is asked verbatim.
Every row is checked, and all faults are shown together.

Training, validation and test rows never share an image: those of one source are cut apart by image content, and a test
set of its own that repeats an image of the training source is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

from vrft.boxes import FRAMES, Frame
from vrft.data.images import ImageReader
from vrft.data.sources import Located, read_hub, read_path
from vrft.data.splits import Checked, cut, few_shot
from vrft.errors import UserError, raise_all
from vrft.rows import Row, box_fault
from vrft.tasks import Task

_IMAGE_COLUMNS = ("image", "images", "image_path")
_SPECIAL_TOKEN = re.compile(r"<\|\w+\|>")


@dataclass(frozen=True)
class RecordOptions:
    """The keys of `dataset` that this builder takes; exactly one of `path` and `hub` is needed.

    path, split: a file, or a folder and which split of it (see `vrft.data.sources.read_path`).
    hub, revision: a data set on the Hugging Face hub, in place of `path`; nothing else reaches the network.
    test_path, test_split: where a test set of its own lies; the one that is not given is that of the training rows.
    image_root: the folder that image paths start from and may not leave; null: the folder of the rows.
    frame: what boxes in `problem` and `solution` are written in.
    columns: `{name here: name in the file}`.
    max_rows: rows read of each source, from its start.
    n_validation, n_test: rows set apart from the training source, whole images at a time; of a test set of its own,
        `n_test` are used (null: all).
    k_shot: training rows of each class (`category`, or a `gold` that is a name); rows without an object are left out.
    """

    path: str | None = None
    split: str = "train"
    hub: str | None = None
    revision: str | None = None
    test_path: str | None = None
    test_split: str | None = None
    image_root: str | None = None
    frame: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    max_rows: int | None = None
    n_validation: int = 0
    n_test: int | None = None
    k_shot: int | None = None

    @property
    def has_own_test(self) -> bool:
        return self.test_path is not None or self.test_split is not None


def build(options: dict, *, task: Task, out_dir: Path, seed: int) -> dict[str, list[Row]]:
    """The rows as `{"train", "validation", "test"}`. Raises `UserError` that lists all that is wrong with them."""
    chosen = read_options(options)
    faults: list[str] = []
    checked = _read_source(chosen, is_test=False, task=task, out_dir=out_dir, faults=faults)
    tests = _read_source(chosen, is_test=True, task=task, out_dir=out_dir, faults=faults) if chosen.has_own_test else []
    faults += _repeated_ids([*checked, *tests]) + _shared_images(checked, tests)
    raise_all(faults, heading=f"dataset={chosen.hub or chosen.path} has rows that cannot be used:")
    if chosen.has_own_test:
        test, rest = cut(tests, len(tests) if chosen.n_test is None else chosen.n_test, seed=seed)[0], checked
    else:
        test, rest = cut(checked, chosen.n_test or 0, seed=seed)
    validation, train = cut(rest, chosen.n_validation, seed=seed)
    if chosen.k_shot is not None:
        train = few_shot(train, chosen.k_shot, seed=seed)
    if not train and rest:  # a source that is all test set is one to evaluate on
        raise UserError(
            f"dataset.n_validation={chosen.n_validation} and n_test={chosen.n_test} leave none of {len(checked)} rows "
            "for training; lower them"
        )
    splits = {"train": train, "validation": validation, "test": test}
    return {split: [row for row, _ in part] for split, part in splits.items()}


def read_options(options: dict) -> RecordOptions:
    """The checked options. Raises `UserError` naming each key that is wrong."""
    known = [item.name for item in fields(RecordOptions)]
    given = {key: value for key, value in options.items() if key != "builder"}
    if unknown := sorted(set(given) - set(known)):
        raise UserError(f"dataset has no key {', '.join(unknown)}; known: {', '.join(known)}")
    chosen = RecordOptions(**given)
    faults = []
    if (chosen.path is None) == (chosen.hub is None):
        faults.append(f"dataset.path is {chosen.path!r} and dataset.hub is {chosen.hub!r}; give exactly one of them")
    if chosen.frame not in (None, *FRAMES) or chosen.frame == "seen_pixels":
        faults.append(
            f"dataset.frame is {chosen.frame!r}; right are norm1000, pixels and norm1. Pixels of a resized image "
            "depend on the model's pixel limits, so write boxes in one of these"
        )
    for key, least in (("n_validation", 0), ("n_test", 0), ("k_shot", 1), ("max_rows", 1)):
        value = getattr(chosen, key)
        is_whole = type(value) is int and value >= least
        if not is_whole and not (value is None and key != "n_validation"):
            faults.append(f"dataset.{key} is {value!r}; a whole number from {least} is right")
    raise_all(faults, heading="The data set is not well described:")
    return chosen


def check_row(columns: dict, *, default_id: str, options: RecordOptions, task: Task, images: ImageReader) -> Checked:
    """The row as vrft keeps it, from its columns. Raises ValueError saying what is wrong with it."""
    row = {name: value for name, value in _renamed(columns, options.columns).items() if value is not None}
    read = [images.read(value) for value in _image_values(row)]
    _check_columns(row)
    image_wh = list(read[0].image_wh)
    if row.setdefault("image_wh", image_wh) != image_wh:
        raise ValueError(
            f"image_wh is {row['image_wh']}, but upright the image has {image_wh}, to which boxes must refer"
        )
    row |= {"row_id": str(row.get("row_id", default_id)), "images": [image.path for image in read]}
    if "solution" in row:
        row["gold"] = _gold(row, task.for_row(row), options.frame)
        del row["solution"]
    task.check(row)
    for xyxy in row.get("distractors", []):
        if fault := box_fault(xyxy, image_wh):
            raise ValueError(f"distractors: {fault}")
    return Checked(row, [image.content for image in read])


def _read_source(
    options: RecordOptions, *, is_test: bool, task: Task, out_dir: Path, faults: list[str]
) -> list[Checked]:
    """The checked rows of the training or the test source; what is wrong is appended to `faults`."""
    located, root = _open_source(options, is_test=is_test, faults=faults)
    images = ImageReader(root=root, out_dir=out_dir)
    checked, n_faults = [], len(faults)
    for position, (name, number, columns) in enumerate(islice(located, options.max_rows), 1):
        default_id = f"{'test' if is_test else 'row'}-{position:06d}"
        try:
            checked.append(check_row(columns, default_id=default_id, options=options, task=task, images=images))
        except ValueError as error:
            faults.append(f"{name}, row {number}: {str(error)[:500]}")
    if not checked and len(faults) == n_faults:
        raise UserError(
            f"dataset={options.hub or options.path} has no {'test ' if is_test else ''}rows; at least one is needed"
        )
    return checked


def _open_source(options: RecordOptions, *, is_test: bool, faults: list[str]) -> tuple[Iterator[Located], Path | None]:
    """The rows of the training or the test source, and the folder that their image paths start from."""
    path = (options.test_path if is_test else None) or options.path
    split = (options.test_split if is_test else None) or options.split
    if options.image_root is not None and not Path(options.image_root).is_dir():
        raise UserError(f"dataset.image_root is {options.image_root!r}: there is no such folder")
    if path is None:
        located, folder = read_hub(options.hub, split=split, revision=options.revision), None
    else:
        key = "dataset.test_path" if is_test and options.test_path else "dataset.path"
        located = read_path(Path(path), key=key, split=split, faults=faults)
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return located, Path(options.image_root) if options.image_root is not None else folder


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
    """Take the image columns out of the row, as a list of at least one value."""
    present = [name for name in _IMAGE_COLUMNS if name in row]
    if len(present) != 1:
        raise ValueError(f"one column of {', '.join(_IMAGE_COLUMNS)} is needed; the row has {', '.join(row) or 'none'}")
    values = row.pop(present[0])
    values = values if isinstance(values, list) else [values]
    if not values:
        raise ValueError(f"column {present[0]!r} is an empty list; at least one image is needed")
    return values


def _check_columns(row: Row) -> None:
    """Raise ValueError for a column of a wrong type, one JSON cannot hold, a blank text, a special token."""
    for name, kind in (("problem", str), ("solution", str), ("thought", str), ("distractors", list)):
        if name in row and not isinstance(row[name], kind):
            raise ValueError(f"column {name!r} is {str(row[name])[:100]!r}; a {kind.__name__} is needed")
    for name, value in row.items():
        try:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False)
            text.encode("utf-8")
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"column {name!r} is {str(value)[:100]!r}, which JSON cannot hold ({error})") from None
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"column {name!r} is {value!r}; a text is needed, or no such column")
        if token := _SPECIAL_TOKEN.search(text):
            raise ValueError(f"column {name!r} holds the special token {token.group()!r}, which models obey; remove it")


def _gold(row: Row, task: Task, frame_name: str | None) -> Any:
    if "gold" in row:
        raise ValueError("both gold and solution are there; keep one of them")
    gold = task.gold_of(row["solution"], Frame(frame_name or "pixels", row["image_wh"], row["image_wh"]))
    if frame_name is None and not isinstance(gold, str | int):
        raise ValueError(
            "the boxes of its solution are in a frame that dataset.frame must name: norm1000, pixels or norm1"
        )
    return gold


def _repeated_ids(checked: Iterable[Checked]) -> list[str]:
    counts = Counter(row["row_id"] for row, _ in checked)
    return [f"row_id {row_id!r} occurs {n} times; it must be unique" for row_id, n in counts.items() if n > 1]


def _shared_images(checked: Iterable[Checked], tests: Iterable[Checked]) -> list[str]:
    trained = {content: row["row_id"] for row, contents in checked for content in contents}
    return [
        f"row {row['row_id']} of the test set shows the same image as row {trained[content]} of the training source; "
        "remove it from one of them"
        for row, contents in tests
        for content in contents
        if content in trained
    ]
