"""TRL's trainers as vrft changes them: every method of TRL or transformers that vrft overrides is in this file.

Most are private to these libraries and may change in any release. `OVERRIDES` says why each is overridden. A test
compares the table with the classes, and the signatures with those of the versions below. The work is done by plain
functions in `checkpoints.py`, `shared_prefix.py` and `non_finite.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from vrft.errors import phase
from vrft.models.attention import register_attention
from vrft.models.shared_prefix import Prompts
from vrft.models.vllm import as_seen, collapse_image_tokens
from vrft.train import checkpoints, shared_prefix
from vrft.train.callbacks import Validation
from vrft.train.deepspeed_state import named_once, readable_state, recount_steps
from vrft.train.micro_batches import micro_batches
from vrft.train.non_finite import NonFiniteGuard
from vrft.train.prompt_once import KNOWN_PROCESSORS, PromptOnce
from vrft.train.unlike_trl import trainer_fault, unlike_trl

VERSIONS = {"trl": "1.16.0", "transformers": "5.23.0"}
"""The versions whose source was read."""

OVERRIDES = {
    # method: (defined by, why)
    "_get_train_sampler": ("trl", "`_run_epoch` needs the sampler"),
    "_run_epoch": ("transformers", "a resumed run repeats the draws of past epochs; an ended one takes no step"),
    "training_step": ("trl", "the watchdog and the non-finite guard learn which rows are trained on"),
    "compute_loss": ("trl", "under DeepSpeed the backward also steps: the loss is checked before it"),
    "_get_grad_norm": ("transformers", "the last call before the optimizer steps: the gradient is checked"),
    "evaluate": ("transformers", "the validation metric by generation, in place of a loss"),
    "create_model_card": ("trl", "TRL's card knows neither the model nor the task"),
    "_get_output_dir": ("transformers", "a checkpoint is written to a staging folder first"),
    "_save": ("transformers", "DeepSpeed's copies no longer share tied weights: each is saved once"),
    "_save_checkpoint": ("trl", "a checkpoint appears whole, with vrft's own state; old ones are removed after it"),
    "_load_from_checkpoint": ("transformers", "a whole model was loaded before; only an adapter is loaded here"),
    "_prepare_for_training": ("transformers", "DeepSpeed's state is read without running code, to the last bit"),
    "_load_rng_state": ("transformers", "a file that would run code is refused by the checkpoint's name"),
    "_load_optimizer_and_scheduler": ("trl", "as above; the last load of all, after which vrft's own state is loaded"),
    "_calculate_rewards": ("trl", "completions are written and logged once; groups with equal rewards are counted"),
    "_generate_and_score_completions": ("trl", "each distinct prompt is rendered and tokenized once"),
    "_generate_single_turn": ("trl", "each distinct prompt is computed once; vLLM gets images of the right size"),
    "_prepare_inputs": ("trl", "the completions of a prompt stay in one micro-batch"),
    "_compute_loss": ("trl", "rows that cannot change the loss are skipped"),
    "_get_per_token_logps_and_entropies": ("trl", "each distinct prompt is computed once"),
}


class Resumable:
    """Mixed into TRL's trainers: checkpoints that resume to the last bit, validation, a guard against NaN."""

    def __init__(
        self,
        *args,
        counts: Counter | None = None,
        validation: Validation | None = None,
        on_batch: Callable[[int, list[str]], None] | None = None,
        stops_on_non_finite: bool = False,
        **kwargs,
    ) -> None:
        """counts: saved and restored with the checkpoints. validation: is added to the callbacks.

        on_batch: called with the step and the `row_id`s of each batch before its loss is computed.
        stops_on_non_finite: True to raise `NonFiniteError` before the optimizer steps on NaN or infinity.
        """
        self.counts, self.validation, self.on_batch = counts, validation, on_batch
        self.non_finite = NonFiniteGuard(is_on=stops_on_non_finite)
        self._sampler: Any = None
        self._staging: Path | None = None
        self._resumed_step: int | None = None
        self._written: set[str] = set()  # names of checkpoints
        if validation:
            kwargs["callbacks"] = [*(kwargs.get("callbacks") or ()), validation]
        super().__init__(*args, **kwargs)
        self.args.eval_on_start = validation is not None  # transformers then calls `evaluate` before the first step

    def _get_train_sampler(self, *args, **kwargs) -> Any:
        self._sampler = super()._get_train_sampler(*args, **kwargs)
        return self._sampler

    def _run_epoch(self, *args, epoch: int, epochs_trained: int, **kwargs) -> None:
        # GRPO's sampler draws one epoch's order after the other from one generator, and transformers skips batches of
        # the current epoch only. Other samplers are seeded by the epoch's number.
        if isinstance(self._sampler, RepeatSampler) and epoch == epochs_trained:
            for _ in range(epochs_trained):
                next(iter(self._sampler))
        # transformers takes a step before it checks whether the training is over.
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            super()._run_epoch(*args, epoch=epoch, epochs_trained=epochs_trained, **kwargs)

    def training_step(self, model: torch.nn.Module, inputs: Any, *args, **kwargs) -> Tensor:
        ids = [row["row_id"] for row in inputs] if isinstance(inputs, list) else inputs.pop("row_id")
        rows = sorted(set(ids))
        if self.on_batch:
            self.on_batch(self.state.global_step + 1, rows)
        self.non_finite.begin_batch(rows)
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.non_finite.end_batch(loss)
        return loss

    def compute_loss(self, model: torch.nn.Module, inputs: Any, *args, **kwargs) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.is_deepspeed_enabled and isinstance(loss, Tensor):
            self.non_finite.check_loss(loss.detach(), self.args)
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.non_finite.check_gradient(norm, self.args)
        return norm

    def evaluate(self, **_) -> dict[str, float]:
        self.control.should_evaluate = False  # else the end of an epoch would evaluate the same step again
        if self.validation and self.validation.is_due(self.state):
            self.validation.take(self)
        return {}

    def create_model_card(self, *_, **__) -> None:
        pass

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict and named_once(self.model, state_dict))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self.state.global_step == self._resumed_step:
            return  # no step was taken since, and the checkpoint that is there was found whole
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        is_main, wait = self.args.should_save, self.accelerator.wait_for_everyone
        with checkpoints.staged(folder, is_main=is_main, wait=wait) as self._staging:
            super()._save_checkpoint(model, trial)
            checkpoints.save_own_state(self, self._staging / folder.name)
        self._staging = None
        self._written.add(folder.name)
        if is_main:
            limit, since = self.args.save_total_limit, self._resumed_step or 0
            checkpoints.remove_superfluous(folder.parent, limit=limit, resumed_step=since, written=self._written)
        wait()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        # A whole model was made from the checkpoint; its live parameter names differ from the saved ones.
        if isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    @phase("loading")
    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        with readable_state(), checkpoints.tensors_only(resume_from_checkpoint):
            made = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if resume_from_checkpoint:
            recount_steps(self.model_wrapped)
        return made

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with checkpoints.tensors_only(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with checkpoints.tensors_only(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._resumed_step = checkpoints.step_of(Path(checkpoint))
            checkpoints.load_own_state(self, Path(checkpoint))


class SharedPrefixTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` that shares prompts among the completions that lie on one device; see `shared_prefix.py`.

    Logged beside TRL's metrics: `shared_prefix/fraction` and `shared_prefix/fraction_sampled`, of the completions
    scored and sampled those that shared their prompt with another; `shared_prefix/skipped`, of the completions trained
    on those left out because they cannot change the loss (`entropy` is then that of the others).
    `frac_reward_zero_std` counts the groups whose rewards are all equal.
    """

    def __init__(self, *args, must_share: bool = False, **kwargs) -> None:
        """must_share: True to raise `UserError` where a batch cannot be shared; else it takes TRL's own path."""
        super().__init__(*args, **kwargs)
        register_attention()
        self.sharing = shared_prefix.Sharing(
            must_share=must_share,
            is_main_process=self.accelerator.is_main_process,
            fault=trainer_fault(self),
        )
        shared_prefix.check_settings(self)

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
        self.sharing.image_features.clear()
        processor = self.processing_class
        if self.sharing.fault is None and type(processor) in KNOWN_PROCESSORS:
            processor = PromptOnce(processor)
        with shared_prefix.replaced(self, "processing_class", processor):
            batch = super()._generate_and_score_completions(inputs)
        shared_prefix.metrics(self)["frac_reward_zero_std"][-1] = self.sharing.zero_variance
        return batch

    def _calculate_rewards(self, *args, **kwargs) -> Tensor:
        terms = super()._calculate_rewards(*args, **kwargs)
        group_size = self.num_generations if self.model.training else self.num_generations_eval
        self.sharing.zero_variance = shared_prefix.zero_variance_share(terms, self.reward_weights, group_size)
        return terms

    def _generate_single_turn(self, prompt_ids, images, *args, **kwargs) -> tuple[list[list[int]], Any]:
        # TRL pads the B rows and calls `generate` of the unwrapped model: that call is the one to replace.
        policy = self.accelerator.unwrap_model(self.model_wrapped)
        with shared_prefix.replaced(policy, "generate", shared_prefix.sharing_generate(self, policy, images)):
            return super()._generate_single_turn(prompt_ids, images, *args, **kwargs)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        generate_every = self.args.steps_per_generation * self.num_iterations
        is_buffered = self._step % generate_every and self._buffered_inputs is not None
        if is_buffered or not self.model.training or unlike_trl(self, self.model):
            return super()._prepare_inputs(generation_batch)
        # TRL shuffles rows before it splits a generation, which would spread a prompt over micro-batches.
        batch = self._generate_and_score_completions(generation_batch)
        self._buffered_inputs = micro_batches(batch, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        sharing = self.sharing
        sharing.skipped, sharing.inputs = shared_prefix.rows_without_effect(self, inputs), inputs
        try:
            loss = super()._compute_loss(model, inputs)
            if sharing.skipped.all():
                shared_prefix.metrics(self)["entropy"][-1] = math.nan  # there is none; logs leave it out
                policy, has_images = self.accelerator.unwrap_model(model), inputs.get("pixel_values") is not None
                shared_prefix.add_zero_gradients(policy, has_images=has_images)
                loss.requires_grad_()  # no forward has run, and a backward will be called
            share = sharing.skipped.float().mean().item()
        finally:
            sharing.skipped = sharing.inputs = None
        shared_prefix.log(self, "shared_prefix/skipped", share)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        num_images: Sequence[int] | None = None,
        **fields,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        n_prompt = input_ids.shape[1] - logits_to_keep
        prompts = input_ids[:, :n_prompt], attention_mask[:, :n_prompt], fields, num_images
        policy = self.accelerator.unwrap_model(model)
        fault = unlike_trl(self, policy, prompts, has_aux_loss=compute_aux_loss)
        batch = (model, input_ids, attention_mask, logits_to_keep)
        options = {"batch_size": batch_size, "compute_entropy": compute_entropy}
        if not self.sharing.refuses(fault):
            return *shared_prefix.score(self, *batch, prompts=Prompts.of(*prompts), **options), None
        shared_prefix.log(self, "shared_prefix/fraction", 0.0)
        if self.sharing.skipped is not None:
            self.sharing.skipped = torch.zeros_like(self.sharing.skipped)  # TRL's path computes them all
        options |= {"compute_aux_loss": compute_aux_loss, "num_images": num_images}
        return super()._get_per_token_logps_and_entropies(*batch, **options, **fields)


class SeenImages:
    """Mixed into TRL's trainer for rollouts by vLLM: it gets the images that the prompt's tokens were counted for.

    TRL sends images as they are in the rows, and vLLM resizes them by the checkpoint's limits: other pixels, and
    another number of image tokens than the prompt has. In the process TRL also sends a placeholder for every patch, to
    which vLLM (0.30) adds its own: N patches became 2 N - 1. A server gets the positions of the images.
    """

    def _generate_single_turn(self, prompt_ids, images, *args, **kwargs) -> Any:
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


class ResumableGRPOMixin(Resumable):
    """on_completions: `grpo.Rollouts.record`, called with a generation before its rewards are computed."""

    def __init__(self, *args, on_completions: Callable[..., None] | None = None, **kwargs) -> None:
        self.on_completions = on_completions
        super().__init__(*args, **kwargs)

    @phase("rollout")
    def _generate_single_turn(self, *args, **kwargs) -> Any:
        return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> Tensor:
        if self.on_completions:
            row_ids, step = [row["row_id"] for row in inputs], self.state.global_step
            self.on_completions(completions, completion_ids_list, row_ids, step=step, log_metric=self._log_metric)
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
