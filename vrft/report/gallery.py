"""The page's gallery: test images with gold and predicted boxes, before and after training."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vrft.data.images import load_image
from vrft.errors import UserError
from vrft.report.draw import LabelledBox, boxes_of, found_boxes
from vrft.report.run_files import RunFiles
from vrft.tasks.answers import normal_name
from vrft.tasks.reward_terms import RewardOptions, match_boxes
from vrft.tasks.rows import Row, image_paths

TAGS = {
    "improved": "improved",
    "worse": "got worse",
    "wrong": "still wrong",
    "missed": "missed",
    "false_positive": "false positive",
    "unreadable": "unreadable",
    "zero": "zero reward",
}
"""The gallery's filters, and the text of their buttons."""
TAGS_OF_ONE_SIDE = {**{tag: TAGS[tag] for tag in TAGS if tag not in ("improved", "worse")}, "wrong": "wrong"}
"""The filters if there is only one side."""
BOX_TAGS = ("missed", "false_positive")
"""The filters that apply only to rows with boxes."""

_ASKED_COLUMNS = ("phrase", "category", "instruction", "problem")
_CLEAR_CHANGE = 0.1  # of a question's metric; a smaller change is neither `improved` nor `worse`
_MATCHED = RewardOptions(iou_threshold=math.nextafter(0.5, 0))  # IoU >= 0.5 matches, as in COCO
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
    """One question. gold_boxes: in pixels of the original image. gold: the gold as text, if it has no boxes."""

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
    """The items, and the filters. counts, shown: rows of each filter, in the test set and among the items.

    metric: the metric of one row that decides between `improved`, `worse` and `wrong`.
    """

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
    """The gallery of a test set: some rows of each filter, others evenly spaced; None if it was not evaluated."""
    rows = run.rows(split)
    names = run.judged_kinds(split)
    if not rows or not names:
        return None
    scores = [run.scores(name, split) for name in names]
    metric = row_metric(run.primary_metrics, scores[-1])
    labels = TAGS if len(names) > 1 else TAGS_OF_ONE_SIDE
    if not any(is_compared_by_iou(row, one) for row, one in zip(rows, scores[-1], strict=True)):
        labels = {tag: label for tag, label in labels.items() if tag not in BOX_TAGS}
    tags = [
        [*tags_of([side[index] for side in scores], metric), *box_tags(row, scores[-1][index])]
        for index, row in enumerate(rows)
    ]
    chosen = choose(tags, n_items)
    titles = run.side_titles(split)
    items = [
        _item(
            rows[index],
            [_side(title, side[index], metric) for title, side in zip(titles, scores, strict=True)],
            tags[index],
            run.run_dir / "data",
        )
        for index in chosen
    ]
    counts = {tag: sum(tag in one for one in tags) for tag in labels}
    shown = {tag: sum(tag in item.tags for item in items) for tag in labels}
    return Gallery(items, len(rows), labels, counts, shown, metric)


def row_metric(primary: Sequence[str], scores: Sequence[dict]) -> str:
    """The metric that compares the two sides of a row: the one that most rows have; ties go to primary metrics.

    >>> row_metric(["AP"], [{"metrics": {"iou": 0.5, "count": None}}, {"metrics": {"iou": None, "count": None}}])
    'iou'
    """
    names = [*primary, *scores[0]["metrics"]]
    return max(names, key=lambda name: sum(one["metrics"].get(name) is not None for one in scores), default="")


