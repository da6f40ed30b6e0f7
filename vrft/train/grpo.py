"""GRPO by TRL's trainer, with the terms of a task as its reward functions."""

from __future__ import annotations

import functools
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import PartialState
from peft import PeftConfig
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from vrft.files import append_lines
from vrft.models.generate import end_token_ids
from vrft.models.vllm import as_seen, collapse_image_tokens
from vrft.tasks.answers import REASONS
from vrft.tasks.base import Task
from vrft.tasks.boxes import Frame
from vrft.tasks.reward import Judge
from vrft.tasks.reward_terms import without_repetition
from vrft.tasks.rows import Row
from vrft.train.dataset import training_dataset
from vrft.train.resume import Resumable
from vrft.train.shared_prefix import SharedPrefixTrainer


class ResumableGRPO(Resumable, GRPOTrainer):
    """TRL's own path."""


class ResumableSharing(Resumable, SharedPrefixTrainer):
    """Each prompt computed once."""


def grpo_trainer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    rows: Sequence[Row],
    root: Path,
    task: Task,
    frame_for_row: Callable[[Row], Frame],
    judge: Judge,
    arguments: dict,
    rollouts: Path,
    sharing: str | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> GRPOTrainer:
    """TRL's trainer, or the one that computes each prompt once, ready to train `model` on the rows.

    judge: what a completion earns; a term of weight 0 is logged and not optimised.
    arguments: fields of `trl.GRPOConfig`.
    rollouts: folder to which every completion is written with its terms, one JSON-lines file a step and process.
    sharing: `auto` to share a prompt among its completions where possible, `on` to raise where not, None for TRL's own.
    """
    failures = Counter()
    make = ResumableGRPO
    if sharing:
        make = functools.partial(ResumableSharing, must_share=sharing == "on")
    if arguments.get("use_vllm"):
        make = functools.partial(ResumableSharingVLLM, must_share=sharing == "on") if sharing else ResumableVLLM
        # As TRL has it for transformers: an image token that was sampled would have no image.
        biased = {"logit_bias": {model.config.image_token_id: -100.0}}
        arguments = arguments | {"generation_kwargs": biased | (arguments.get("generation_kwargs") or {})}
    trainer = make(
        model=model,
        processing_class=processor,
        args=GRPOConfig(**arguments, reward_weights=[weight for _, weight in judge.columns]),
        reward_funcs=reward_functions(
            task,
            {row["row_id"]: row for row in rows},
            frame_for_row,
            judge=judge,
            end_ids=end_token_ids(model, processor),
            rollouts=rollouts,
            failures=failures,
        ),
        train_dataset=training_dataset(rows, root, question=lambda row: task.question(row, frame_for_row(row))),
        peft_config=peft_config,
        callbacks=list(callbacks),
    )
    trainer.counts = failures
    return trainer


def reward_functions(
    task: Task,
    rows: Mapping[str, Row],
    frame_for_row: Callable[[Row], Frame],
    *,
    judge: Judge,
    end_ids: Sequence[int],
    rollouts: Path,
    failures: Counter,
) -> list[Callable]:
    """One function for each of `judge.columns`, in TRL's calling convention; each returns the unweighted term of every
    completion, None where the row's task has no such term.

    The first also logs the share of readable answers (`parse_rate`, `unreadable/REASON`) and on how many completions so
    far a term of the user's own has failed (`term_faults/NAME`, counted in `failures`), and writes the rollouts, which
    name these terms (`failed_terms`).
    """

    @functools.lru_cache(maxsize=4096)  # every term's function asks for the same batch
    def judged(row_id: str, text: str, is_truncated: bool) -> dict:
        row = rows[row_id]
        parsed = task.parse(text, row, frame_for_row(row), is_truncated=is_truncated)
        seen = {
            "row_id": row_id,
            "text": parsed.text,
            "reason": parsed.reason,
            "is_truncated": is_truncated,
            "repetition": 1.0 - without_repetition(parsed.text),
            "confidence_gap": None if parsed.answer is None else task.for_row(row).confidence_gap(parsed.answer, row),
        }
        n_faults = Counter(judge.faults)
        case = {**seen, **judge(parsed, row)}
        failed = sorted(judge.faults - n_faults)
        return {**case, "failed_terms": failed} if failed else case

    def judge_batch(completions: list, completion_ids: list, row_id: list) -> list[dict]:
        texts = [completion[0]["content"] for completion in completions]
        truncated = [not ids or ids[-1] not in end_ids for ids in completion_ids]
        return [judged(*case) for case in zip(row_id, texts, truncated, strict=True)]

    def term_function(name: str, weight: float, *, is_first: bool) -> Callable:
        def reward(completions, completion_ids, row_id, trainer_state, log_metric, **kwargs) -> list[float | None]:
            batch = judge_batch(completions, completion_ids, row_id)
            if is_first:
                log_reading(batch, log_metric)
                failures.update(term for case in batch for term in case.get("failed_terms", ()))
                for term, n_failures in failures.items():
                    log_metric(f"term_faults/{term}", n_failures)
                write_rollouts(batch, rollouts, step=trainer_state.global_step)
            has_term = [judge.weights(rows[one]).get(name) == weight for one in row_id]
            return [case["terms"][name] if has else None for case, has in zip(batch, has_term, strict=True)]

        reward.__name__ = name if weight == first_weight[name] else f"{name}@{weight:g}"
        return reward

    first_weight = dict(reversed(judge.columns))
    return [term_function(*column, is_first=index == 0) for index, column in enumerate(judge.columns)]


def log_reading(batch: Sequence[dict], log_metric: Callable[[str, float], None]) -> None:
    """Log the share of completions that were read and of each reason why not, how much they repeat themselves, and how
    far their stated confidences lie above their overlap."""
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


class SeenImages:
    """Mixed into TRL's trainer. TRL sends images as they are in the rows, and vLLM resizes by the checkpoint's limits:
    other pixels, and another number of image tokens than the prompt has. In the process it also sends a place for every
    patch, to which vLLM (0.30) adds its own: N patches became 2 N - 1. A server is told where the images stand."""

    def _generate_single_turn(self, prompt_ids, images, *args, **kwargs):
        seen = {}  # the completions of a prompt have one image
        for image in (image for own in images or () for image in own or ()):
            if id(image) not in seen:
                seen[id(image)] = as_seen(image, self.processing_class)
        if images is not None:
            images = [own and [seen[id(image)] for image in own] for own in images]
            if self.vllm_mode == "colocate":
                token = self.processing_class.image_token_id
                prompt_ids = [collapse_image_tokens(ids, token) for ids in prompt_ids]
        return super()._generate_single_turn(prompt_ids, images, *args, **kwargs)


class ResumableVLLM(Resumable, SeenImages, GRPOTrainer):
    """Completions by vLLM, all else TRL's own path."""


class ResumableSharingVLLM(Resumable, SeenImages, SharedPrefixTrainer):
    """Completions by vLLM; in the loss each prompt is computed once."""
