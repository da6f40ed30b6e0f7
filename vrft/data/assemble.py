"""What all sources of rows share: rows checked one by one, faults collected, splits cut, a manifest written.

A source is a module with a frozen dataclass `Options`, its own keys of `dataset`, and `read`. Its `build` is

    def build(options: dict, *, task: Task, out_dir: Path, seed: int) -> dict[str, list[Row]]:
        return build_splits(options, own=Options, read=read, task=task, out_dir=out_dir, seed=seed)

`Options` has `path`, a property `has_own_test`, and where something can be wrong with its values a method
`faults(self) -> list[str]`. `read` gives rows as they stand: an image column, the task's own columns, and where the
source has ids of its own a `row_id`, which must not depend on the order of the source. What `read` finds wrong with
single rows it appends to `faults`, naming file and row; what leaves no rows at all it raises as `UserError`.

Training, validation and test rows never share an image: those of one source are cut apart by image content, and a test
set of its own that repeats an image of the training source is refused.
"""

from __future__ import annotations

import json
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vrft.data.checked_rows import check_row, open_rows
from vrft.data.images import ImageReader
from vrft.data.read_ahead import read_ahead, usable_cores
from vrft.data.readers import Located
from vrft.data.splits import Checked, cut, few_shot, write_manifest
from vrft.errors import UserError, raise_all
from vrft.tasks import Task
from vrft.tasks.boxes import FRAMES
from vrft.tasks.rows import Row

ON_BAD_ROW = ("stop", "skip")
SKIPPED_FILE = "skipped.json"
"""A list, one text a line; not .jsonl, as every such file of a run's data folder is read as a split."""

_AT_LEAST = {"n_validation": 0, "n_test": 0, "k_shot": 1, "max_rows": 1, "n_processes": 1}

Read = Callable[..., tuple[Iterator[Located], Path | None]]
"""`read(options, *, is_test, faults)`: the rows of the training or test source, and the folder that image paths start
from (None: paths are not followed unless `image_root` is set)."""


@dataclass(frozen=True)
class CommonOptions:
    """The keys of `dataset` that every source takes.

    image_root: the folder that image paths start from and may not leave; null: the source's own.
    test_image_root: the same for a test set of its own; null: as for the training rows.
    frame: what boxes in `problem` and `solution` are written in.
    columns: `{name here: name in the file}`.
    max_rows: rows read of each source, from its start.
    n_validation, n_test: rows set apart from the training source, whole images at a time; of a test set of its own,
        `n_test` are used (null: all).
    k_shot: training rows of each class (`category`, a `gold` that is a name, or the labels of its boxes); rows
        without an object are left out, unless the source has `negatives`.
    on_bad_row: `stop` shows what is wrong with the rows and builds nothing; `skip` leaves bad rows out, counts them,
        and lists them in `skipped.json`.
    n_processes: processes that decode images; null: one a core. The rows do not depend on it.
    """

    image_root: str | None = None
    test_image_root: str | None = None
    frame: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    max_rows: int | None = None
    n_validation: int = 0
    n_test: int | None = None
    k_shot: int | None = None
    on_bad_row: str = "stop"
    n_processes: int | None = None


def build_splits(
    options: dict,
    *,
    own: type,
    read: Read,
    task: Task,
    out_dir: Path,
    seed: int,
    notes: dict[str, Any] | None = None,
) -> dict[str, list[Row]]:
    """The rows as `{"train", "validation", "test"}`, each by its row ids; `manifest.json` is written to `out_dir`.

    own: the source's `Options`; read: its `read`. notes: what `read` counts, for the manifest and for the user.
    Raises `UserError` that lists all that is wrong with the options or the rows.
    """
    common, source = read_options(options, own)
    faults: list[str] = []

    def checked_rows(*, is_test: bool) -> list[Checked]:
        found = _read_source(source, common, read, is_test=is_test, task=task, out_dir=Path(out_dir), faults=faults)
        return sorted(found, key=lambda item: item.row["row_id"])

    train = checked_rows(is_test=False)
    tests = checked_rows(is_test=True) if source.has_own_test else []
    train, tests = _without_repeats(train, tests, faults)
    if common.on_bad_row == "stop":
        raise_all(faults, heading=f"dataset={_title(source)} has rows that cannot be used:")
    _tell(faults, notes or {}, Path(out_dir))
    splits = _cut(train, tests, common, source, seed=seed)
    told = {key: value for key, value in options.items() if key != "n_processes"}  # which changes nothing
    write_manifest(Path(out_dir), splits, options=told, seed=seed, notes=notes or {}, n_skipped=len(faults))
    return {split: [row for row, _ in part] for split, part in splits.items()}


def read_options(options: dict, own: type) -> tuple[CommonOptions, Any]:
    """The checked options, those of all sources and the source's own. Raises `UserError` naming each wrong key."""
    known = {item.name: kind for kind in (own, CommonOptions) for item in fields(kind)}
    given = {key: value for key, value in options.items() if key != "builder"}
    faults = [f"dataset has no key {key}; known: {', '.join(known)}" for key in sorted(set(given) - set(known))]
    missing = [item.name for item in fields(own) if item.default is item.default_factory is MISSING]
    faults += [f"dataset.{name} must be given" for name in missing if name not in given]
    for key, kind in known.items():
        hint = typing.get_type_hints(kind)[key]
        if key in given and key not in _AT_LEAST and not _fits(given[key], hint):
            faults.append(f"dataset.{key} is {given[key]!r}; {_words(hint)} is right")
    raise_all(faults, heading="The data set is not well described:")
    common, source = (
        kind(**{key: value for key, value in given.items() if known[key] is kind}) for kind in (CommonOptions, own)
    )
    faults = [*_common_faults(common), *(source.faults() if hasattr(source, "faults") else ())]
    raise_all(faults, heading="The data set is not well described:")
    return common, source


