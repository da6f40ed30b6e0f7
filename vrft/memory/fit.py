"""The cheapest changes of a config that make it fit a GPU, in a fixed order, each with its price."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from vrft.config.batch_sizes import batch_sizes, n_processes
from vrft.config.checks import generation_faults, model_faults
from vrft.config.package_files import config_folder
from vrft.errors import UserError

KNOBS = (
    "memory.evaluation_batch_size",
    "memory.completions_per_device",
    "memory.gradient_checkpointing",
    "memory.max_pixels",
    "memory.num_generations",
    "deepspeed.config",
    "model.peft",
)
HEADROOM = 0.08  # share of a GPU left to the driver, to NCCL and to gaps between tensors
_STAGES = ("zero2", "zero3", "zero3_offload")
_LEAST_PIXELS = 50_176  # 64 tokens of 28 × 28
_LEAST_GROUP = 2


@dataclass(frozen=True)
class Change:
    """One knob turned. values: by dotted key, for the config. words: as on the command line. price: what it costs."""

    knob: str
    values: dict[str, Any]
    words: str
    price: str

    def applied(self, config: dict[str, Any]) -> dict[str, Any]:
        """A copy of the frozen config with the change in it, its batches derived again."""
        changed = copy.deepcopy(config)
        for key, value in self.values.items():
            *path, name = key.split(".")
            section = changed
            for part in path:
                section = section[part]
            section[name] = copy.deepcopy(value)
        changed["derived"] = changed["derived"] | batch_sizes(changed)
        return changed


def room(gpu_bytes: int) -> int:
    """Bytes of a GPU that a plan may take."""
    return int(gpu_bytes * (1 - HEADROOM))


def changes_that_fit(config: dict[str, Any], fits: Callable[[dict[str, Any]], bool]) -> list[Change] | None:
    """The changes after which a config fits, the cheapest first; none if it fits as it is, None if nothing helps.

    fits: of a frozen config. Knobs are turned in the order evaluation batch, micro-batch, checkpointing, ZeRO stage,
    `max_pixels`, LoRA and, last, `num_generations`; those that turn out not to be needed are turned back.
    """
    if fits(config):
        return []
    taken: list[Change] = []
    for steps in _IN_ORDER:
        chosen: Change | None = None
        for change in steps(_with(config, taken)):
            if not _is_allowed(config, [*taken, change]):
                continue
            chosen = change
            if fits(_with(config, [*taken, change])):
                return _pruned(config, [*taken, change], fits)
        taken += [chosen] if chosen else []
    return None


def first_changes(config: dict[str, Any]) -> dict[str, Change]:
    """The mildest change of each knob that is left to turn and allowed, by the knob's name."""
    found = {}
    for knob, steps in _KNOBS_BY_NAME.items():
        allowed = (change for change in steps(config) if _is_allowed(config, [change]))
        if change := next(allowed, None):
            found[knob] = change
    return found


