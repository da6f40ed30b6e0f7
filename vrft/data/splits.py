"""Splits that share no image, and few-shot draws. They depend on the seed, not on the order of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vrft.errors import UserError, raise_all
from vrft.tasks.rows import Row

MANIFEST_FILE = "manifest.json"
_UNFINISHED = MANIFEST_FILE + ".partial"


class Checked(NamedTuple):
    """A valid row, and the content hashes of its images."""

    row: Row
    contents: list[str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the row's columns and image contents. It does not depend on image paths or the row id."""
        columns = {name: value for name, value in self.row.items() if name not in ("row_id", "images")}
        return hashlib.sha256(json.dumps([columns, self.contents], sort_keys=True).encode()).hexdigest()


def cut(checked: Sequence[Checked], n_rows: int, *, seed: int) -> tuple[list[Checked], list[Checked]]:
    """`(part, rest)`: whole images are drawn by seed until part has `n_rows` rows; both keep the given order.

    Rows that share an image, directly or through other rows, stay together: part and rest have no image in common. The
    draw depends on the images' content, not on their order.
    """
    groups: dict[str, list[int]] = {}
    for index, group in enumerate(image_groups([contents for _, contents in checked])):
        groups.setdefault(group, []).append(index)
    chosen: set[int] = set()
    for group in sorted(groups, key=lambda content: _draw(content, seed)):
        if len(chosen) >= n_rows:
            break
        chosen.update(groups[group])
    part = [item for index, item in enumerate(checked) if index in chosen]
    return part, [item for index, item in enumerate(checked) if index not in chosen]


def image_groups(contents: Iterable[Sequence[str]]) -> list[str]:
    """One name per row, equal for rows that share an image, directly or through other rows.

    >>> image_groups([["a", "b"], ["c"], ["b", "c"], ["d"]])
    ['a', 'a', 'a', 'd']
    """
    contents = list(contents)
    first: dict[str, str] = {}

    def root(image: str) -> str:
        while first.setdefault(image, image) != image:
            image = first[image]
        return image

    for images in contents:
        low, *others = sorted({root(image) for image in images})
        first.update(dict.fromkeys(others, low))
    return [root(images[0]) for images in contents]


def few_shot(checked: Sequence[Checked], k_shot: int, *, seed: int, negatives: float = 0.0) -> list[Checked]:
    """`k_shot` rows of each class, in the given order.

    They are the first in an order by seed and row content, so fewer shots are a subset of more shots. A class is a gold
    that is a name, the category of a row with an object, or each label of a row's boxes.
    negatives: rows without an object per shot of their category.
    Raises `UserError` if a class has fewer rows.
    """
    classes: dict[str, list[int]] = {}
    without: dict[str, list[int]] = {}
    for index, item in enumerate(checked):
        for name in classes_of(item.row, k_shot):
            classes.setdefault(name, []).append(index)
        if not item.row["gold"] and "category" in item.row:
            without.setdefault(item.row["category"], []).append(index)
    short = [f"{name}: {len(items)} rows" for name, items in sorted(classes.items()) if len(items) < k_shot]
    raise_all(short, heading=f"dataset.k_shot={k_shot}, and these classes have fewer training rows:")

    def first(indices: list[int], n_rows: int) -> list[int]:
        """The first rows in the seed's order."""
        order = sorted(
            indices, key=lambda index: (_draw(checked[index].fingerprint, seed), checked[index].row["row_id"])
        )
        return order[:n_rows]

    kept = {index for indices in classes.values() for index in first(indices, k_shot)}
    n_without = round(negatives * k_shot)
    kept |= {index for name in classes for index in first(without.get(name, []), n_without)}
    return [item for index, item in enumerate(checked) if index in kept]


def classes_of(row: Row, k_shot: int) -> set[str]:
    """The classes of which a row is a shot; none without an object. Raises `UserError` for a row without any class."""
    gold = row["gold"]
    if isinstance(gold, str):
        return {gold}
    if "categories" in row:
        return {box["label"] for box in gold}
    if "category" not in row:
        raise UserError(
            f"dataset.k_shot={k_shot}, and row {row['row_id']} has no class; "
            "a column category is needed, or dataset.k_shot=null (debug=smoke sets it to 1)"
        )
    return {row["category"]} if gold else set()


