"""The verbs `build` and `check`: rows from annotations, and a look at them before anything is trained."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from vrft.boxes import Frame, iou_matrix
from vrft.data.images import load_image
from vrft.data.splits import MANIFEST_FILE
from vrft.draw import LabelledBox, boxes_of, draw_boxes
from vrft.errors import UserError, raise_all
from vrft.evaluate.score import plain
from vrft.experiment import fresh_run_dir
from vrft.rows import Row, image_paths, write_text_atomically
from vrft.run_directory import Experiment, make_experiment, question_lengths
from vrft.run_rows import build_rows, warn_of_frames
from vrft.tasks import MixedTask, Task

N_ON_SHEET = 48
_COLUMNS, _CELL_WH, _CAPTION = 8, (240, 240), 34  # of the sheet, in pixels
_LOW_IOU = 0.95


def build(config: dict[str, Any]) -> None:
    """The verb `build`: write the rows of every split to `out`, where `dataset=built dataset.path=OUT` finds them."""
    out = Path(config["out"])
    if (out / MANIFEST_FILE).is_file():
        raise UserError(f"out is {out}, which holds finished rows ({MANIFEST_FILE}); choose another, or delete it")
    with fresh_run_dir(out, is_resuming=config["run"]["resume"], key="out"):
        splits = build_rows(config, out)
    print("\n".join(summary(splits)))
    print(f"rows: {out}")


def check(config: dict[str, Any]) -> None:
    """The verb `check`: build the rows, read every gold back, count tokens, and draw a sheet of golds, in `run.dir`.

    Raises `UserError` for what training would refuse, and for a gold that its own task cannot read back.
    """
    out = Path(config["run"]["dir"])
    with fresh_run_dir(out, is_resuming=False):
        splits = build_rows(config, out / "data")
        warn_of_frames(splits, config)
        experiment = make_experiment(out, config, splits)
        report = {
            "n_rows": {split: len(rows) for split, rows in splits.items()},
            "gold_boxes": gold_figures(experiment.task, splits, experiment.frame_for_row),
            "tokens": token_figures(experiment),
        }
        write_text_atomically(out / "check.json", json.dumps(report, indent=2) + "\n")
        contact_sheet(splits, root=out / "data").save(out / "golds.png")
    print("\n".join([*summary(splits), *_told(report, config["memory"])]))
    print(f"golds drawn: {out / 'golds.png'}")


def summary(splits: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Yield lines on rows, images, sizes, boxes and classes of each split."""
    for split, rows in splits.items():
        if not rows:
            keys = "dataset.n_validation and dataset.n_test say how many are set apart" if split != "test" else ""
            yield f"{split:12} no rows{f' ({keys})' if keys else ''}"
            continue
        n_images = len({path for row in rows for path in row["images"]})
        boxes = [len(boxes_of(row["gold"])) for row in rows]
        sides = np.array([row["image_wh"] for row in rows])
        smallest, largest = (" × ".join(map(str, pick(sides, axis=0))) for pick in (np.min, np.max))
        classes = Counter(name for row in rows for name in _classes(row))
        yield (
            f"{split:12} {len(rows)} rows, {n_images} images of {smallest} to {largest} pixels, "
            f"{sum(boxes)} boxes ({min(boxes)} to {max(boxes)} a row, {boxes.count(0)} rows without)"
        )
        if classes:
            shown = ", ".join(f"{name} {n}" for name, n in classes.most_common(8))
            yield f"{'':12} {len(classes)} classes: {shown}{' …' if len(classes) > 8 else ''}"


