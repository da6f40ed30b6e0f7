"""What is wrong with which weights are trained: parts that are frozen, adapters, quantization, DeepSpeed's stage."""

from __future__ import annotations

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
    if not model["quantization"]:
        return
    if not peft:
        yield "model.quantization is nf4, and weights of 4 bits cannot be trained; choose model/peft=qlora"
    if (deepspeed.get("zero_optimization") or {}).get("stage") == 3:
        yield (
            "model.quantization=nf4 does not go with ZeRO-3, which would share out packed numbers; choose "
            "deepspeed=zero2 or none, or model/peft=lora with deepspeed=zero3"
        )


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
