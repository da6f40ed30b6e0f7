"""Each prompt, image included, computed once for its G completions: called by `trl_overrides.SharedPrefixTrainer`.

Where a batch is computed changes, and what comes out does not: rollouts, log probabilities, loss and gradients are
those of `trl.GRPOTrainer` to float32 rounding, random draws included. `vrft.models.shared_prefix` describes the packed
row, `vrft.models.rollout` the sampling.

B: rows (completions), P: prompt tokens, C: completion tokens, G: completions of a prompt.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOTrainer

from vrft.errors import UserError
from vrft.models.image_features import ImageFeatures, is_vision_frozen
from vrft.models.rollout import generate_shared
from vrft.models.shared_prefix import Prompts, in_chunks, pack, rotary_positions, without_adapter
from vrft.train.unlike_trl import unlike_trl

_VISION = ("pixel_values", "image_grid_thw", "mm_encoder_outputs")
_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo")


class Sharing:
    """What a trainer keeps about shared prompts between the calls that TRL makes of it.

    zero_variance: the share of groups in the latest generation whose rewards are all equal.
    skipped: (B,), True for the rows that the loss at hand cannot depend on; None outside a loss. inputs: that loss's
    batch.
    """

    def __init__(self, *, must_share: bool, is_main_process: bool, fault: str | None = None) -> None:
        """must_share: True to raise `UserError` where a batch cannot be shared. fault: why none can, or None."""
        self.must_share, self.is_main_process, self.fault = must_share, is_main_process, fault
        self.warnings: set[str] = set()
        self.zero_variance = 0.0
        self.skipped: Tensor | None = None
        self.inputs: dict[str, Any] | None = None
        self.image_features = ImageFeatures()

    def refuses(self, fault: str | None) -> bool:
        """True if a batch takes TRL's path because of the fault; warns once. Raises `UserError` with `must_share`."""
        if fault and self.must_share:
            raise UserError(f"rollout.sharing=on, but {fault}; with rollout.sharing=auto TRL's own path is taken")
        if fault:
            self.warn(f"prompts are not shared: {fault}")
        return fault is not None

    def warn(self, warning: str) -> None:
        """Print a warning, the first time, on the main process."""
        if warning not in self.warnings and self.is_main_process:
            print(f"warning: {warning}", file=sys.stderr)
        self.warnings.add(warning)


def check_settings(trainer: GRPOTrainer) -> None:
    """Warn of settings that share less than they could. Raises `UserError` where `must_share` cannot be kept."""
    if trainer.sharing.must_share:
        trainer.sharing.refuses(unlike_trl(trainer, trainer.model, is_training=True, is_rollout=True))
    n_rows = trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation
    if n_rows % trainer.num_generations:
        trainer.sharing.warn(
            f"the {trainer.num_generations} completions of a prompt are spread over processes, {n_rows} rows each; "
            "every process computes the prompt for its own"
        )


# --- rollout ---------------------------------------------------------------------------------------------------------


def sharing_generate(trainer: GRPOTrainer, policy: PreTrainedModel, images: Sequence | None) -> Callable[..., Tensor]:
    """A function in place of `policy.generate` that reads each distinct prompt of TRL's padded batch once.

    images: of each row, as TRL has them.
    """
    stock = policy.generate

    def generate(input_ids: Tensor, attention_mask: Tensor, generation_config: Any, **fields) -> Tensor:
        batch = input_ids, attention_mask, fields, [len(own or ()) for own in images or ()]
        if trainer.sharing.refuses(unlike_trl(trainer, policy, batch, is_rollout=True)):
            log(trainer, "shared_prefix/fraction_sampled", 0.0)
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **fields}
            return stock(**inputs, generation_config=generation_config)
        prompts = Prompts.of(*batch)
        groups = prompts.groups()
        log(trainer, "shared_prefix/fraction_sampled", _sharing_fraction(groups, len(input_ids)))
        prompt_of_row = torch.empty(len(input_ids), dtype=torch.long, device=input_ids.device)
        for number, rows in enumerate(groups):
            prompt_of_row[rows] = number
        distinct = with_image_features(trainer, prompts.inputs([rows[0] for rows in groups]))
        return generate_shared(stock, distinct, prompt_of_row, generation_config=generation_config)

    return generate


def zero_variance_share(terms: Tensor, weights: Tensor, group_size: int) -> float:
    """The share of groups whose rewards are all equal, in [0, 1]. terms: (B of all processes, terms), NaN for none.

    TRL tests whether the standard deviation is 0, which rounding of the mean can prevent.
    """
    rewards = (terms * weights.to(terms.device)).nansum(1)
    is_unknown = terms.isnan().all(1).view(-1, group_size)  # not a reward of 0; as TRL, a group of such is not counted
    groups = rewards.view(-1, group_size)
    highest, lowest = (groups.masked_fill(is_unknown, none) for none in (-torch.inf, torch.inf))
    return (highest.amax(1) == lowest.amin(1)).float().mean().item()


# --- loss ------------------------------------------------------------------------------------------------------------


def rows_without_effect(trainer: GRPOTrainer, inputs: Mapping[str, Any]) -> Tensor:
    """(B,) True where neither the loss nor a gradient can depend on the row's log probabilities.

    Such are rows without a scored token and, if all that acts on them is the advantage, those whose is exactly 0.
    """
    skipped = ~inputs["completion_mask"].bool().any(1)
    if not trainer.model.training:
        return torch.zeros_like(skipped)
    # VESPO logs the mean of a weight that a row has by its log probabilities, whatever its advantage.
    is_only_by_advantage = (
        trainer.beta == 0.0
        and trainer.loss_type in _LOSSES
        and not trainer._entropy_bonus_enabled
        and trainer.top_entropy_quantile == 1.0
        and not trainer.aux_loss_enabled
    )
    if is_only_by_advantage:
        skipped |= inputs["advantages"] == 0
    if trainer.accelerator.distributed_type != DistributedType.NO:
        # DDP and DeepSpeed wait for every process's forward and backward, so one row is always computed.
        skipped[0] &= ~skipped.all()
    return skipped


