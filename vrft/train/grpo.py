"""GRPO by TRL's trainer, with the terms of a task as its reward functions."""

from __future__ import annotations

import functools
import logging
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from peft import PeftConfig
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from vrft.files import append_lines
from vrft.models.generate import end_token_ids
from vrft.tasks.answers import REASONS
from vrft.tasks.base import Task
from vrft.tasks.boxes import Frame
from vrft.tasks.reward import RewardFunction
from vrft.tasks.reward_terms import without_repetition
from vrft.tasks.rows import Row
from vrft.train.dataset import training_dataset
from vrft.train.trl_overrides import ResumableGRPOMixin, SeenImages, SharedPrefixTrainer


class ResumableGRPO(ResumableGRPOMixin, GRPOTrainer):
    """TRL's own path."""


class ResumableSharing(ResumableGRPOMixin, SharedPrefixTrainer):
    """Each prompt computed once."""


class ResumableVLLM(ResumableGRPOMixin, SeenImages, GRPOTrainer):
    """Completions by vLLM, all else TRL's own path."""


class ResumableSharingVLLM(ResumableGRPOMixin, SeenImages, SharedPrefixTrainer):
    """Completions by vLLM; in the loss each prompt is computed once."""


def grpo_trainer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    rows: Sequence[Row],
    root: Path,
    task: Task,
    frame_for_row: Callable[[Row], Frame],
    judge: RewardFunction,
    arguments: dict,
    rollouts: Path,
    sharing: str | None = None,
    revision: str | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **resumable,
) -> GRPOTrainer:
    """TRL's trainer, or the one that computes each prompt once, ready to train `model` on the rows.

    judge: what a completion earns; a term of weight 0 is logged and not optimised.
    arguments: fields of `trl.GRPOConfig`.
    rollouts: folder to which every completion is written with its terms, one JSON-lines file a step and process.
    revision: of the hub repository that the policy is from, for the KL reference; None for its newest.
    sharing: `auto` to share a prompt among its completions where possible, `on` to raise where not, None for TRL's own.
    resumable: further arguments of `vrft.train.trl_overrides.Resumable`.
    """
    make = ResumableGRPO
    if sharing:
        make = functools.partial(ResumableSharing, must_share=sharing == "on")
    if arguments.get("use_vllm"):
        make = functools.partial(ResumableSharingVLLM, must_share=sharing == "on") if sharing else ResumableVLLM
        # TRL forbids the image token where transformers samples: a sampled one would have no image.
        biased = {"logit_bias": {model.config.image_token_id: -100.0}}
        arguments = arguments | {"generation_kwargs": biased | (arguments.get("generation_kwargs") or {})}
    judged = Rollouts(
        task,
        {row["row_id"]: row for row in rows},
        frame_for_row,
        reward=judge,
        end_ids=end_token_ids(model, processor),
        folder=rollouts,
    )
    # TRL loads the KL reference by the policy's name. It does not know how the policy was loaded. Without the
    # architecture it would also read the config of the newest revision.
    reference = {"architecture": AutoModelForImageTextToText, "revision": revision, "use_safetensors": True}
    weights = [weight for _, weight in judge.columns]
    with _no_warning_of("model_init_kwargs"):  # TRL says that it ignores them, which is true of the policy alone
        trainer = make(
            model=model,
            processing_class=processor,
            args=GRPOConfig(**arguments, reward_weights=weights, model_init_kwargs=reference),
            reward_funcs=judged.term_rewards(),
            train_dataset=training_dataset(rows, root, question=lambda row: task.question(row, frame_for_row(row))),
            peft_config=peft_config,
            callbacks=list(callbacks),
            counts=judged.failures,
            on_completions=judged.record,
            **resumable,
        )
    trainer.args.model_init_kwargs = None  # loggers write the arguments as JSON, which knows no class
    return trainer


