"""Saving a model so that transformers, and vrft itself, can load it back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import transformers


def save_checkpoint(trainer: transformers.Trainer, processor, folder: Path, card: dict) -> None:
    """Write model (or adapter), processor and `vrft.json` to `folder`, replacing what is there once all is written.

    card: how the checkpoint is to be asked (task, thinking, family, pixel limits) and where it comes from. All processes call this; the
    main one writes.
    """
    state_dict = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.accelerator.is_main_process:
        return
    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(staging, state_dict=state_dict)
    processor.save_pretrained(staging)
    (staging / "vrft.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
