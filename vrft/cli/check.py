"""`vrft check`: a look at an experiment's rows before anything is trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vrft.config.freeze import faults_of
from vrft.config.schema import Config, Memory
from vrft.config.work import WORK
from vrft.errors import raise_all
from vrft.evaluate.score import answer_as_json
from vrft.files import write_text_atomically
from vrft.report.contact_sheet import contact_sheet, summary
from vrft.report.draw import boxes_of, save_image
from vrft.run.context import RunContext, check_questions, make_experiment, question_lengths
from vrft.run.directory import fresh_run_dir
from vrft.run.rows import prepare_rows
from vrft.tasks import MixedTask, Task
from vrft.tasks.boxes import Frame, iou_matrix
from vrft.tasks.rows import Row
from vrft.terminal import progress_bar

_LOW_IOU = 0.95


def run(config: Config) -> None:
    """The verb `check`: build the rows, read every gold back, count tokens, and draw a sheet of golds, in `run.dir`.

    Raises `UserError` for rows that training would refuse, and for a gold that its own task cannot read back; for
    questions that are too long after all else, so that the figures are there to choose by.
    """
    out = Path(config.run.dir)
    with fresh_run_dir(out, is_resuming=False):
        _, splits, _ = prepare_rows(config, out)
        experiment = make_experiment(out, config, splits)
        report = {
            "n_rows": {split: len(rows) for split, rows in splits.items()},
            "gold_boxes": gold_figures(experiment.task, splits, experiment.frame_for_row),
            "tokens": token_figures(experiment),
        }
        write_text_atomically(out / "check.json", json.dumps(report, indent=2) + "\n")
        save_image(contact_sheet(splits, root=out / "data"), out / "golds.png")
    print("\n".join([*summary(splits), *_told(report, config.memory)]))
    print(f"golds drawn: {out / 'golds.png'}")
    for fault in faults_of(config, WORK["train"], device=config.derived.device, is_remote=True):
        print(f"warning: vrft train would refuse this config: {fault}", file=sys.stderr)
    check_questions(experiment)


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
                gold, answer = (
                    [box for box, _ in boxes_of(value)] for value in (row["gold"], answer_as_json(parsed.answer))
                )
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


def token_figures(experiment: RunContext) -> dict[str, Any]:
    """Tokens of questions (images included) and of gold completions, and how many rows exceed `memory`'s limits."""
    memory, tokenizer = experiment.config.memory, experiment.processor.tokenizer
    rows = [row for of_split in experiment.rows.values() for row in of_split]
    prompts, golds = [], []
    bar = progress_bar(rows, desc="count tokens", unit="row")
    for row, (n_tokens, _) in zip(bar, question_lengths(experiment, rows), strict=True):
        prompts.append(n_tokens)
        golds.append(len(tokenizer(experiment.task.gold(row, experiment.frame_for_row(row)))["input_ids"]) + 1)
    limits = {"question": (prompts, memory.max_prompt_length), "gold": (golds, memory.max_completion_length)}
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


def _told(report: Mapping[str, Any], memory: Memory) -> Iterator[str]:
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
            f"exceed {keys[name]}={figures['limit']} (memory.max_pixels={memory.max_pixels})"
        )