@contextmanager
def _no_warning_of(words: str) -> Iterator[None]:
    """Within the block TRL's GRPO trainer logs no message with these words."""
    logger = logging.getLogger("trl.trainer.grpo_trainer")

    def passes(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


class Rollouts:
    """The completions of the policy, each judged once for all terms, logged and written to a file.

    failures: on how many completions so far each term of the user's own has failed.
    """

    def __init__(
        self,
        task: Task,
        rows: Mapping[str, Row],
        frame_for_row: Callable[[Row], Frame],
        *,
        reward: RewardFunction,
        end_ids: Sequence[int],
        folder: Path,
    ) -> None:
        """rows: by `row_id`. end_ids: the tokens of which one ends a completion that was not cut."""
        self.task, self.rows, self.frame_for_row = task, rows, frame_for_row
        self.reward, self.end_ids, self.folder = reward, end_ids, folder
        self.failures: Counter[str] = Counter()
        self._case = functools.lru_cache(maxsize=4096)(self._judge)  # each term asks for the same completions

    def term_rewards(self) -> list[TermReward]:
        """One for each of `reward.columns`; a term's further weights are named `TERM@WEIGHT`."""
        first_weight = dict(reversed(self.reward.columns))
        return [
            TermReward(self, term, weight, name=term if weight == first_weight[term] else f"{term}@{weight:g}")
            for term, weight in self.reward.columns
        ]

    def cases(self, completions: list, completion_ids: list, row_ids: list[str]) -> list[dict]:
        """What the file says of each completion. The arguments have the forms in which TRL passes them."""
        texts = [completion[0]["content"] for completion in completions]
        truncated = [not ids or ids[-1] not in self.end_ids for ids in completion_ids]
        return [self._case(*case) for case in zip(row_ids, texts, truncated, strict=True)]

    def record(
        self,
        completions: list,
        completion_ids: list,
        row_ids: list[str],
        *,
        step: int,
        log_metric: Callable[[str, float], None],
    ) -> None:
        """Judge the completions of a generation, log how they read, and write them to this step's file.

        Logged: the share of readable answers (`parse_rate`, `unreadable/REASON`), and on how many completions so far a
        term of the user's own has failed (`term_faults/NAME`).
        """
        batch = self.cases(completions, completion_ids, row_ids)
        log_reading(batch, log_metric)
        self.failures.update(term for case in batch for term in case.get("failed_terms", ()))
        for term, n_failures in self.failures.items():
            log_metric(f"term_faults/{term}", n_failures)
        write_rollouts(batch, self.folder, step=step)

    def _judge(self, row_id: str, text: str, is_truncated: bool) -> dict:
        row = self.rows[row_id]
        parsed = self.task.parse(text, row, self.frame_for_row(row), is_truncated=is_truncated)
        answer = parsed.answer
        case = {
            "row_id": row_id,
            "text": parsed.text,
            "reason": parsed.reason,
            "is_truncated": is_truncated,
            "repetition": 1.0 - without_repetition(parsed.text),
            "confidence_gap": None if answer is None else self.task.for_row(row).confidence_gap(answer, row),
        }
        n_faults = Counter(self.reward.faults)
        case |= self.reward(parsed, row)
        failed = sorted(self.reward.faults - n_faults)
        return {**case, "failed_terms": failed} if failed else case


class TermReward:
    """A term under one weight as TRL's reward function: the unweighted term of each completion.

    None where the row's task has no such term, or has it under another weight.
    """

    def __init__(self, rollouts: Rollouts, term: str, weight: float, *, name: str) -> None:
        self.rollouts, self.term, self.weight = rollouts, term, weight
        self.__name__ = name  # by which TRL logs it

    def __call__(self, completions: list, completion_ids: list, row_id: list[str], **_) -> list[float | None]:
        cases = self.rollouts.cases(completions, completion_ids, row_id)
        return [case["terms"][self.term] if self._applies(case) else None for case in cases]

    def _applies(self, case: Mapping) -> bool:
        row = self.rollouts.rows[case["row_id"]]
        return self.rollouts.reward.weights(row).get(self.term) == self.weight


def log_reading(batch: Sequence[dict], log_metric: Callable[[str, float], None]) -> None:
    """Log the share of readable answers, of each reason why one is not, and the means of `repetition` and
    `confidence_gap`."""
    for reason in REASONS:
        log_metric(f"unreadable/{reason}", sum(case["reason"] == reason for case in batch) / len(batch))
    log_metric("parse_rate", sum(case["reason"] is None for case in batch) / len(batch))
    for name in ("repetition", "confidence_gap"):
        known = [case[name] for case in batch if case[name] is not None]
        if known:
            log_metric(name, statistics.fmean(known))


def write_rollouts(batch: Sequence[dict], folder: Path, *, step: int) -> None:
    """Append the batch to this step's file of this process."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = PartialState().process_index
    name = f"step_{step:06d}_rank{rank}.jsonl" if rank else f"step_{step:06d}.jsonl"
    append_lines(folder / name, batch)
