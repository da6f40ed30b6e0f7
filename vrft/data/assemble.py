"""From a source of rows to splits: rows are checked, faults collected, splits drawn, a manifest written.

A source is a module with a model `Options` (its keys of `dataset`) and a function `read`. Its `build` is

    def build(options: dict, *, task: Task, out_dir: Path, seed: int) -> dict[str, list[Row]]:
        return build_splits(options, own=Options, read=read, task=task, out_dir=out_dir, seed=seed)

`Options` is a `CommonOptions` with `path`. It overrides `faults` if its keys can contradict each other. `read` returns
raw rows: an image column, the task's own columns, and a `row_id` if the source has ids. A `row_id` must not depend on
the order of the source. `read` appends a text with file and row to `faults` for each bad row. It raises `UserError` if
no row can be read at all.

Training, validation and test rows never share an image. Rows of one source are split by image content. A separate test
set that repeats an image of the training source is refused.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from vrft.data.checked_rows import check_row, open_rows
from vrft.data.images import ImageReader
from vrft.data.options import CommonOptions, read_options
from vrft.data.read_ahead import read_ahead, usable_cores
from vrft.data.readers import Located
from vrft.data.splits import Checked, cut, few_shot, read_manifest, write_manifest
from vrft.errors import UserError, raise_all
from vrft.files import write_text_atomically
from vrft.tasks import Task
from vrft.tasks.boxes import Frame
from vrft.tasks.rows import Row
from vrft.terminal import progress_bar

SKIPPED_FILE = "skipped.json"
"""A JSON list, one text per line. Not .jsonl: a run reads every .jsonl file of its data folder as a split."""

Read = Callable[..., tuple[Iterator[Located], Path | None]]
"""`read(options, *, is_test, faults)`: the rows of the training or test source, and the folder of relative image paths
(None: paths are refused unless `image_root` is set)."""


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
    """The rows as `{"train", "validation", "test"}`, each sorted by row id. Writes a manifest to `out_dir`.

    own: the source's `Options`. read: its `read`. notes: counts that `read` makes, printed and kept in the manifest.
    Raises `UserError` that lists all faults of the options or the rows.
    """
    chosen = read_options(options, own)
    faults: list[str] = []
    left_out: Counter[str] = Counter()

    def checked_rows(*, is_test: bool) -> list[Checked]:
        found = _read_source(
            chosen, read, is_test=is_test, task=task, out_dir=Path(out_dir), faults=faults, left_out=left_out
        )
        return sorted(found, key=lambda item: item.row["row_id"])

    train = checked_rows(is_test=False)
    tests = checked_rows(is_test=True) if chosen.has_own_test else []
    train, tests = _without_repeats(train, tests, faults)
    if chosen.on_bad_row == "stop":
        raise_all(faults, heading=f"{_title(chosen)} has rows that cannot be used:")
    notes = dict(notes or {})
    notes |= {f"values of column {name!r}, which no task reads, are left out": n for name, n in left_out.items()}
    _report_skipped(faults, notes, Path(out_dir))
    _report_twice([*train, *tests], task)
    if chosen.unseen_by and chosen.has_own_test:
        tests = _unseen(tests, chosen.unseen_by)
    elif chosen.unseen_by:
        train = _unseen(train, chosen.unseen_by)
    splits = _cut(train, tests, chosen, seed=seed)
    recorded = {key: value for key, value in options.items() if key != "n_processes"}  # rows do not depend on it
    write_manifest(Path(out_dir), splits, options=recorded, seed=seed, notes=notes, n_skipped=len(faults))
    return {split: [row for row, _ in part] for split, part in splits.items()}


def _title(options: Any) -> str:
    hub = getattr(options, "hub", None)
    return f"dataset.hub={hub}" if hub else f"dataset.path={options.path}"


def _read_source(
    options: CommonOptions,
    read: Read,
    *,
    is_test: bool,
    task: Task,
    out_dir: Path,
    faults: list[str],
    left_out: Counter[str],
) -> list[Checked]:
    """The checked rows of the training or the test source. Each bad row adds a text to `faults`. left_out: as in
    `check_row`."""
    n_faults, what = len(faults), "test" if is_test else "row"
    located, root = read(options, is_test=is_test, faults=faults)
    own_root = options.root_of(is_test=is_test)
    images = ImageReader(root=Path(own_root) if own_root else root, out_dir=out_dir, is_kept=True)
    n_processes = usable_cores() if options.n_processes is None else options.n_processes
    opened = open_rows(islice(located, options.max_rows), options.columns, what=what)
    rows = read_ahead(opened, images, values=lambda item: item.values, n_processes=n_processes)
    checked = []
    for item in progress_bar(rows, desc=f"check {what}s", unit="row"):
        try:
            checked.append(check_row(item, frame=options.frame, task=task, images=images, left_out=left_out))
        except ValueError as error:
            faults.append(f"{item.place}: {str(error)[:500]}")
    if not checked and (len(faults) == n_faults or options.on_bad_row == "skip"):
        bad = f"; all {len(faults) - n_faults} are bad, the first: {faults[n_faults]}" if faults[n_faults:] else ""
        raise UserError(f"{_title(options)} has no {'test ' if is_test else ''}rows; at least one is needed{bad}")
    return checked


def _without_repeats(
    train: Sequence[Checked], tests: Sequence[Checked], faults: list[str]
) -> tuple[list[Checked], list[Checked]]:
    """Training and test rows, without rows of the same id, and without training rows that share a test row's image."""
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