def add_zero_gradients(model: PreTrainedModel | PeftModel, *, has_images: bool) -> None:
    """Give each trained parameter the gradient that the backward of a loss of constant 0 would have added.

    has_images: False if the batch has none, which leaves the vision tower without gradients.
    """
    unused = () if has_images else without_adapter(model).base_model.visual.parameters()
    unused = set(map(id, unused))
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None and id(parameter) not in unused:
            parameter.grad = torch.zeros_like(parameter)


def score(
    trainer: GRPOTrainer,
    model: torch.nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    n_completion: int,
    *,
    prompts: Prompts,
    batch_size: int | None,
    compute_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """Log probabilities and, if asked, entropies of completion tokens, (B, C); 0 where none is scored.

    input_ids, attention_mask: (B, P + C). n_completion: C. batch_size: the most rows of one forward.
    """
    logps = input_ids.new_zeros((len(input_ids), n_completion), dtype=torch.float32)
    entropies = logps.clone() if compute_entropy else None
    base = without_adapter(trainer.accelerator.unwrap_model(model))
    groups, limit = prompts.groups(), batch_size or len(input_ids)
    log(trainer, "shared_prefix/fraction", _sharing_fraction(groups, len(input_ids), limit))
    completion_mask = attention_mask[:, input_ids.shape[1] - n_completion :]
    scored = _scored(groups, completion_mask, trainer.sharing.skipped)
    chunks = list(in_chunks(scored, limit))
    for number, chunk in enumerate([*chunks, *chunks[:1] * _n_dummy_calls(trainer, len(chunks))]):
        inputs = prompts.inputs([rows[0] for rows in chunk])
        packed = pack(input_ids, attention_mask, n_completion, chunk, rotary_positions(base, inputs))
        inputs = with_image_features(trainer, inputs)
        with trainer.accelerator.autocast():
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
    return _filled(trainer.sharing, logps, entropies)


def _scored(groups: Sequence[Sequence[int]], completion_mask: Tensor, skipped: Tensor | None) -> list[list[int]]:
    """The groups without the rows that need no computing. completion_mask: (B, C)."""
    if skipped is None:
        is_scored = completion_mask.any(1)
        is_scored[0] |= ~is_scored.any()  # every process makes at least one forward call
    else:
        is_scored = ~skipped
    is_scored = is_scored.tolist()
    groups = [[row for row in rows if is_scored[row]] for rows in groups]
    return [rows for rows in groups if rows]


def _n_dummy_calls(trainer: GRPOTrainer, n_calls: int) -> int:
    """The number of forward calls this process adds so that all processes make equally many.

    Under ZeRO-3 the weights of a layer are gathered by all processes together: one that makes fewer calls would leave
    the others waiting. With gradients there is always exactly one call.
    """
    if not is_deepspeed_zero3_enabled() or torch.is_grad_enabled():
        return 0
    accelerator = trainer.accelerator
    n_everywhere = accelerator.gather(torch.tensor([n_calls], device=accelerator.device))
    return int(n_everywhere.max()) - n_calls


def _filled(sharing: Sharing, logps: Tensor, entropies: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Skipped rows get an importance ratio of 1, and as entropy the mean of the others: TRL's means stay as they are.

    Both (B, C).
    """
    if sharing.skipped is None or not sharing.skipped.any():
        return logps, entropies
    old = sharing.inputs.get("old_per_token_logps")
    skipped, mask = sharing.skipped[:, None], sharing.inputs["completion_mask"]
    if old is not None:
        logps = torch.where(skipped, old, logps)
    if entropies is not None:
        counted = mask * ~skipped
        mean = (entropies.detach() * counted).sum() / counted.sum().clamp(min=1)
        entropies = torch.where(skipped, mean, entropies)
    return logps, entropies


# --- both ------------------------------------------------------------------------------------------------------------


def with_image_features(trainer: GRPOTrainer, inputs: dict[str, Any]) -> dict[str, Any]:
    """A frozen vision tower's features in place of pixels, computed once a generation for policy and reference."""
    policy = without_adapter(trainer.accelerator.unwrap_model(trainer.model))
    if not is_vision_frozen(policy):
        return inputs
    with trainer.accelerator.autocast():
        return trainer.sharing.image_features.replace_pixels(policy, inputs)


def metrics(trainer: GRPOTrainer) -> dict[str, list[float]]:
    """The values whose means TRL logs at the next step."""
    return trainer._metrics["train" if trainer.model.training else "eval"]


def log(trainer: GRPOTrainer, name: str, value: float) -> None:
    """Add a value to the mean that TRL logs at the next step."""
    metrics(trainer)[name].append(value)


def _sharing_fraction(groups: Sequence[Sequence[int]], n_rows: int, limit: int | None = None) -> float:
    """The share of rows that share their prompt with another of the same forward, in [0, 1].

    limit: the most rows of one forward.
    """
    return sum(len(rows) for rows in groups if min(len(rows), limit or n_rows) > 1) / n_rows


@contextlib.contextmanager
def replaced(owner: object, name: str, replacement: Any) -> Iterator[None]:
    """`owner.name` is `replacement` inside the block."""
    own = vars(owner)
    before = {name: own[name]} if name in own else {}
    own[name] = replacement
    try:
        yield
    finally:
        del own[name]
        own.update(before)
