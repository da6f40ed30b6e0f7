"""Splits that share no image, and few-shot draws: by seed, whatever the order of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from vrft.errors import UserError, raise_all
from vrft.rows import Row


class Checked(NamedTuple):
    """A row that can be used, and the content hashes of its images."""

    row: Row
    contents: list[str]


def cut(checked: Sequence[Checked], n_rows: int, *, seed: int) -> tuple[list[Checked], list[Checked]]:
    """`(part, rest)`: whole images, drawn by seed until they have `n_rows` rows; both in the order given.

    Rows that share an image, also by way of a third row, stay together, so that part and rest have no image in common.
    The draw depends on the images' content, not on their order.
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
    """One name for each row, equal where rows share an image, also by way of other rows.

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


def few_shot(checked: Sequence[Checked], k_shot: int, *, seed: int) -> list[Checked]:
    """`k_shot` rows of each class, drawn by seed, in the order given. Raises `UserError` where a class has fewer."""
    classes: dict[str, list[Checked]] = {}
    for item in checked:
        name = item.row["gold"] if isinstance(item.row["gold"], str) else item.row.get("category")
        if name is None:
            raise UserError(
                f"dataset.k_shot={k_shot}, and row {item.row['row_id']} has no class; "
                "a column category is needed, or k_shot=null"
            )
        if item.row["gold"]:
            classes.setdefault(name, []).append(item)
    short = [f"{name}: {len(items)} rows" for name, items in sorted(classes.items()) if len(items) < k_shot]
    raise_all(short, heading=f"dataset.k_shot={k_shot}, and these classes have fewer training rows:")
    kept = {
        item.row["row_id"]
        for items in classes.values()
        for item in sorted(items, key=lambda item: _draw(item.row["row_id"], seed))[:k_shot]
    }
    return [item for item in checked if item.row["row_id"] in kept]


def mix(rows: Sequence[Row], weights: Mapping[str, float], *, seed: int) -> list[Row]:
    """As many rows as given, each task's in proportion to its weight among the tasks that have rows, in random order.

    A task with fewer rows than its share repeats all of them before any a second time; one with more is drawn from.

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
        for position in range(round(len(rows) * passed) - n_before):
            turn, place = divmod(position, len(own))
            if place == 0:
                shuffled = sorted(own, key=lambda row: _draw(f"{turn}:{row['row_id']}", seed))
            drawn.append((f"{turn}:{task}:{position}", shuffled[place]))
    return [row for key, row in sorted(drawn, key=lambda item: _draw(item[0], seed))]


def _draw(text: str, seed: int) -> str:
    """A sort key that puts texts in random order, the same on every machine."""
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
