"""How one step is dealt out to processes and micro-batches."""

from __future__ import annotations

from typing import Any

from vrft.errors import CANNOT_RUN, UserError


def n_processes(config: dict[str, Any]) -> int:
    """How many worker processes a run has on all its machines together."""
    launch = config["launch"]
    return launch["nproc_per_node"] * launch.get("nnodes", 1)


def batch_sizes(config: dict[str, Any]) -> dict[str, int]:
    """The per-device batch and the accumulation that make one step of `prompts_per_step` prompts.

    TRL counts completions for GRPO and rows for SFT. The per-device batch is the largest that divides a process's share
    and does not exceed `memory.completions_per_device`. Raises `UserError` if processes cannot share a step evenly.
    """
    prompts, limit = config["trainer"]["prompts_per_step"], config["memory"]["completions_per_device"]
    group = config["memory"]["num_generations"] if config["trainer"]["name"] == "grpo" else 1
    processes = n_processes(config)
    share, rest = divmod(prompts * group, processes)
    if rest:
        fitting = next(more for more in range(prompts + 1, prompts + processes + 1) if more * group % processes == 0)
        raise UserError(
            f"{CANNOT_RUN}\n  - one step is trainer.prompts_per_step × memory.num_generations = {prompts} × {group} = "
            f"{prompts * group} completions, which {_count(config['launch'])} processes cannot share evenly; "
            f"trainer.prompts_per_step={fitting} would do"
        )
    per_device = max(size for size in range(1, min(share, limit or share) + 1) if share % size == 0)
    return {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": share // per_device}


def _count(launch: dict[str, Any]) -> str:
    n_nodes = launch.get("nnodes", 1)
    return f"launch.nproc_per_node={launch['nproc_per_node']}" + (f" × launch.nnodes={n_nodes}" if n_nodes > 1 else "")
