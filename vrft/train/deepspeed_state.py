"""DeepSpeed's part of a checkpoint: read without running code, resumed to the last bit, with the base model's names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel


@contextmanager
def readable_state() -> Iterator[None]:
    """Let torch read the plain records that DeepSpeed writes beside its tensors, and no other class."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
        yield


def recount_steps(engine: Any) -> None:
    """Give a resumed CPUAdam the bias correction that it had when its state was saved, to the last bit.

    DeepSpeed's CPUAdam keeps the powers of its betas outside its state, as a product that grows step by step. A new one
    computes them by `pow`, which rounds differently. So the steps are repeated here, on one unused number each for
    weight, gradient and the two moments.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    adam = getattr(engine.optimizer, "optimizer", None)
    if not isinstance(adam, DeepSpeedCPUAdam):
        return
    group, unused = adam.param_groups[0], [torch.zeros(1) for _ in range(4)]
    n_steps = max((int(state["step"]) for state in adam.state.values() if "step" in state), default=0)
    settings = (*group["betas"], group["eps"], 0.0, group["bias_correction"])
    for step in range(1, n_steps + 1):
        adam.ds_opt_adam.adam_update(adam.opt_id, step, 0.0, *settings, *unused)


def gathered_weights(trainer: Any) -> dict[str, torch.Tensor]:
    """The policy's weights (of an adapter the trained ones), whole on the main process; all processes call this.

    Under ZeRO-3 only the engine can gather them; it puts them in main memory.
    """
    engine = trainer.model_wrapped
    is_sharded = trainer.is_deepspeed_enabled and engine.zero_optimization_partition_weights()
    if is_sharded and isinstance(trainer.model, PeftModel):
        weights = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=True)
    else:
        weights = trainer.accelerator.get_state_dict(engine)
    return named_once(trainer.model, weights or {})


def named_once(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights with each tied one under its first name only, as an output layer tied to the embedding.

    transformers finds tied weights by their common storage, which DeepSpeed's copies no longer have.
    """
    first = {name for name, _ in model.named_parameters()}
    further = {name for name, _ in model.named_parameters(remove_duplicate=False)} - first
    return {name: value for name, value in weights.items() if name not in further}