def mix(rows: Sequence[Row], weights: Mapping[str, float], *, seed: int) -> list[Row]:
    """As many rows as given, in random order. A task's share is its weight, relative to the tasks that have rows.

    A task with fewer rows than its share repeats all of them before any a second time. One with more is subsampled.

    >>> rows = [{"row_id": str(n), "task": "counting" if n else "pointing"} for n in range(6)]
    >>> sorted(row["row_id"] for row in mix(rows, {"counting": 1.0, "pointing": 2.0}, seed=0))[:4]
    ['0', '0', '0', '0']
    """
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    total, drawn, passed = sum(weights[task] for task in sorted(by_task)), [], 0.0
    for task, own in sorted(by_task.items()):
        n_before, passed = round(len(rows) * passed), passed + weights[task] / total
        own.sort(key=lambda row: _draw(row["row_id"], seed))
        drawn += [
            (f"{task}:{position}", own[position % len(own)]) for position in range(round(len(rows) * passed) - n_before)
        ]
    return [row for key, row in sorted(drawn, key=lambda item: _draw(item[0], seed))]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of built rows. Raises `UserError` that names the file if it is not one."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {MANIFEST_FILE}; dataset.path must be the folder of a finished vrft build")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for split, rows in manifest["splits"].items():
            if Path(split).name != split or not all(_is_entry(row) for row in rows):
                raise ValueError(f"the rows of {split!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is cut or not what vrft build wrote ({error}); build the rows again") from None
    return manifest


def is_finished(folder: Path) -> bool:
    """True if the folder has a manifest, and the rows of every split that it lists."""
    try:
        splits = read_manifest(folder)["splits"]
    except UserError:
        return False
    return all((folder / f"{split}.jsonl").is_file() for split in splits)


def _is_entry(row: dict[str, Any]) -> bool:
    texts = [row["row_id"], row["row"], *row["images"]]
    return isinstance(row["images"], list) and all(isinstance(text, str) for text in texts)


def write_manifest(
    out_dir: Path,
    splits: Mapping[str, Sequence[Checked]],
    *,
    options: Mapping[str, Any],
    seed: int,
    notes: Mapping[str, Any],
    n_skipped: int,
) -> None:
    """Write what `finish_manifest` makes `manifest.json`: options, seed, counts, and the id, fingerprint and image
    contents of each row.

    It has one line per row, and no paths except those of the options: two builds can be compared byte by byte.
    """
    head = {
        "options": dict(options),
        "seed": seed,
        "n_rows": {split: len(part) for split, part in splits.items()},
        "n_skipped": n_skipped,
        "notes": dict(notes),
    }
    lines = [
        f"{json.dumps(key)}: {json.dumps(value, sort_keys=True, ensure_ascii=False)},\n" for key, value in head.items()
    ]
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / _UNFINISHED).unlink(missing_ok=True)  # of an earlier build, or a link that somebody planted
    with (out_dir / _UNFINISHED).open("x", encoding="utf-8") as file:
        file.writelines(["{\n", *lines, '"splits": {'])
        for number, (split, part) in enumerate(splits.items()):
            file.write(f"{',' if number else ''}\n{json.dumps(split)}: [")
            for position, item in enumerate(part):
                line = {"row_id": item.row["row_id"], "row": item.fingerprint, "images": item.contents}
                file.write(f"{',' if position else ''}\n{json.dumps(line, ensure_ascii=False)}")
            file.write("\n]")
        file.write("\n}\n}\n")


def drop_manifest(out_dir: Path) -> None:
    """Remove the manifest of an earlier build: until the next is finished, the rows do not count as finished."""
    (out_dir / MANIFEST_FILE).unlink(missing_ok=True)


def finish_manifest(out_dir: Path) -> None:
    """Give the manifest its name, by which rows count as finished; nothing for a source that writes none."""
    if (out_dir / _UNFINISHED).is_file():
        (out_dir / _UNFINISHED).replace(out_dir / MANIFEST_FILE)


def _draw(text: str, seed: int) -> str:
    """A sort key for a random order of texts, the same on every machine."""
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