def tags_of(sides: Sequence[dict], metric: str) -> list[str]:
    """The filters that a question belongs to. sides: its scored rows, before and after, or only one.

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
    return [tag for tag in TAGS if holds.get(tag)]


def is_compared_by_iou(row: Row, scored: dict) -> bool:
    """True if the task compares gold and answer by IoU; False for points, whose gold is a box, too."""
    has_iou = any(name.rpartition("/")[2] == "iou" and one is not None for name, one in scored["metrics"].items())
    return has_iou and isinstance(row["gold"], list)


def box_tags(row: Row, scored: dict) -> list[str]:
    """`missed` if a gold box has no match at IoU 0.5, `false_positive` if a predicted box has none.

    Boxes are matched one to one, the most confident first; labels, if there are any, must agree.

    >>> scored = {"answer": [0, 0, 9, 9], "metrics": {"iou": 0.0}}
    >>> box_tags({"gold": [20, 0, 29, 9]}, scored), box_tags({"gold": [0, 0, 9, 9]}, scored)
    (['missed', 'false_positive'], [])
    """
    if not is_compared_by_iou(row, scored):
        return []
    found, golds = found_boxes(scored["answer"]), boxes_of(row["gold"])
    may_match = None
    if "categories" in row:
        labels = [normal_name(label) for _, label in golds]
        may_match = np.array([[normal_name(box.get("label", "")) == label for label in labels] for box in found], bool)
        may_match = may_match.reshape(len(found), len(labels))
    matched = match_boxes(
        [box["xyxy"] for box in found],
        [box.get("confidence", 1.0) for box in found],
        [xyxy for xyxy, _ in golds],
        _MATCHED,
        may_match=may_match,
    )
    n_matched = np.count_nonzero(matched)
    return [tag for tag, n in zip(BOX_TAGS, (len(golds), len(found)), strict=True) if n > n_matched]


def choose(tags: Sequence[Sequence[str]], n_items: int) -> list[int]:
    """Sorted indices of at most `n_items` rows: up to 12 of each filter, then evenly spaced rows without a filter.

    If there is no room for 12 of each, the filters take turns.

    >>> choose([["improved"], [], [], ["zero"], []], 3)
    [0, 1, 3]
    """
    by_tag = [_evenly([index for index, one in enumerate(tags) if tag in one], _N_PER_TAG) for tag in TAGS]
    in_turn = [index for turn in zip_longest(*by_tag) for index in turn if index is not None]
    chosen = dict.fromkeys(in_turn)
    first = list(chosen)[:n_items]
    others = [index for index in range(len(tags)) if index not in chosen]
    return sorted([*first, *_evenly(others, n_items - len(first))])


def _evenly(indices: Sequence[int], n: int) -> list[int]:
    n = min(n, len(indices))
    return [indices[position * len(indices) // n] for position in range(n)]


def _item(row: Row, sides: list[Side], tags: list[str], root: Path) -> Item:
    gold = row["gold"]
    boxes = boxes_of(gold)
    return Item(
        row_id=row["row_id"],
        asked=_asked(row),
        gold="" if boxes else _as_text(gold),
        gold_boxes=boxes,
        image_wh=tuple(row["image_wh"]),
        image=image_uri(_image_of(row, root), what=f"row {row['row_id']}"),
        tags=tags,
        sides=sides,
    )


def _asked(row: Row) -> str:
    """What the row asks for; columns that its task does not read may hold anything."""
    texts = (row.get(column) for column in _ASKED_COLUMNS)
    names = row.get("categories")
    return next((text for text in texts if text and isinstance(text, str)), "") or (
        ", ".join(map(str, names)) if isinstance(names, list) else ""
    )


def _as_text(answer: Any) -> str:
    """A name or a count as text; "no objects" for an empty list; "" for boxes and unreadable answers."""
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
        answer=_as_text(answer),
        reason=scored["reason"],
        total=scored["total"],
        terms=scored["terms"],
        figure=scored["metrics"].get(metric),
    )


def _image_of(row: Row, root: Path) -> Path:
    """The row's first image. Raises `UserError` for a relative path that leaves the run: vrft writes none."""
    if ".." in Path(row["images"][0]).parts:
        raise UserError(
            f"row {row['row_id']}: the image {row['images'][0]} may lie outside of {root}; give its whole path"
        )
    return image_paths(row, root)[0]


def image_uri(path: Path, *, what: str) -> str:
    """The image as a data URI: PNG up to 128 pixels a side, else JPEG of at most 640 pixels a side.

    what: what the image is for. Raises `UserError` if it cannot be read.
    """
    image = load_image(path, what=what)
    is_small = max(image.size) <= 128
    if max(image.size) > _MOST_PIXELS_A_SIDE:
        image.thumbnail((_MOST_PIXELS_A_SIDE, _MOST_PIXELS_A_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG", "optimize": True} if is_small else {"format": "JPEG", "quality": 82}))
    kind = "png" if is_small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
