"""The supervised baseline by TRL's trainer, on the same rows as GRPO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from peft import PeftConfig
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback
from trl import SFTConfig, SFTTrainer

from vrft.tasks.base import Task
from vrft.tasks.boxes import Frame
from vrft.tasks.rows import Row
from vrft.train.dataset import training_dataset
from vrft.train.trl_overrides import Resumable


class ResumableSFT(Resumable, SFTTrainer):
    """Resumable as GRPO is; a batch keeps the `row_id`s of its rows."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        collate = self.data_collator
        self.data_collator = lambda rows: {**collate(rows), "row_id": [row["row_id"] for row in rows]}


def sft_trainer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    rows: Sequence[Row],
    root: Path,
    task: Task,
    frame_for_row: Callable[[Row], Frame],
    thought: str,
    arguments: dict,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **resumable,
) -> SFTTrainer:
    """TRL's trainer, ready to train `model` on the golds of the rows; the loss is on the completion only.

    thought: `gold` (the row's own, which every row has), `empty` (empty think tags), `none` (no think tags) or
    `own` (the row's column `own_completion` as it stands).
    arguments: fields of `trl.SFTConfig`. resumable: further arguments of `vrft.train.trl_overrides.Resumable`.
    """
    return ResumableSFT(
        model=model,
        processing_class=processor,
        args=SFTConfig(**{"remove_unused_columns": False, **arguments}),  # the batches keep row_id
        train_dataset=training_dataset(
            rows,
            root,
            question=lambda row: task.question(row, frame_for_row(row)),
            completion=lambda row: (
                row["own_completion"] if thought == "own" else task.gold(row, frame_for_row(row), thought)
            ),
        ),
        peft_config=peft_config,
        callbacks=list(callbacks),
        **resumable,
    )
