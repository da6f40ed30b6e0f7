"""The model checkpoints `best` and `last`, and the logs, brought back to the step that a run resumes from."""

from __future__ import annotations

import json
from pathlib import Path

import transformers
from pydantic import BaseModel

from vrft.errors import UserError
from vrft.files import check_whole, publish, read_rows, read_written, remove, write_text_atomically
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
    remove(staging)
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(staging, state_dict=state_dict)
    for setting in ("no_padding", "no_truncation"):  # else tokenizer.json would keep those of the latest batch
        getattr(processor.tokenizer.backend_tokenizer, setting)()
    processor.save_pretrained(staging)
    (staging / "vrft.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    publish(staging, folder, previous=previous(folder))


def previous(folder: Path) -> Path:
    """Where `save_checkpoint` keeps what it replaces, until the next trainer checkpoint is complete."""
    return folder.with_name(folder.name + ".previous")


class _HasStep(BaseModel):
    step: int


def settle_best(folder: Path, step: int | None) -> str | None:
    """Leave in `folder` the checkpoint of `step`, the best up to where training resumes; None if it is there.

    It may have been replaced since, and then lies in `previous`. step: None if there was none. Checkpoints of other
    steps are removed. Returns what is wrong if the right one is gone or damaged.
    """
    faults = [] if folder.exists() else [f"{folder} is gone"]
    for path in filter(Path.exists, (folder, previous(folder))):
        try:
            check_whole(path)
            found = read_written(path / "vrft.json", _HasStep)["step"]
        except UserError as error:
            faults.append(str(error))
            continue
        if found == step:
            if path != folder:
                remove(folder)
                path.rename(folder)
            faults, step = [], None
        else:
            remove(path)
            faults.append(f"{path} was of step {found}")
    remove(previous(folder))
    return "; ".join(faults) if step is not None else None


def rewind(file: Path, step: int) -> list[dict]:
    """Remove the lines of later steps from a JSON-lines file; returns the lines that stay."""
    if not file.is_file():
        return []
    entries = read_rows(file, _HasStep, may_be_cut=True) if step else []
    entries = [entry for entry in entries if entry["step"] <= step]
    write_text_atomically(file, "".join(json.dumps(entry) + "\n" for entry in entries), is_lasting=True)
    return entries


def rewind_rollouts(folder: Path, step: int) -> None:
    """Remove the rollouts that a run resumed at `step` samples again: file s holds those for step s + 1."""
    for path in folder.glob("step_*.jsonl"):
        if int(path.stem.split("_")[1]) >= step:
            path.unlink()
