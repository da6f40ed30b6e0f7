"""Saving a model so that transformers, and vrft itself, can load it back."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import transformers


def save_checkpoint(trainer: transformers.Trainer, processor, folder: Path, card: dict) -> None:
    """Write model (or adapter), processor and `vrft.json` to `folder`, replacing what is there once all is written.

    card: how the checkpoint is to be asked (task, thinking, family, pixel limits) and where it comes from. All
    processes call this; the main one writes.
    """
    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # under ZeRO-3 only the engine can gather
    if not trainer.accelerator.is_main_process:
        return
    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(staging, state_dict=state_dict)
    processor.save_pretrained(staging)
    (staging / "vrft.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def newest_checkpoint(folder: Path) -> Path | None:
    """The trainer's own checkpoint with the most steps in `folder` (`checkpoint-STEP`, with optimizer and RNG
    states), or None."""
    complete = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(complete, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The step at which a trainer's checkpoint was saved, by its name."""
    return int(re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)[1])


def rewind_logs(run_dir: Path, step: int) -> list[dict]:
    """Cut `metrics.jsonl` and `rollouts/` back to what was known at `step`, and return the log entries that stay."""
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    entries = [entry for entry in map(json.loads, lines) if entry["step"] <= step] if step else []
    metrics.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    for path in (run_dir / "rollouts").glob("step_*.jsonl"):
        if int(path.stem.split("_")[1]) >= step:  # rollouts of step s lead to step s + 1
            path.unlink()
    return entries
