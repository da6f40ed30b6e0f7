"""The cheapest changes that make a run fit a GPU, tried in a fixed order, each with its price."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from vrft.config.batch_sizes import batch_sizes, uneven_share
from vrft.config.cross_checks import generation_faults, model_faults
from vrft.config.package_files import config_folder
from vrft.config.schema import DeepSpeed, Trainer
from vrft.config.section import S, with_values
from vrft.memory.training_setup import Setup

KNOBS = (
    "memory.evaluation_batch_size",
    "memory.completions_per_device",
    "memory.gradient_checkpointing",
    "memory.max_pixels",
    "memory.num_generations",
    "deepspeed.config",
    "model.peft",
)
HEADROOM = 0.08  # share of a GPU kept for the driver, NCCL and fragmentation
_STAGES = ("zero2", "zero3", "zero3_offload")
_LEAST_PIXELS = 50_176  # 64 tokens of 28 × 28
_LEAST_GROUP = 2


@dataclass(frozen=True)
class Change:
    """One knob turned. values: of the config, by dotted key. words: as on the command line. price: what it costs."""

    knob: str
    values: dict[str, Any]
    words: str
    price: str

    def applied(self, section: S) -> S:
        """A copy of a setup, or of a whole config, with the change in it."""
        return with_values(section, self.values)


def room(gpu_bytes: int) -> int:
    """Bytes of a GPU that a plan may take."""
    return int(gpu_bytes * (1 - HEADROOM))


def changes_that_fit(setup: Setup, fits: Callable[[Setup], bool]) -> list[Change] | None:
    """The changes after which a run fits, the cheapest first. An empty list if it fits already, None if nothing helps.

    fits: True if a setup fits. Knobs are tried in this order: evaluation batch, micro-batch, checkpointing, ZeRO stage,
    `max_pixels`, LoRA, `num_generations`. A change that later changes make unnecessary is undone.
    """
    if fits(setup):
        return []
    taken: list[Change] = []
    for steps in _IN_ORDER:
        chosen: Change | None = None
        for change in steps(_with(setup, taken)):
            if not _is_allowed(setup, [*taken, change]):
                continue
            chosen = change
            if fits(_with(setup, [*taken, change])):
                return _pruned(setup, [*taken, change], fits)
        taken += [chosen] if chosen else []
    return None


def first_changes(setup: Setup) -> dict[str, Change]:
    """The mildest allowed change of each knob that can still be turned, by the knob's name."""
    found = {}
    for knob, steps in _KNOBS_BY_NAME.items():
        allowed = (change for change in steps(setup) if _is_allowed(setup, [change]))
        if change := next(allowed, None):
            found[knob] = change
    return found


def _with(setup: Setup, changes: Sequence[Change]) -> Setup:
    for change in changes:
        setup = change.applied(setup)
    return setup


def _is_allowed(setup: Setup, changes: Sequence[Change]) -> bool:
    """True if the changed config would pass the checks that these knobs can break."""
    changed = _with(setup, changes)
    if uneven_share(changed.trainer, changed.memory, changed.launch):
        return False
    is_training = changed.evaluate.train
    faults = [*model_faults(changed.model, changed.deepspeed, is_training=is_training, is_remote=True)]
    if is_training:
        faults += generation_faults(changed.trainer, changed.memory, changed.launch)
    return not faults


def _pruned(setup: Setup, taken: list[Change], fits: Callable[[Setup], bool]) -> list[Change]:
    """The changes without those that later ones made unnecessary, and each no stronger than needed."""

    def is_enough(changes: Sequence[Change]) -> bool:
        return _is_allowed(setup, changes) and fits(_with(setup, changes))

    for change in taken[-2::-1]:  # the most expensive first; the last one is needed
        others = [one for one in taken if one is not change]
        if is_enough(others):
            taken = others
            continue
        steps = _KNOBS_BY_NAME[change.knob](setup)
        place = taken.index(change)
        for milder in steps:
            if milder.values == change.values:
                break
            if is_enough([*taken[:place], milder, *taken[place + 1 :]]):
                taken = [*taken[:place], milder, *taken[place + 1 :]]
                break
    return taken


