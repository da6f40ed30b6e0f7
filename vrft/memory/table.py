"""A plan as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vrft.memory.changes import Change, room
from vrft.memory.plan import Plan
from vrft.memory.training_setup import Setup

_PARTS = (
    ("weights", "weights"),
    ("gradients", "gradients"),
    ("master weights", "master weights, float32"),
    ("optimizer", "optimizer (Adam's m and v)"),
    ("reference", "reference model"),
    ("buffers", "buffers between GPUs"),
    ("copies", "copies of gradients"),
    ("activations", "activations"),
    ("vision", "vision tower"),
    ("logits", "logits"),
    ("images", "images' patches"),
    ("kv_cache", "KV cache"),
    ("vLLM", "vLLM"),
)


def size(n_bytes: float) -> str:
    """Bytes in a readable unit.

    >>> size(3 * 2**30), size(5 * 2**20), size(0)
    ('3.00 GiB', '5.0 MiB', '')
    """
    if not n_bytes:
        return ""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**28 else f"{n_bytes / 2**20:.1f} MiB"


def plan_table(plan: Plan) -> str:
    """The table of parts by phase, with their sums."""
    names = list(plan.phases)
    lines = [f"{'per GPU' if plan.target == 'cuda' else 'per process':28}" + "".join(f"{name:>13}" for name in names)]
    for part, label in _PARTS:
        sizes = [plan.phases[name].get(part, 0) for name in names]
        if any(sizes):
            lines.append(f"{label:28}" + "".join(f"{size(one):>13}" for one in sizes))
    lines.append(f"{'together':28}" + "".join(f"{size(plan.totals[name]):>13}" for name in names))
    if plan.host:
        parts = ", ".join(f"{name} {size(n)}" for name, n in plan.host.items() if n)
        lines.append(f"in main memory, per process: {parts}")
    return "\n".join(lines)


def what_is_planned(plan: Plan, setup: Setup) -> str:
    """The model and the shapes, a line each."""
    shapes, max_pixels = plan.shapes, setup.memory.max_pixels
    share = plan.n_trained / plan.n_weights
    lines = [
        f"{setup.model.path}: {plan.n_weights:,} parameters, {share:.1%} of them trained; "
        f"{setup.launch.n_processes} process(es)",
        f"an image at memory.max_pixels={max_pixels}: {plan.image_wh[0]} x {plan.image_wh[1]} pixels, "
        f"{plan.image_tokens} tokens; a prompt of {shapes.prompt} tokens, completions of {shapes.completion}",
        f"a micro-batch: {shapes.n_completions} {'completions' if shapes.trainer == 'grpo' else 'rows'} "
        f"of {shapes.n_prompts} prompt(s); a rollout: {shapes.rollout_rows} of {shapes.rollout_prompts}"
        if shapes.trainer == "grpo"
        else f"a micro-batch: {shapes.n_completions} row(s)",
    ]
    return "\n".join(lines)


def verdict(plan: Plan, gpu: str, gpu_bytes: int) -> str:
    """A sentence that says if it fits."""
    does = "fits" if plan.peak <= room(gpu_bytes) else "does not fit"
    phase = max(plan.totals, key=plan.totals.get)
    return (
        f"{does} on {gpu}: {size(plan.peak)} in the {phase}, of {size(room(gpu_bytes))} "
        f"({size(gpu_bytes)} less a share for the driver and for gaps)"
    )


def advice(changes: Sequence[Change] | None, peak: int) -> str:
    """The changes that make it fit, each with its price. peak: bytes after them; if nothing helps, a lower bound of the
    smallest peak found."""
    if changes is None:
        return (
            f"no change of these knobs makes it fit: it takes at least {size(peak)}; take a smaller model, more GPUs "
            "(launch.nproc_per_node with deepspeed=zero3), a shorter memory.max_completion_length, or a larger GPU"
        )
    lines = ["the cheapest changes that make it fit:"]
    width = max(len(change.words) for change in changes)
    lines += [f"  {change.words:{width}}  {change.price}" for change in changes]
    return "\n".join([*lines, f"  then it takes {size(peak)}"])


def as_json(plan: Plan, model_path: str) -> dict[str, Any]:
    """The plan for JSON, in bytes."""
    return {
        "model": model_path,
        "n_parameters": plan.n_weights,
        "n_trained": plan.n_trained,
        "image_wh": list(plan.image_wh),
        "image_tokens": plan.image_tokens,
        "phases": plan.phases,
        "totals": plan.totals,
        "peak": plan.peak,
        "host": plan.host,
    }
