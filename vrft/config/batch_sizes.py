"""How one step is split over processes and micro-batches (gradient accumulation), and the rows that fill it."""

from __future__ import annotations

from typing import Literal

from vrft.config.schema import Config, Derived, Launch, Memory, Trainer
from vrft.errors import UserError


def batch_sizes(trainer: Trainer, memory: Memory, launch: Launch) -> dict[str, int]:
    """The per-device batch and the gradient accumulation that make one step of `prompts_per_step` prompts.

    TRL counts completions for GRPO and rows for SFT. The per-device batch is the largest that divides a process's share
    and does not exceed `memory.completions_per_device`. Where processes cannot share a step evenly (`uneven_share`),
    nothing can be trained, and the sizes are those of a smaller step.
    """
    share, limit = max(_completions(trainer, memory) // launch.n_processes, 1), memory.completions_per_device
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


def fitting_step(n_rows: int, trainer: Trainer, memory: Memory, launch: Launch) -> int:
    """`trainer.prompts_per_step`, or fewer where `n_rows` rows do not fill a step: TRL leaves out one that is not full,
    so nothing would be trained.

    Raises `UserError` if no smaller step is one that the processes can share.
    """
    prompts, group = trainer.prompts_per_step, memory.num_generations
    if n_rows >= (needed := rows_at_once(trainer, memory, launch)):
        return prompts
    if n_rows >= prompts or trainer.args.get("steps_per_generation"):
        asked = f"trainer.args.steps_per_generation={trainer.args['steps_per_generation']} samples {needed} at once"
        raise UserError(f"{n_rows} rows to train on fill no generation: {asked}; leave it out, or give more rows")
    fits = [n for n in range(1, n_rows + 1) if n * group % launch.n_processes == 0]
    if not fits:
        raise UserError(
            f"{n_rows} rows to train on fill no step of trainer.prompts_per_step={prompts}, and no smaller one of "
            f"memory.num_generations={group} completions a prompt can be shared by {launch.n_processes} processes; "
            "lower launch.nproc_per_node, or give more rows"
        )
    return fits[-1]


def rows_at_once(trainer: Trainer, memory: Memory, launch: Launch) -> int:
    """How many rows are sampled together, in one step or for several; an epoch leaves out those that do not fill them.

    1 for SFT, whose last step in an epoch may be smaller.
    """
    if trainer.name != "grpo":
        return 1
    if not (n_steps := trainer.args.get("steps_per_generation")):
        return trainer.prompts_per_step
    per_device = batch_sizes(trainer, memory, launch)["per_device_train_batch_size"]
    return per_device * launch.n_processes * n_steps // memory.num_generations


def _completions(trainer: Trainer, memory: Memory) -> int:
    """Of one step; rows for SFT."""
    return trainer.prompts_per_step * (memory.num_generations if trainer.name == "grpo" else 1)