def _unseen(checked: list[Checked], folder: str) -> list[Checked]:
    """The rows that show no image of the training and validation rows in a folder of built rows; prints how many are
    left out. Raises `UserError` if none is left."""
    seen = read_manifest(Path(folder))["splits"]
    seen = {content for split in ("train", "validation") for row in seen.get(split, []) for content in row["images"]}
    unseen = [item for item in checked if seen.isdisjoint(item.contents)]
    n_out = len(checked) - len(unseen)
    if n_out:
        said = f"{n_out} of {len(checked)} rows are left out, as {folder} has their images for training or validation"
        print(f"note: {said}; dataset.n_test=all takes them too", file=sys.stderr)
    if not unseen:
        raise UserError(
            f"no row is left: {folder} has all images for training or validation; dataset.n_test=all takes them"
        )
    return unseen


def _report_twice(checked: Sequence[Checked], task: Task) -> None:
    """Print a warning that names the rows of the same images, question and gold as an earlier one."""
    first: dict[str, str] = {}
    pairs = []
    for row, contents in checked:
        image_wh = tuple(row["image_wh"])
        said = [contents, task.question(row, Frame("norm1000", image_wh, image_wh)), row["gold"]]
        if (other := first.setdefault(json.dumps(said, sort_keys=True), row["row_id"])) != row["row_id"]:
            pairs.append(f"{row['row_id']} as {other}")
    if pairs:
        print(
            f"warning: {len(pairs)} rows are given twice (same image, question and gold), so they count twice: "
            f"{', '.join(pairs[:5])}{', …' if pairs[5:] else ''}; keep one of each",
            file=sys.stderr,
        )


def _report_skipped(faults: list[str], notes: dict[str, Any], out_dir: Path) -> None:
    """Print the counts, and write the list of bad rows; without any, delete the list of an earlier build."""
    path = out_dir / SKIPPED_FILE
    path.unlink(missing_ok=True)
    for note, count in notes.items():
        print(f"dataset: {count} {note}", file=sys.stderr)
    if faults:
        out_dir.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(fault, ensure_ascii=False) for fault in faults)
        write_text_atomically(path, f"[\n{lines}\n]\n")
        print(f"warning: {len(faults)} bad rows or annotations are left out; {path} lists them", file=sys.stderr)


def _cut(train: list[Checked], tests: list[Checked], options: CommonOptions, *, seed: int) -> dict[str, list[Checked]]:
    """The splits that the options ask for; a part may be empty."""
    n_test, n_validation, a_fifth = options.n_test, options.n_validation, -(-len(train) // 5)
    if options.has_own_test:
        test, rest = cut(tests, len(tests) if n_test in (None, "all") else n_test, seed=seed)[0], train
    else:
        usual = min(a_fifth, options.most_test)
        test, rest = cut(train, {None: usual, "all": len(train)}.get(n_test, n_test), seed=seed)
    if n_validation is None:
        n_validation = min(a_fifth, options.most_validation, len(rest) // 2)
    validation, train_part = cut(rest, n_validation, seed=seed)
    if options.k_shot is not None:
        train_part = few_shot(train_part, options.k_shot, seed=seed, negatives=getattr(options, "negatives", 0.0))
    return {"train": train_part, "validation": validation, "test": test}
