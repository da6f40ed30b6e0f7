"""Test images with gold and predicted boxes, before and after, as the page's gallery shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vrft.draw import LabelledBox, boxes_of
from vrft.evaluate.generate import load_image
from vrft.report.run_files import RunFiles
from vrft.rows import Row, image_paths

TAGS = {
    "improved": "improved",
    "worse": "got worse",
    "wrong": "still wrong",
    "unreadable": "unreadable",
    "zero": "zero reward",
}
"""The gallery's filters, and what their buttons say."""
TAGS_OF_ONE = {"wrong": "wrong", "unreadable": "unreadable", "zero": "zero reward"}
"""The same where there is no before and after."""

_ASKED_COLUMNS = ("phrase", "category", "instruction", "problem")
_CLEAR_CHANGE = 0.1  # of a question's metric: below, neither improved nor worse
_N_PER_TAG = 12
_MOST_PIXELS_A_SIDE = 640


@dataclass(frozen=True)
class Side:
    """A completion of one question. boxes: (xyxy, label) in pixels of the original image."""

    title: str
    text: str
    boxes: list[LabelledBox]
    answer: str
    reason: str | None
    total: float
    terms: dict[str, float]
    figure: float | None


@dataclass(frozen=True)
class Item:
    """One question. gold_boxes in pixels of the original image; gold: the right answer where it is a text."""

    row_id: str
    asked: str
    gold: str
    gold_boxes: list[LabelledBox]
    image_wh: tuple[int, int]
    image: str
    tags: list[str]
    sides: list[Side]


@dataclass(frozen=True)
class Gallery:
    """What is shown, the filters, how many rows each has in all and among those shown, and the metric behind them."""

    items: list[Item]
    n_rows: int
    tags: dict[str, str]
    counts: dict[str, int]
    shown: dict[str, int]
    metric: str

    @property
    def has_boxes(self) -> bool:
        return any(item.gold_boxes or side.boxes for item in self.items for side in item.sides)


def make_gallery(run: RunFiles, *, n_items: int = 60, split: str = "test") -> Gallery | None:
    """The gallery of a test set: some rows of every filter, then others evenly; None if nothing was judged there."""
    rows = run.rows(split)
    names = [name for name in ("before", run.after) if name and run.scores(name, split)]
    if not rows or not names:
        return None
    scores = [run.scores(name, split) for name in names]
    metric = row_metric(run, scores[-1])
    labels = TAGS if len(names) > 1 else TAGS_OF_ONE
    tags = [tags_of([side[index] for side in scores], metric) for index in range(len(rows))]
    chosen = choose(tags, n_items)
    titles = {"before": "Before", run.after: "After"} if len(names) > 1 else {names[0]: "Completion"}
    items = [
        _item(
            rows[index],
            [_side(titles[name], side[index], metric) for name, side in zip(names, scores, strict=True)],
            tags[index],
            run.run_dir / "data",
        )
        for index in chosen
    ]
    counts = {tag: sum(tag in one for one in tags) for tag in labels}
    shown = {tag: sum(tag in item.tags for item in items) for tag in labels}
    return Gallery(items, len(rows), labels, counts, shown, metric)


def row_metric(run: RunFiles, scores: Sequence[dict]) -> str:
    """The metric by which one row is better or worse: the first, primary ones before others, that every row has."""
    names = [*run.primary_metrics, *scores[0]["metrics"]]
    return next(name for name in names if all(one["metrics"].get(name) is not None for one in scores))


def tags_of(sides: Sequence[dict], metric: str) -> list[str]:
    """The filters under which a question falls; sides: its scored rows, before and after (or only one).

    >>> tags_of([{"metrics": {"iou": m}, "total": m, "answer": "a"} for m in (0.0, 0.5)], "iou")
    ['improved']
    """
    old, new = sides[0], sides[-1]
    change = (new["metrics"].get(metric) or 0.0) - (old["metrics"].get(metric) or 0.0)
    holds = {
        "improved": change >= _CLEAR_CHANGE,
        "worse": change <= -_CLEAR_CHANGE,
        "wrong": not new["metrics"].get(metric) and not old["metrics"].get(metric),
        "unreadable": new["answer"] is None,
        "zero": new["total"] <= 0,
    }
    return [tag for tag in TAGS if holds[tag]]


def choose(tags: Sequence[Sequence[str]], n_items: int) -> list[int]:
    """Indices of at most `n_items` rows, in order: up to a dozen of each filter, the rest evenly from the others.

    >>> choose([["improved"], [], [], ["zero"], []], 3)
    [0, 1, 3]
    """
    chosen: dict[int, None] = {}
    for tag in TAGS:
        of_tag = [index for index, one in enumerate(tags) if tag in one]
        chosen.update(dict.fromkeys(_evenly(of_tag, _N_PER_TAG)))
    first = list(chosen)[:n_items]
    others = [index for index in range(len(tags)) if index not in chosen]
    return sorted([*first, *_evenly(others, n_items - len(first))])


def _evenly(indices: Sequence[int], n: int) -> list[int]:
    n = min(n, len(indices))
    return [indices[position * len(indices) // n] for position in range(n)]


def _item(row: Row, sides: list[Side], tags: list[str], root: Path) -> Item:
    gold = row["gold"]
    boxes = [] if isinstance(gold, int) else boxes_of(gold)
    return Item(
        row_id=row["row_id"],
        asked=next((row[column] for column in _ASKED_COLUMNS if row.get(column)), ", ".join(row.get("categories", []))),
        gold="" if boxes else _in_words(gold),
        gold_boxes=boxes,
        image_wh=tuple(row["image_wh"]),
        image=image_uri(image_paths(row, root)[0]),
        tags=tags,
        sides=sides,
    )


def _in_words(answer: Any) -> str:
    """A name or a count as it is, an empty list as "no objects", boxes and unreadable answers as nothing."""
    if isinstance(answer, str | int):
        return str(answer)
    return "no objects" if answer == [] else ""


def _side(title: str, scored: dict, metric: str) -> Side:
    answer = scored["answer"]
    boxes = boxes_of(answer)
    return Side(
        title=title,
        text=scored["text"],
        boxes=boxes,
        answer=_in_words(answer),
        reason=scored["reason"],
        total=scored["total"],
        terms=scored["terms"],
        figure=scored["metrics"].get(metric),
    )


def image_uri(path: Path) -> str:
    """The image as a data URI: as it is where small, else shrunk to at most 640 pixels a side, as JPEG."""
    image = load_image(path, what="report")
    is_small = max(image.size) <= 128
    if max(image.size) > _MOST_PIXELS_A_SIDE:
        image.thumbnail((_MOST_PIXELS_A_SIDE, _MOST_PIXELS_A_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG", "optimize": True} if is_small else {"format": "JPEG", "quality": 82}))
    kind = "png" if is_small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