def gold_figures(
    task: Task | MixedTask, splits: Mapping[str, Sequence[Row]], frame_for_row: Callable[[Row], Frame]
) -> dict[str, Any]:
    """How well gold boxes survive being written in the model's frame and read back, by their IoU with themselves.

    `{"n", "n_exact", "n_below_0.95", "lowest", "lowest_row", "n_merged"}`, the last those that became equal to another
    of their row. Raises `UserError` naming each row whose gold is not
    read back.
    """
    kept, faults, n_merged = [], [], 0
    for split, rows in splits.items():
        for row in rows:
            frame = frame_for_row(row)
            parsed = task.parse(task.gold(row, frame), row, frame)
            if parsed.reason is not None:
                faults.append(f"{split}, row {row['row_id']}: gold {str(row['gold'])[:200]} ({parsed.reason})")
            elif task.for_row(row).answer_kind in ("box", "boxes") and row["gold"]:
                gold, answer = ([box for box, _ in boxes_of(value)] for value in (row["gold"], plain(parsed.answer)))
                n_merged += len(gold) - len(answer)
                ious = iou_matrix(gold, answer)
                of_each = ious.diagonal() if len(gold) == len(answer) else ious.max(axis=1)
                kept += [(float(iou), row["row_id"]) for iou in of_each]
    raise_all(faults, heading="Golds that their task cannot read back, written as the model would write them:")
    ious = [iou for iou, _ in kept]
    lowest, row_id = min(kept, default=(None, None))
    n_low = sum(iou < _LOW_IOU for iou in ious)
    return {
        "n": len(ious),
        "n_exact": sum(iou > 1 - 1e-9 for iou in ious),
        "n_below_0.95": n_low,
        "lowest": lowest,
        "lowest_row": row_id,
        "n_merged": n_merged,
    }


def token_figures(experiment: Experiment) -> dict[str, Any]:
    """Tokens of questions (images included) and of gold completions, and how many rows exceed `memory`'s limits."""
    memory, tokenizer = experiment.config["memory"], experiment.processor.tokenizer
    rows = [row for of_split in experiment.rows.values() for row in of_split]
    prompts, golds = [], []
    bar = tqdm(rows, desc="count tokens", unit=" rows", disable=None)
    for row, (n_tokens, _) in zip(bar, question_lengths(experiment, rows), strict=True):
        prompts.append(n_tokens)
        golds.append(len(tokenizer(experiment.task.gold(row, experiment.frame_for_row(row)))["input_ids"]) + 1)
    limits = {"question": (prompts, memory["max_prompt_length"]), "gold": (golds, memory["max_completion_length"])}
    return {
        name: {
            "median": float(np.median(counts)),
            "max": int(max(counts)),
            "limit": limit,
            "n_above": sum(count > limit for count in counts),
        }
        for name, (counts, limit) in limits.items()
        if counts
    }


def contact_sheet(
    splits: Mapping[str, Sequence[Row]], *, root: Path, predicted: Mapping[str, Sequence[LabelledBox]] | None = None
) -> Image.Image:
    """A sheet of up to 48 rows, evenly from all splits, with their golds drawn: a wrong frame is seen at once.

    predicted: by row, the boxes of an answer, drawn beside the golds.
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
        asked = ", ".join(f"{n} × {name}" if n > 1 else name for name, n in Counter(_classes(row)).items()) or str(
            row.get("phrase") or row.get("instruction") or row.get("problem", "")
        )
        pen.text((left + 4, top + 2), f"{split} {row['row_id']}"[:34], fill="#555555", font=font)
        asked += f": {row['gold']}" if isinstance(row["gold"], int) else ""
        pen.text((left + 4, top + 17), asked[:34], fill="black", font=font)
    return sheet


def _classes(row: Row) -> list[str]:
    gold = row["gold"]
    if isinstance(gold, str):
        return [gold]
    if isinstance(gold, list) and gold and isinstance(gold[0], dict):
        return [box["label"] for box in gold]
    return [row["category"]] if row.get("category") else []


def _told(report: Mapping[str, Any], memory: Mapping[str, Any]) -> Iterator[str]:
    gold = report["gold_boxes"]
    if gold["n"]:
        yield (
            f"gold boxes   written in the model's frame and read back, {gold['n_exact']} of {gold['n']} keep an IoU of "
            f"1, {gold['n_below_0.95']} fall below 0.95; the lowest is {gold['lowest']:.3f} (row {gold['lowest_row']})"
            + (f"; {gold['n_merged']} became equal to another of their row" if gold["n_merged"] else "")
        )
    keys = {"question": "memory.max_prompt_length", "gold": "memory.max_completion_length"}
    for name, figures in report["tokens"].items():
        yield (
            f"{name + ' tokens':12} median {figures['median']:g}, most {figures['max']}; {figures['n_above']} rows "
            f"exceed {keys[name]}={figures['limit']} (memory.max_pixels={memory['max_pixels']})"
            + (", and would be refused" if figures["n_above"] and name == "question" else "")
        )