def _with(config: dict[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    for change in changes:
        config = change.applied(config)
    return config


def _is_allowed(config: dict[str, Any], changes: Sequence[Change]) -> bool:
    """Whether the changed config would pass the checks that these knobs can break."""
    try:
        changed = _with(config, changes)
    except UserError:  # processes cannot share the step
        return False
    return not [*model_faults(changed, is_elsewhere=True), *generation_faults(changed)]


def _pruned(config: dict[str, Any], taken: list[Change], fits: Callable[[dict[str, Any]], bool]) -> list[Change]:
    """Without what the later changes have made needless, and the others no further than needed."""

    def is_enough(changes: Sequence[Change]) -> bool:
        return _is_allowed(config, changes) and fits(_with(config, changes))

    for change in taken[-2::-1]:  # the dearest first; the last one is needed
        others = [one for one in taken if one is not change]
        if is_enough(others):
            taken = others
            continue
        steps = _KNOBS_BY_NAME[change.knob](config)
        place = taken.index(change)
        for milder in steps:
            if milder.values == change.values:
                break
            if is_enough([*taken[:place], milder, *taken[place + 1 :]]):
                taken = [*taken[:place], milder, *taken[place + 1 :]]
                break
    return taken


def _evaluation_batch(config: dict[str, Any]) -> Iterator[Change]:
    size = config["memory"]["evaluation_batch_size"]
    while size > 4:
        size = max(size // 2, 4)
        yield _memory("evaluation batch", "evaluation_batch_size", size, "evaluations take a little longer")


def _micro_batch(config: dict[str, Any]) -> Iterator[Change]:
    if config["trainer"]["args"].get("steps_per_generation"):
        return  # it counts micro-batches, so a generation would shrink with them
    now = batch_sizes(config)["per_device_train_batch_size"]
    is_shared = config["trainer"]["name"] == "grpo" and bool(config["rollout"].get("sharing"))
    least = 2 if config["rollout"].get("sharing") == "on" else 1
    group = config["memory"]["num_generations"]
    size = now
    while size > least:
        size = _halved(config, size)
        parts = -(-group // size)
        price = "none: the same step in more pieces"
        if is_shared and parts > 1:
            price = f"each prompt is computed {parts} times in training; the results stay the same"
        if weighs_by_micro_batch(config):
            price = f"the result, a little: {BY_MICRO_BATCH}"
        yield _memory("micro-batch", "completions_per_device", size, price)


BY_MICRO_BATCH = "trainer.args.loss_type=bnpo divides by a micro-batch's tokens, so its size changes the loss"


def weighs_by_micro_batch(config: dict[str, Any]) -> bool:
    """True if the loss depends on how a step is cut into micro-batches."""
    return config["trainer"]["name"] == "grpo" and config["trainer"]["args"].get("loss_type") == "bnpo"


def _halved(config: dict[str, Any], size: int) -> int:
    """The micro-batch that the next lower limit gives."""
    tried = copy.deepcopy(config)
    tried["memory"]["completions_per_device"] = max(size // 2, 1)
    return batch_sizes(tried)["per_device_train_batch_size"]


def _checkpointing(config: dict[str, Any]) -> Iterator[Change]:
    if not config["memory"]["gradient_checkpointing"]:
        yield _memory("checkpointing", "gradient_checkpointing", True, "training steps take about a third longer")


def _stage(config: dict[str, Any]) -> Iterator[Change]:
    known = {name: _file("deepspeed", name)["config"] for name in _STAGES}
    now = next((name for name, value in known.items() if value == config["deepspeed"]["config"]), None)
    prices = {
        "zero2": "gradients and optimizer shared out: little",
        "zero3": "weights gathered at every layer: time, more the slower the network",
        "zero3_offload": "the optimizer works in main memory: much time, and that memory",
    }
    names = _STAGES[_STAGES.index(now) + 1 :] if now else _STAGES
    if config["model"]["quantization"]:
        names = [name for name in names if name == "zero2"]  # weights of 4 bits cannot be cut up
    if n_processes(config) == 1:
        names = [name for name in names if name == "zero3_offload"]  # alone there is nobody to share with
    for name in names:
        yield Change("ZeRO stage", {"deepspeed.config": known[name]}, f"deepspeed={name}", prices[name])


def _pixels(config: dict[str, Any]) -> Iterator[Change]:
    pixels = config["memory"]["max_pixels"]
    least = max(_LEAST_PIXELS, config["memory"]["min_pixels"])
    while pixels // 2 >= least:
        pixels //= 2
        yield _memory("max_pixels", "max_pixels", pixels, "smaller images: small objects get harder to see")


def _lora(config: dict[str, Any]) -> Iterator[Change]:
    if not config["model"]["peft"]:
        yield Change(
            "LoRA", {"model.peft": _file("model/peft", "lora")}, "model/peft=lora",
            "another method: adapters of the language model are trained in place of all weights",
        )  # fmt: skip


def _group(config: dict[str, Any]) -> Iterator[Change]:
    if config["trainer"]["name"] != "grpo":
        return
    first = size = config["memory"]["num_generations"]
    while size // 2 >= _LEAST_GROUP:
        size //= 2
        noise = (first / size) ** 0.5
        yield _memory(
            "num_generations", "num_generations", size,
            f"a group's mean is {noise:.1f} times as noisy, and more groups teach nothing for all rewards are equal",
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