def _evaluation_batch(setup: Setup) -> Iterator[Change]:
    size = setup.memory.evaluation_batch_size
    while size > 4:
        size = max(size // 2, 4)
        yield _memory("evaluation batch", "evaluation_batch_size", size, "evaluations take a little longer")


def _micro_batch(setup: Setup) -> Iterator[Change]:
    if setup.trainer.args.get("steps_per_generation"):
        return  # it counts micro-batches, so a generation would shrink with them
    now = batch_sizes(setup.trainer, setup.memory, setup.launch)["per_device_train_batch_size"]
    is_shared = setup.trainer.name == "grpo" and bool(setup.rollout.sharing)
    least = 2 if setup.rollout.sharing == "on" else 1
    group = setup.memory.num_generations
    size = now
    while size > least:
        size = _halved(setup, size)
        parts = -(-group // size)
        price = "none: the same step in more pieces"
        if is_shared and parts > 1:
            price = f"each prompt is computed {parts} times in training; the results stay the same"
        if weighs_by_micro_batch(setup.trainer):
            price = f"the result, a little: {BY_MICRO_BATCH}"
        yield _memory("micro-batch", "completions_per_device", size, price)


BY_MICRO_BATCH = "trainer.args.loss_type=bnpo divides by a micro-batch's tokens, so its size changes the loss"


def weighs_by_micro_batch(trainer: Trainer) -> bool:
    """True if the loss depends on how a step is cut into micro-batches."""
    return trainer.name == "grpo" and trainer.args.get("loss_type") == "bnpo"


def _halved(setup: Setup, size: int) -> int:
    """The micro-batch under the next lower limit."""
    limited = with_values(setup.memory, {"completions_per_device": max(size // 2, 1)})
    return batch_sizes(setup.trainer, limited, setup.launch)["per_device_train_batch_size"]


def _checkpointing(setup: Setup) -> Iterator[Change]:
    if not setup.memory.gradient_checkpointing:
        yield _memory("checkpointing", "gradient_checkpointing", True, "training steps take about a third longer")


def _stage(setup: Setup) -> Iterator[Change]:
    known = {name: _file("deepspeed", name)["config"] for name in _STAGES}
    now = _stage_of(setup.deepspeed)
    prices = {
        "zero2": "gradients and optimizer partitioned: little",
        "zero3": "weights gathered at every layer: time, more the slower the network",
        "zero3_offload": "the optimizer works in main memory: much time, and that memory",
    }
    names = _STAGES[_STAGES.index(now) + 1 :] if now else _STAGES
    if setup.model.quantization:
        names = [name for name in names if name == "zero2"]  # 4-bit weights cannot be partitioned
    if setup.launch.n_processes == 1:
        names = [name for name in names if name == "zero3_offload"]  # one process has nobody to partition with
    own = setup.deepspeed.config or {}
    for name in names:  # the user's other keys stay
        stock = known[name]["zero_optimization"]
        turned = {key: value for key, value in stock.items() if key == "stage" or key.startswith("offload_")}
        zero = stock | setup.deepspeed.zero | turned
        settings = known[name] | own | {"zero_optimization": zero}
        yield Change("ZeRO stage", {"deepspeed.config": settings}, f"deepspeed={name}", prices[name])


def _stage_of(deepspeed: DeepSpeed) -> str | None:
    """Which of `_STAGES` it is, by its stage and what it offloads: other keys may be the user's own."""
    stage = deepspeed.zero.get("stage", 0)
    if stage == 3:
        offload = deepspeed.zero.get("offload_optimizer") or {}
        return "zero3_offload" if offload.get("device", "none") != "none" else "zero3"
    return "zero2" if stage == 2 else None


def _pixels(setup: Setup) -> Iterator[Change]:
    pixels = setup.memory.max_pixels
    least = max(_LEAST_PIXELS, setup.memory.min_pixels)
    while pixels // 2 >= least:
        pixels //= 2
        yield _memory("max_pixels", "max_pixels", pixels, "smaller images: small objects get harder to see")


def _lora(setup: Setup) -> Iterator[Change]:
    if not setup.model.peft:
        yield Change(
            "LoRA", {"model.peft": _file("model/peft", "lora")}, "model/peft=lora",
            "another method: adapters of the language model are trained in place of all weights",
        )  # fmt: skip


def _group(setup: Setup) -> Iterator[Change]:
    if setup.trainer.name != "grpo":
        return
    first = size = setup.memory.num_generations
    while size // 2 >= _LEAST_GROUP:
        size //= 2
        noise = (first / size) ** 0.5
        yield _memory(
            "num_generations", "num_generations", size,
            f"a group's mean is {noise:.1f} times as noisy, and more groups have zero reward variance",
        )  # fmt: skip


def _memory(knob: str, key: str, value: Any, price: str) -> Change:
    said = str(value).lower() if isinstance(value, bool) else value
    return Change(knob, {f"memory.{key}": value}, f"memory.{key}={said}", price)


def _file(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((config_folder() / group / f"{name}.yaml").read_text(encoding="utf-8"))


_KNOBS_BY_NAME = {
    "evaluation batch": _evaluation_batch,
    "micro-batch": _micro_batch,
    "checkpointing": _checkpointing,
    "ZeRO stage": _stage,
    "max_pixels": _pixels,
    "LoRA": _lora,
    "num_generations": _group,
}
_IN_ORDER = tuple(_KNOBS_BY_NAME.values())
