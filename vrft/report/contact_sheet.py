"""A check of rows before training: a summary as text, and a sheet of images with their golds drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vrft.data.images import load_image
from vrft.report.draw import LabelledBox, boxes_of, draw_boxes, drawable
from vrft.tasks.rows import Row, image_paths

N_ON_SHEET = 48
_COLUMNS, _CELL_WH, _CAPTION = 8, (240, 240), 34  # _CELL_WH and the caption's height in pixels


def contact_sheet(
    splits: Mapping[str, Sequence[Row]], *, root: Path, predicted: Mapping[str, Sequence[LabelledBox]] | None = None
) -> Image.Image:
    """A sheet of up to 48 evenly spaced rows of all splits, with golds drawn; it makes a wrong frame visible.

    predicted: boxes of an answer by `row_id`, drawn too.
    """
    named = [(split, row) for split, rows in splits.items() for row in rows]
    n = min(N_ON_SHEET, len(named))
    shown = [named[index * len(named) // n] for index in range(n)]
    width, height = _CELL_WH
    sheet = Image.new("RGB", (_COLUMNS * width, math.ceil(n / _COLUMNS) * (height + _CAPTION)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for place, (split, row) in enumerate(shown):
        left, top = place % _COLUMNS * width, place // _COLUMNS * (height + _CAPTION)
        image = load_image(image_paths(row, root)[0], what=f"row {row['row_id']}")
        boxes = (predicted or {}).get(row["row_id"], ())
        picture = draw_boxes(image, gold=boxes_of(row["gold"]), predicted=boxes)
        picture.thumbnail((width - 8, height - 8), Image.Resampling.LANCZOS)
        sheet.paste(picture, (left + 4, top + _CAPTION))
        asked = ", ".join(f"{n} x {name}" if n > 1 else name for name, n in Counter(classes_of(row)).items()) or str(
            row.get("phrase") or row.get("instruction") or row.get("problem", "")
        )
        pen.text((left + 4, top + 2), drawable(f"{split} {row['row_id']}")[:34], fill="#555555", font=font)
        asked += f": {row['gold']}" if isinstance(row["gold"], int) else ""
        pen.text((left + 4, top + 17), drawable(asked)[:34], fill="black", font=font)
    return sheet


def classes_of(row: Row) -> list[str]:
    gold = row["gold"]
    if isinstance(gold, str):
        return [gold]
    if isinstance(gold, list) and gold and isinstance(gold[0], dict):
        return [box["label"] for box in gold]
    category = row.get("category")  # anything, if the task does not read it
    return [str(category)] if category and isinstance(category, str | int) else []


def summary(splits: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Yield text lines with the rows, images, sizes, boxes and classes of each split."""
    for split, rows in splits.items():
        if not rows:
            keys = "dataset.n_validation and dataset.n_test set how many rows are held out" if split != "test" else ""
            yield f"{split:12} no rows{f' ({keys})' if keys else ''}"
            continue
        n_images = len({path for row in rows for path in row["images"]})
        boxes = [len(boxes_of(row["gold"])) for row in rows]
        sides = np.array([row["image_wh"] for row in rows])
        smallest, largest = (" × ".join(map(str, pick(sides, axis=0))) for pick in (np.min, np.max))
        classes = Counter(name for row in rows for name in classes_of(row))
        yield (
            f"{split:12} {len(rows)} rows, {n_images} images of {smallest} to {largest} pixels, "
            f"{sum(boxes)} boxes ({min(boxes)} to {max(boxes)} a row, {boxes.count(0)} rows without)"
        )
        if classes:
            shown = ", ".join(f"{name} {n}" for name, n in classes.most_common(8))
            yield f"{'':12} {len(classes)} classes: {shown}{' …' if len(classes) > 8 else ''}"
