"""TRL's GRPO trainer with each prompt, image included, computed once for its G completions: same results, fewer FLOPs.

What changes is where a batch is computed, never what: rollouts, log probabilities, loss and gradients are those of
`trl.GRPOTrainer` to float32 rounding, random draws included. See `vrft.models.shared_prefix` for the packed row and
`vrft.models.rollout` for sampling.

B: rows (completions), P: prompt tokens, C: completion tokens, G: completions of a prompt.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOTrainer

from vrft.errors import UserError
from vrft.models.attention import register_attention
from vrft.models.image_features import ImageFeatures, is_vision_frozen
from vrft.models.rollout import generate_shared, sampling_fault
from vrft.models.shared_prefix import Prompts, in_chunks, model_fault, pack, rotary_positions, without_adapter
from vrft.train.micro_batches import micro_batches
from vrft.train.prompt_once import PromptOnce

_VISION = ("pixel_values", "image_grid_thw", "mm_encoder_outputs")


class SharedPrefixTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` that shares prompts among the completions that lie on one device.

    must_share: True to raise `UserError` where a batch cannot be shared; else it takes TRL's own path. Logged beside
    TRL's metrics: `shared_prefix/fraction` and `shared_prefix/fraction_sampled`, of the completions scored and sampled
    those that shared their prompt with another; `shared_prefix/skipped`, of the completions trained on those left out
    because nothing could come of them (`entropy` is then that of the others). `frac_reward_zero_std` counts the groups
    whose rewards are all equal.
    """

    def __init__(self, *args, must_share: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        register_attention()
        self.must_share = must_share
        self._told: set[str] = set()  # warnings
        self._zero_variance = 0.0  # share of groups, in the latest generation
        self._skipped: Tensor | None = None  # (B,), while a loss is computed: rows that it cannot depend on
        self._inputs: dict[str, Any] | None = None  # meanwhile, what it is computed from
        self._image_features = ImageFeatures()
        if must_share:
            self._refuses(self._rollout_fault(without_adapter(self.model), {}))
        n_rows = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if n_rows % self.num_generations:
            self._tell(
                f"the {self.num_generations} completions of a prompt are spread over processes, {n_rows} rows each; "
                "every process computes the prompt for its own"
            )

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
        self._image_features.clear()
        with _replaced(self, "processing_class", PromptOnce(self.processing_class)):
            batch = super()._generate_and_score_completions(inputs)
        self._metrics[self._mode]["frac_reward_zero_std"][-1] = self._zero_variance
        return batch

    def _calculate_rewards(self, *args, **kwargs) -> Tensor:
        """(B of all processes, terms)"""
        terms = super()._calculate_rewards(*args, **kwargs)
        rewards = (terms * self.reward_weights.to(terms.device)).nansum(1)
        groups = rewards.view(-1, self.num_generations if self.model.training else self.num_generations_eval)
        self._zero_variance = (groups.amax(1) == groups.amin(1)).float().mean().item()
        return terms

    def _generate_single_turn(self, prompt_ids, images, *args, **kwargs) -> tuple[list[list[int]], Any]:
        """TRL pads the B rows and calls the model's `generate` on them; a shared one stands in for it."""
        policy = self.accelerator.unwrap_model(self.model_wrapped)
        generate = policy.generate

        def generate_once(input_ids, attention_mask, generation_config, **fields) -> Tensor:
            prompts = Prompts.of(input_ids, attention_mask, fields, [len(own or ()) for own in images or ()])
            if self._refuses(self._rollout_fault(without_adapter(policy), fields) or prompts.fault()):
                self._log("shared_prefix/fraction_sampled", 0.0)
                inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **fields}
                return generate(**inputs, generation_config=generation_config)
            groups = prompts.groups()
            n_sharing = sum(len(rows) for rows in groups if len(rows) > 1)
            self._log("shared_prefix/fraction_sampled", n_sharing / len(input_ids))
            prompt_of_row = torch.empty(len(input_ids), dtype=torch.long, device=input_ids.device)
            for number, rows in enumerate(groups):
                prompt_of_row[rows] = number
            distinct = self._with_image_features(prompts.inputs([rows[0] for rows in groups]))
            return generate_shared(generate, distinct, prompt_of_row, generation_config=generation_config)

        with _replaced(policy, "generate", generate_once):
            return super()._generate_single_turn(prompt_ids, images, *args, **kwargs)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's own, but that the completions of a prompt stay together where a generation serves several steps."""
        generate_every = self.args.steps_per_generation * self.num_iterations
        is_buffered = self._step % generate_every and self._buffered_inputs is not None
        if is_buffered or not self.model.training:
            return super()._prepare_inputs(generation_batch)
        batch = self._generate_and_score_completions(generation_batch)
        self._buffered_inputs = micro_batches(batch, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._skipped, self._inputs = self._rows_without_effect(inputs), inputs
        try:
            loss = super()._compute_loss(model, inputs)
            if self._skipped.all():  # nothing has run: the gradients are the zeros that a backward would have added
                self._metrics[self._mode]["entropy"][-1] = math.nan  # there is none; logs leave it out
                for parameter in model.parameters():
                    if parameter.requires_grad and parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                loss.requires_grad_()
            share = self._skipped.float().mean().item()
        finally:
            self._skipped = self._inputs = None
        self._log("shared_prefix/skipped", share)
        return loss

    def _rows_without_effect(self, inputs: Mapping[str, Any]) -> Tensor:
        """(B,) True where neither the loss nor a gradient can depend on the row's log probabilities.

        Such are rows without a scored token and, if all that acts on them is the advantage, those whose is exactly 0.
        """
        skipped = ~inputs["completion_mask"].bool().any(1)
        if not self.model.training:
            return torch.zeros_like(skipped)
        is_only_by_advantage = (
            self.beta == 0.0
            and not self._entropy_bonus_enabled
            and self.top_entropy_quantile == 1.0
            and not self.aux_loss_enabled
        )
        if is_only_by_advantage:
            skipped |= inputs["advantages"] == 0
        if self.accelerator.distributed_type != DistributedType.NO:
            skipped[0] &= ~skipped.all()  # DDP and DeepSpeed wait for every process's forward and backward
        return skipped

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
        """Log probabilities and, if asked, entropies of completion tokens, (B, C); 0 where none is scored."""
        n_prompt = input_ids.shape[1] - logits_to_keep
        prompts = Prompts.of(input_ids[:, :n_prompt], attention_mask[:, :n_prompt], fields, num_images)
        base = without_adapter(self.accelerator.unwrap_model(model))
        if self._refuses(self._scoring_fault(base, fields, compute_aux_loss) or prompts.fault()):
            self._log("shared_prefix/fraction", 0.0)
            self._skipped = None if self._skipped is None else torch.zeros_like(self._skipped)
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size=batch_size,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
                num_images=num_images,
                **fields,
            )
        logps = input_ids.new_zeros((len(input_ids), logits_to_keep), dtype=torch.float32)
        entropies = logps.clone() if compute_entropy else None
        groups, limit = prompts.groups(), batch_size or len(input_ids)
        n_sharing = sum(len(rows) for rows in groups if min(len(rows), limit) > 1)
        self._log("shared_prefix/fraction", n_sharing / len(input_ids))
        chunks = list(in_chunks(self._scored(groups, attention_mask[:, n_prompt:]), limit))
        for number, chunk in enumerate([*chunks, *chunks[:1] * self._n_missing_calls(len(chunks))]):
            inputs = prompts.inputs([rows[0] for rows in chunk])
            packed = pack(input_ids, attention_mask, logits_to_keep, chunk, rotary_positions(base, inputs))
            inputs = self._with_image_features(inputs)
            with self.accelerator.autocast():
                outputs = model(
                    input_ids=packed.input_ids,
                    position_ids=packed.position_ids,
                    shift_labels=packed.labels,
                    packed_groups=packed.groups,
                    fused_lm_head=True,
                    **{name: inputs[name] for name in _VISION if name in inputs},
                )
            if number < len(chunks):
                logps = logps + packed.unpack(outputs.log_probs)
                entropies = entropies + packed.unpack(outputs.entropy) if compute_entropy else None
        if self._skipped is not None and self._skipped.any():
            logps, entropies = self._filled(logps, entropies)
        return logps, entropies, None

    def _scored(self, groups: Sequence[Sequence[int]], completion_mask: Tensor) -> list[list[int]]:
        """The groups without the rows that need no computing."""
        if self._skipped is None:
            is_scored = completion_mask.any(1)
            is_scored[0] |= ~is_scored.any()  # all processes make as many calls
        else:
            is_scored = ~self._skipped
        is_scored = is_scored.tolist()
        groups = [[row for row in rows if is_scored[row]] for rows in groups]
        return [rows for rows in groups if rows]

    def _n_missing_calls(self, n_calls: int) -> int:
        """How many more another process makes; under ZeRO-3 each is one that all have to make together."""
        if not is_deepspeed_zero3_enabled() or torch.is_grad_enabled():  # a loss is always one call
            return 0
        n_everywhere = self.accelerator.gather(torch.tensor([n_calls], device=self.accelerator.device))
        return int(n_everywhere.max()) - n_calls

    def _filled(self, logps: Tensor, entropies: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Rows left out get a ratio of 1, and an entropy that leaves the mean as it is."""
        old = self._inputs.get("old_per_token_logps")
        skipped, mask = self._skipped[:, None], self._inputs["completion_mask"]
        if old is not None:
            logps = torch.where(skipped, old, logps)
        if entropies is not None:
            counted = mask * ~skipped
            mean = (entropies.detach() * counted).sum() / counted.sum().clamp(min=1)
            entropies = torch.where(skipped, mean, entropies)
        return logps, entropies

    def _with_image_features(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A frozen vision tower's features, computed once a generation for policy and reference, in place of pixels."""
        policy = without_adapter(self.accelerator.unwrap_model(self.model))
        if not is_vision_frozen(policy):
            return inputs
        with self.accelerator.autocast():
            return self._image_features.replace_pixels(policy, inputs)

    def _scoring_fault(self, model: PreTrainedModel, fields: Mapping[str, Any], has_aux_loss: bool) -> str | None:
        unknown = {name for name, value in fields.items() if value is not None} - {*_VISION, "mm_token_type_ids"}
        if unknown:
            return f"the batch has {', '.join(sorted(unknown))}, which only TRL's path knows"
        return "the loss has a load-balancing term" if has_aux_loss else model_fault(model)

    def _rollout_fault(self, model: PreTrainedModel, fields: Mapping[str, Any]) -> str | None:
        if is_deepspeed_zero3_enabled() and not self.args.ds3_gather_for_generation:
            return "trainer.args.ds3_gather_for_generation=false: processes would wait for each other at every token"
        sampling = None if self.use_vllm else sampling_fault(self.generation_config)
        return sampling or self._scoring_fault(model, fields, has_aux_loss=False)

    def _refuses(self, fault: str | None) -> bool:
        """True if a batch has to take TRL's path, which is said once. Raises `UserError` if that is not wanted."""
        if fault and self.must_share:
            raise UserError(f"rollout.sharing=on, but {fault}; with rollout.sharing=auto TRL's own path is taken")
        if fault:
            self._tell(f"prompts are not shared: {fault}")
        return fault is not None

    def _tell(self, warning: str) -> None:
        if warning not in self._told and self.accelerator.is_main_process:
            print(f"warning: {warning}", file=sys.stderr)
        self._told.add(warning)

    def _log(self, name: str, value: float) -> None:
        self._metrics[self._mode][name].append(value)

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"


@contextlib.contextmanager
def _replaced(owner: object, name: str, stand_in: Any) -> Iterator[None]:
    """`owner.name` is `stand_in` for a while."""
    own = vars(owner)
    before = {name: own[name]} if name in own else {}
    own[name] = stand_in
    try:
        yield
    finally:
        del own[name]
        own.update(before)
