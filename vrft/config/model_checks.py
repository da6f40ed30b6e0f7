"""What is wrong with which weights are trained: parts that are frozen, adapters, quantization, DeepSpeed's stage."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

PARTS = ("vision", "projector", "language")


def part_faults(config: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each fault; the config's shape is known to be right."""
    model, deepspeed = config["model"], config["deepspeed"]["config"] or {}
    frozen, peft = set(model["freeze"]), model["peft"]
    if frozen >= set(PARTS):
        yield "model.freeze has vision, projector and language, so nothing would be trained; leave one of them out"
    if peft:
        yield from _adapter_faults(model)
    yield from _stage_faults(deepspeed.get("zero_optimization") or {})


def _stage_faults(zero: dict[str, Any]) -> Iterator[str]:
    key = "deepspeed.config.zero_optimization"
    if zero.get("stage", 0) not in (0, 1, 2, 3):
        yield f"{key}.stage is {zero['stage']!r}; 1, 2 or 3 is needed, or deepspeed=none"
    if zero.get("stage") == 3 and zero.get("stage3_gather_16bit_weights_on_model_save") is not True:
        yield f"{key}.stage3_gather_16bit_weights_on_model_save must be true, or checkpoints would hold no weights"


def quantization_faults(config: dict[str, Any], *, is_elsewhere: bool = False) -> Iterator[str]:
    """Yield why weights of 4 bits are not to be had, or not to be trained so.

    is_elsewhere: True where another machine is meant, so that its packages need not be here.
    """
    model, zero = config["model"], (config["deepspeed"]["config"] or {}).get("zero_optimization") or {}
    if not model["quantization"]:
        return
    if not is_elsewhere and not has_four_bits():
        yield (
            "model.quantization is nf4, which needs bitsandbytes: pip install 'vrft[qlora]', or choose model/peft=lora"
        )
    if config["evaluate"]["train"] and not model["peft"]:
        yield "model.quantization is nf4, and weights of 4 bits cannot be trained; choose model/peft=qlora"
    if config["evaluate"]["train"] and zero.get("stage") == 3:
        yield (
            "model.quantization=nf4 does not go with ZeRO-3, which would share out packed numbers; choose "
            "deepspeed=zero2 or none, or model/peft=lora with deepspeed=zero3"
        )


def has_four_bits() -> bool:
    """True where the package that keeps weights in 4 bits is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def _adapter_faults(model: dict[str, Any]) -> Iterator[str]:
    from vrft.models.adapters import parts_adapted
    from vrft.models.families import FAMILIES

    peft, frozen = model["peft"], set(model["freeze"])
    if frozen and peft.get("exclude_modules"):
        yield "model.peft.exclude_modules and model.freeze are both set; say in one of them what gets no adapter"
    if model["family"] in FAMILIES:
        adapted = parts_adapted(peft.get("target_modules"), FAMILIES[model["family"]])
        if adapted and adapted <= frozen < set(PARTS):
            yield (
                f"model.peft.target_modules has layers of {', '.join(sorted(adapted))} alone, and model.freeze leaves "
                "these out, so nothing would be trained; model/peft=lora_all adapts every part that is not frozen"
            )
