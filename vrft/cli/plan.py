"""`vrft plan`: what a config takes of a GPU, whether it fits, and what would make it fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vrft.config.schema import Config
from vrft.files import write_text_atomically
from vrft.memory import table
from vrft.memory.auto import named_gpu, plan_options, search_changes
from vrft.memory.changes import Change, room
from vrft.memory.plan import make_plan
from vrft.memory.table import size
from vrft.memory.training_setup import Setup
from vrft.terminal import progress_bar

_VARIANTS = (
    ("no checkpointing", {"memory.gradient_checkpointing": False}),
    ("checkpointing", {"memory.gradient_checkpointing": True}),
)
_NO_GPU = "no GPU here, so this is the plan for one of any size; plan.gpu=NAME (or GiB) says whether it fits"


def run(config: Config) -> int:
    """Print what the frozen config takes and, for a GPU, whether it fits; 1 if it does not, else 0.

    config: with the section `plan`. Raises `UserError` naming what is wrong.
    """
    wanted, setup = config.plan, config.part(Setup)
    name, n_bytes = named_gpu(wanted.gpu)
    options = plan_options(setup, n_bytes, device=config.derived.device, wanted=wanted)
    plan = make_plan(setup, **options)
    print(table.what_is_planned(plan, setup), table.plan_table(plan), sep="\n\n")
    record = table.as_json(plan, setup.model.path)
    if wanted.compare:
        record["variants"] = _print_variants(setup, options)
    does_fit = True
    if not n_bytes and plan.target == "cuda":
        print("\n" + _NO_GPU)
    if n_bytes:
        does_fit = plan.peak <= room(n_bytes)
        print("\n" + table.verdict(plan, name, n_bytes))
        record |= {"gpu": name, "gpu_bytes": n_bytes, "fits": does_fit}
    if not does_fit:
        changes, least = search_changes(setup, n_bytes, options)
        after = setup
        for change in changes or ():
            after = change.applied(after)
        print(table.advice(changes, make_plan(after, **options).peak if changes else least))
        record["changes"] = None if changes is None else [vars(change) for change in changes]
    if wanted.out:
        write_text_atomically(Path(wanted.out), json.dumps(record, indent=2) + "\n")
        print(f"written to {wanted.out}")
    return int(not does_fit)


def _print_variants(setup: Setup, options: dict[str, Any]) -> dict[str, int]:
    """What the training step's activations would be with and without checkpointing and shared prompts."""
    is_grpo = setup.trainer.name == "grpo"
    ways = [("shared prompts", {"rollout.sharing": "auto"}), ("every prompt G times", {"rollout.sharing": None})]
    variants = {
        f"{way}, {label}" if way else label: rollout | values
        for way, rollout in (ways if is_grpo else [("", {})])
        for label, values in _VARIANTS
    }
    found = {}
    for name, values in progress_bar(variants.items(), desc="variants", unit="config", leave=False):
        step = make_plan(Change("", values, "", "").applied(setup), **options).phases["step"]
        found[name] = sum(step.get(part, 0) for part in ("activations", "vision", "logits"))
    print("\nactivations, vision tower and logits of a training step:")
    for name, n_bytes in found.items():
        print(f"  {name:42} {size(n_bytes):>12}")
    return found
