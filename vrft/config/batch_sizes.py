"""How one step is split over processes and micro-batches (gradient accumulation)."""

from __future__ import annotations

from typing import Literal

from vrft.config.schema import Config, Derived, Launch, Memory, Trainer
from vrft.errors import CANNOT_RUN, UserError


def batch_sizes(trainer: Trainer, memory: Memory, launch: Launch) -> dict[str, int]:
    """The per-device batch and the gradient accumulation that make one step of `prompts_per_step` prompts.

    TRL counts completions for GRPO and rows for SFT. The per-device batch is the largest that divides a process's share
    and does not exceed `memory.completions_per_device`. Raises `UserError` if processes cannot share a step evenly.
    """
    if fault := uneven_share(trainer, memory, launch):
        raise UserError(f"{CANNOT_RUN}\n  - {fault}")
    share, limit = _completions(trainer, memory) // launch.n_processes, memory.completions_per_device
    per_device = max(size for size in range(1, min(share, limit or share) + 1) if share % size == 0)
    return {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": share // per_device}


def derive(config: Config, *, device: Literal["cpu", "cuda"]) -> Config:
    """The config with its section `derived`: the batch sizes that its other sections lead to, and the device."""
    sizes = batch_sizes(config.trainer, config.memory, config.launch)
    return config.model_copy(update={"derived": Derived(device=device, **sizes)})


def uneven_share(trainer: Trainer, memory: Memory, launch: Launch) -> str | None:
    """Why the processes cannot share a step evenly, and what would do; None if they can."""
    prompts, processes, completions = trainer.prompts_per_step, launch.n_processes, _completions(trainer, memory)
    if completions % processes == 0:
        return None
    group, nnodes = completions // prompts, getattr(launch, "nnodes", 1)
    count = f"launch.nproc_per_node={launch.nproc_per_node}" + (f" × launch.nnodes={nnodes}" if nnodes > 1 else "")
    fitting = next(more for more in range(prompts + 1, prompts + processes + 1) if more * group % processes == 0)
    return (
        f"one step is trainer.prompts_per_step × memory.num_generations = {prompts} × {group} = {completions} "
        f"completions, which {count} processes cannot share evenly; trainer.prompts_per_step={fitting} would do"
    )


def _completions(trainer: Trainer, memory: Memory) -> int:
    """Of one step; rows for SFT."""
    return trainer.prompts_per_step * (memory.num_generations if trainer.name == "grpo" else 1)
