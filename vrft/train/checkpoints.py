"""Models saved so that transformers, and vrft itself, can load them back; the logs that belong to a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import transformers

from vrft.errors import UserError
from vrft.files import publish, write_text_atomically
from vrft.train.deepspeed_state import gathered_weights


def save_checkpoint(trainer: transformers.Trainer, processor, folder: Path, card: dict) -> None:
    """Write model (or adapter), processor and `vrft.json` to `folder`, replacing what is there once all is written.

    What is there first becomes `folder.previous` unless there is one, which `settle_best` needs; whoever completes a
    trainer's checkpoint removes it.
    card: how the checkpoint is to be asked (task, thinking, family, pixel limits) and where it comes from. All
    processes call this; the main one writes.
    """
    state_dict = gathered_weights(trainer)
    if not trainer.accelerator.is_main_process:
        return
    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(staging, state_dict=state_dict)
    for setting in ("no_padding", "no_truncation"):  # of the latest batch, which tokenizer.json would keep
        getattr(processor.tokenizer.backend_tokenizer, setting)()
    processor.save_pretrained(staging)
    (staging / "vrft.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    publish(staging, folder, previous=previous(folder))


def previous(folder: Path) -> Path:
    """Where what `save_checkpoint` replaces is kept until the next of the trainer's checkpoints is complete."""
    return folder.with_name(folder.name + ".previous")


def settle_best(folder: Path, step: int) -> None:
    """Make `folder` the best checkpoint as of `step`, from which training goes on, or remove it if there was none."""
    kept = previous(folder)
    if kept.exists():
        card = folder / "vrft.json"
        if card.is_file() and json.loads(card.read_text(encoding="utf-8"))["step"] <= step:
            shutil.rmtree(kept)
        else:
            shutil.rmtree(folder, ignore_errors=True)
            kept.rename(folder)
    card = folder / "vrft.json"
    if card.is_file() and json.loads(card.read_text(encoding="utf-8"))["step"] > step:
        shutil.rmtree(folder)


def rewind(file: Path, step: int) -> list[dict]:
    """Cut a JSON-lines file whose lines have a `step` back to what was known at that step; the lines that stay."""
    if not file.is_file():
        return []
    *lines, _ = file.read_text(encoding="utf-8").split("\n")  # the last was being written as the process was killed
    entries = []
    for number, line in enumerate(lines if step else [], 1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{file}, line {number}: not JSON ({error}); mend or delete that line to go on") from None
    entries = [entry for entry in entries if entry["step"] <= step]
    write_text_atomically(file, "".join(json.dumps(entry) + "\n" for entry in entries), is_lasting=True)
    return entries


def rewind_rollouts(folder: Path, step: int) -> None:
    """Remove the rollouts of later steps; those of step s lead to step s + 1."""
    for path in folder.glob("step_*.jsonl"):
        if int(path.stem.split("_")[1]) >= step:
            path.unlink()
