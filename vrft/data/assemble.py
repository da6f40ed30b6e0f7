"""What all sources of rows share: rows checked one by one, faults collected, splits cut, a manifest written.

A source is a module with a model `Options`, its keys of `dataset`, and `read`. Its `build` is

    def build(options: dict, *, task: Task, out_dir: Path, seed: int) -> dict[str, list[Row]]:
        return build_splits(options, own=Options, read=read, task=task, out_dir=out_dir, seed=seed)

`Options` is a `CommonOptions` with `path`, and with `faults` if its keys can contradict. `read` gives rows as they
stand: an image column, the task's own columns, and where the source has ids of its own a `row_id`, which must not
depend on the order of the source. What `read` finds wrong with single rows it appends to `faults`, naming file and row;
what leaves no rows at all it raises as `UserError`.

Training, validation and test rows never share an image: those of one source are cut apart by image content, and a test
set of its own that repeats an image of the training source is refused.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vrft.data.checked_rows import check_row, open_rows
from vrft.data.images import ImageReader
from vrft.data.options import CommonOptions, read_options
from vrft.data.read_ahead import read_ahead, usable_cores
from vrft.data.readers import Located
from vrft.data.splits import Checked, cut, few_shot, write_manifest
from vrft.errors import UserError, raise_all
from vrft.tasks import Task
from vrft.tasks.rows import Row

SKIPPED_FILE = "skipped.json"
"""A list, one text a line; not .jsonl, as every such file of a run's data folder is read as a split."""

Read = Callable[..., tuple[Iterator[Located], Path | None]]
"""`read(options, *, is_test, faults)`: the rows of the training or test source, and the folder that image paths start
from (None: paths are not followed unless `image_root` is set)."""


def build_splits(
    options: dict,
    *,
    own: type[CommonOptions],
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
    chosen = read_options(options, own)
    faults: list[str] = []

    def checked_rows(*, is_test: bool) -> list[Checked]:
        found = _read_source(chosen, read, is_test=is_test, task=task, out_dir=Path(out_dir), faults=faults)
        return sorted(found, key=lambda item: item.row["row_id"])

    train = checked_rows(is_test=False)
    tests = checked_rows(is_test=True) if chosen.has_own_test else []
    train, tests = _without_repeats(train, tests, faults)
    if chosen.on_bad_row == "stop":
        raise_all(faults, heading=f"dataset={_title(chosen)} has rows that cannot be used:")
    _tell(faults, notes or {}, Path(out_dir))
    splits = _cut(train, tests, chosen, seed=seed)
    told = {key: value for key, value in options.items() if key != "n_processes"}  # which changes nothing
    write_manifest(Path(out_dir), splits, options=told, seed=seed, notes=notes or {}, n_skipped=len(faults))
    return {split: [row for row, _ in part] for split, part in splits.items()}


def _title(options: Any) -> str:
    return str(getattr(options, "hub", None) or options.path)


def _read_source(
    options: CommonOptions,
    read: Read,
    *,
    is_test: bool,
    task: Task,
    out_dir: Path,
    faults: list[str],
) -> list[Checked]:
    """The checked rows of the training or the test source; what is wrong is appended to `faults`."""
    n_faults, what = len(faults), "test" if is_test else "row"
    located, root = read(options, is_test=is_test, faults=faults)
    own_root = options.root_of(is_test=is_test)
    images = ImageReader(root=Path(own_root) if own_root else root, out_dir=out_dir, is_kept=True)
    n_processes = usable_cores() if options.n_processes is None else options.n_processes
    opened = open_rows(islice(located, options.max_rows), options.columns, what=what)
    rows = read_ahead(opened, images, values=lambda item: item.values, n_processes=n_processes)
    checked = []
    for item in tqdm(rows, desc=f"check {what}s", unit=" rows", disable=None, file=sys.stderr):
        try:
            checked.append(check_row(item, frame=options.frame, task=task, images=images))
        except ValueError as error:
            faults.append(f"{item.place}: {str(error)[:500]}")
    if not checked and (len(faults) == n_faults or options.on_bad_row == "skip"):
        bad = f"; all {len(faults) - n_faults} are bad, the first: {faults[n_faults]}" if faults[n_faults:] else ""
        raise UserError(
            f"dataset={_title(options)} has no {'test ' if is_test else ''}rows; at least one is needed{bad}"
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


def _cut(train: list[Checked], tests: list[Checked], options: CommonOptions, *, seed: int) -> dict[str, list[Checked]]:
    if options.has_own_test:
        test, rest = cut(tests, len(tests) if options.n_test is None else options.n_test, seed=seed)[0], train
    else:
        test, rest = cut(train, options.n_test or 0, seed=seed)
    validation, train_part = cut(rest, options.n_validation, seed=seed)
    if options.k_shot is not None:
        train_part = few_shot(train_part, options.k_shot, seed=seed, negatives=getattr(options, "negatives", 0.0))
    if not train_part and rest:  # a source that is all test set is one to evaluate on
        raise UserError(
            f"dataset.n_validation={options.n_validation} and n_test={options.n_test} leave none of {len(train)} rows "
            "for training; lower them"
        )
    return {"train": train_part, "validation": validation, "test": test}