def _common_faults(common: CommonOptions) -> Iterator[str]:
    for key, least in _AT_LEAST.items():
        value = getattr(common, key)
        is_whole = type(value) is int and value >= least
        if not is_whole and not (value is None and key != "n_validation"):
            yield f"dataset.{key} is {value!r}; a whole number from {least} is right"
    for key in ("image_root", "test_image_root"):
        folder = getattr(common, key)
        if folder is not None and not Path(folder).is_dir():
            yield f"dataset.{key} is {folder!r}: there is no such folder"
    if common.frame not in (None, *FRAMES) or common.frame == "seen_pixels":
        yield (
            f"dataset.frame is {common.frame!r}; right are norm1000, pixels and norm1. Pixels of a resized image "
            "depend on the model's pixel limits, so write boxes in one of these"
        )
    if common.on_bad_row not in ON_BAD_ROW:
        yield f"dataset.on_bad_row is {common.on_bad_row!r}; right are {' and '.join(ON_BAD_ROW)}"


def _fits(value: Any, hint: Any) -> bool:
    """True if a plain value is of the hinted type; a whole number is a float too, and a bool is no number."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value)
    if hint is float:
        return type(value) in (int, float)
    return hint is Any or type(value) is hint


def _words(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint) if not typing.get_args(hint) else hint).replace("NoneType", "None")


def _title(source: Any) -> str:
    return str(getattr(source, "hub", None) or source.path)


def _read_source(
    source: Any,
    common: CommonOptions,
    read: Read,
    *,
    is_test: bool,
    task: Task,
    out_dir: Path,
    faults: list[str],
) -> list[Checked]:
    """The checked rows of the training or the test source; what is wrong is appended to `faults`."""
    n_faults, what = len(faults), "test" if is_test else "row"
    located, root = read(source, is_test=is_test, faults=faults)
    own_root = (common.test_image_root if is_test else None) or common.image_root
    images = ImageReader(root=Path(own_root) if own_root else root, out_dir=out_dir, is_kept=True)
    n_processes = usable_cores() if common.n_processes is None else common.n_processes
    opened = open_rows(islice(located, common.max_rows), common.columns, what=what)
    rows = read_ahead(opened, images, values=lambda item: item.values, n_processes=n_processes)
    checked = []
    for item in tqdm(rows, desc=f"check {what}s", unit=" rows", disable=None, file=sys.stderr):
        try:
            checked.append(check_row(item, frame=common.frame, task=task, images=images))
        except ValueError as error:
            faults.append(f"{item.place}: {str(error)[:500]}")
    if not checked and (len(faults) == n_faults or common.on_bad_row == "skip"):
        bad = f"; all {len(faults) - n_faults} are bad, the first: {faults[n_faults]}" if faults[n_faults:] else ""
        raise UserError(
            f"dataset={_title(source)} has no {'test ' if is_test else ''}rows; at least one is needed{bad}"
        )
    return checked


def _without_repeats(
    train: Sequence[Checked], tests: Sequence[Checked], faults: list[str]
) -> tuple[list[Checked], list[Checked]]:
    """The rows without those whose id another has too, and the training rows whose image a test row shows."""
    counts = Counter(row["row_id"] for row, _ in (*train, *tests))
    faults += [f"row_id {row_id!r} occurs {n} times; it must be unique" for row_id, n in counts.items() if n > 1]
    shown = {content: row["row_id"] for row, contents in tests for content in contents}
    kept = []
    for row, contents in train:
        if test := next((shown[content] for content in contents if content in shown), None):
            faults.append(
                f"row {test} of the test set shows the same image as row {row['row_id']} of the training source; "
                "remove it from one of them"
            )
        elif counts[row["row_id"]] == 1:
            kept.append(Checked(row, contents))
    return kept, [item for item in tests if counts[item.row["row_id"]] == 1]


def _tell(faults: list[str], notes: dict[str, Any], out_dir: Path) -> None:
    """Write the list of the rows left out, or take an earlier build's away, and say how many they are."""
    path = out_dir / SKIPPED_FILE
    path.unlink(missing_ok=True)
    for note, count in notes.items():
        print(f"dataset: {count} {note}", file=sys.stderr)
    if faults:
        out_dir.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(fault, ensure_ascii=False) for fault in faults)
        path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        print(f"warning: {len(faults)} bad rows or annotations are left out; {path} lists them", file=sys.stderr)


def _cut(
    train: list[Checked], tests: list[Checked], common: CommonOptions, source: Any, *, seed: int
) -> dict[str, list[Checked]]:
    if source.has_own_test:
        test, rest = cut(tests, len(tests) if common.n_test is None else common.n_test, seed=seed)[0], train
    else:
        test, rest = cut(train, common.n_test or 0, seed=seed)
    validation, train_part = cut(rest, common.n_validation, seed=seed)
    if common.k_shot is not None:
        train_part = few_shot(train_part, common.k_shot, seed=seed, negatives=getattr(source, "negatives", 0.0))
    if not train_part and rest:  # a source that is all test set is one to evaluate on
        raise UserError(
            f"dataset.n_validation={common.n_validation} and n_test={common.n_test} leave none of {len(train)} rows "
            "for training; lower them"
        )
    return {"train": train_part, "validation": validation, "test": test}
