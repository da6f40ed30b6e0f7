"""The model checkpoints `best` and `last`, and the logs, brought back to the step that a run resumes from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import transformers

from vrft.errors import UserError
from vrft.files import publish, write_text_atomically
from vrft.train.deepspeed_state import gathered_weights


def save_checkpoint(trainer: transformers.Trainer, processor, folder: Path, card: dict) -> None:
    """Write model (or adapter), processor and `vrft.json` to `folder`; an older one is replaced once all is written.

    The older one is kept as `folder.previous` until the next trainer checkpoint, so that a resume can roll `best` back.
    An existing `.previous` is not overwritten. All processes call this; the main one writes.
    card: how the checkpoint is to be prompted (task, thinking, family, pixel limits) and where it comes from.
    """
    state_dict = gathered_weights(trainer)
    if not trainer.accelerator.is_main_process:
        return
    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(staging, state_dict=state_dict)
    for setting in ("no_padding", "no_truncation"):  # else tokenizer.json would keep those of the latest batch
        getattr(processor.tokenizer.backend_tokenizer, setting)()
    processor.save_pretrained(staging)
    (staging / "vrft.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    publish(staging, folder, previous=previous(folder))


def previous(folder: Path) -> Path:
    """Where `save_checkpoint` keeps what it replaces, until the next trainer checkpoint is complete."""
    return folder.with_name(folder.name + ".previous")


def settle_best(folder: Path, step: int) -> None:
    """Roll `folder` back to the best checkpoint as of `step`, where training resumes; remove it if there was none."""
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
    """Remove the lines of later steps from a JSON-lines file; returns the lines that stay."""
    if not file.is_file():
        return []
    *lines, _ = file.read_text(encoding="utf-8").split("\n")  # a killed process leaves half a line at the end
    entries = []
    for number, line in enumerate(lines if step else [], 1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{file}, line {number}: not JSON ({error}); mend or delete that line to resume") from None
    entries = [entry for entry in entries if entry["step"] <= step]
    write_text_atomically(file, "".join(json.dumps(entry) + "\n" for entry in entries), is_lasting=True)
    return entries


def rewind_rollouts(folder: Path, step: int) -> None:
    """Remove the rollouts that a run resumed at `step` samples again: file s holds those for step s + 1."""
    for path in folder.glob("step_*.jsonl"):
        if int(path.stem.split("_")[1]) >= step:
            path.unlink()
