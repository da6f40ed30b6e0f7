"""Where shared prompts are not known to give TRL's results: the one place that decides for TRL's own path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOTrainer

from vrft.models.shareable import sampling_fault, sharing_fault
from vrft.models.shared_prefix import Prompts, without_adapter

_FIELDS = {"pixel_values", "image_grid_thw", "mm_token_type_ids"}


def unlike_trl(
    trainer: GRPOTrainer,
    model: PreTrainedModel | PeftModel,
    prompts: tuple[Tensor, Tensor, Mapping[str, Any], Sequence[int] | None] | None = None,
    *,
    is_training: bool | None = None,
    is_rollout: bool = False,
    has_aux_loss: bool = False,
) -> str | None:
    """Why sharing is not known to give TRL's results, so that TRL's own path is to be taken; None if it is.

    prompts: the arguments of `Prompts.of`, with all fields that the batch has for the model. None looks only at what
    holds for every batch. is_training: True where dropout is active; None to ask the model.
    """
    is_training = model.training if is_training is None else is_training
    return next(_reasons(trainer, model, prompts, is_training, is_rollout, has_aux_loss), None)


def _reasons(trainer, model, prompts, is_training: bool, is_rollout: bool, has_aux_loss: bool) -> Iterator[str | None]:
    if trainer.sharing.fault:
        yield trainer.sharing.fault
    if fault := sharing_fault(model, is_training=is_training):
        yield fault
    if has_aux_loss:
        yield "the loss has a load-balancing term"
    if is_rollout and not trainer.use_vllm:
        if is_deepspeed_zero3_enabled() and not trainer.args.ds3_gather_for_generation:
            yield "trainer.args.ds3_gather_for_generation=false: processes would wait for each other at every token"
        if fault := sampling_fault(trainer.generation_config, without_adapter(model).generation_config):
            yield fault
    if prompts is not None:
        unknown = {name for name, value in prompts[2].items() if value is not None} - _FIELDS
        yield (
            f"the batch has {', '.join(sorted(unknown))}, which only TRL's path knows"
            if unknown
            else Prompts.of(*prompts).fault()
        )


def trainer_fault(trainer: GRPOTrainer) -> str | None:
    """Why no batch of this trainer can be shared, or None."""
    if trainer.tools or trainer.environment_factories or trainer.rollout_func:
        return "tools, environments and rollout functions write into completions"
    if trainer.args.neftune_noise_alpha is not None:
        return "trainer.args.neftune_noise_alpha adds noise to every token, and fewer tokens computed draw other noise"
    return None
