"""Faults in which weights are trained: frozen parts, adapters, quantization, DeepSpeed's stage."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vrft.config.schema import DeepSpeed, Model, Trainer

PARTS = ("vision", "projector", "language")


def part_faults(model: Model, deepspeed: DeepSpeed) -> Iterator[str]:
    """Yield why nothing could be trained, or no checkpoint saved."""
    if set(model.freeze) >= set(PARTS):
        yield "model.freeze has vision, projector and language, so nothing would be trained; leave one of them out"
    if model.peft:
        yield from _adapter_faults(model.peft, model)
    key, zero = "deepspeed.config.zero_optimization", deepspeed.zero
    if zero.get("stage", 0) not in (0, 1, 2, 3):
        yield f"{key}.stage is {zero['stage']!r}; 1, 2 or 3 is needed, or deepspeed=none"
    if zero.get("stage") == 3 and zero.get("stage3_gather_16bit_weights_on_model_save") is not True:
        yield f"{key}.stage3_gather_16bit_weights_on_model_save must be true, or checkpoints would hold no weights"


def type_faults(model: Model, path: str) -> Iterator[str]:
    """Yield that no family knows the weights in folder `path`.

    Those of a hub, and of code that is trusted and may give its model another type, are seen when they are loaded.
    """
    if model.trust_remote_code:
        return
    from vrft.models.families import FAMILIES, other_type_fault

    try:
        found = json.loads((Path(path) / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):  # no folder, or one that loading refuses
        return
    if isinstance(found, str) and found not in {family.model_type for family in FAMILIES.values()}:
        yield f"model.family is {model.family}, but the weights at model.path={path} are {other_type_fault(found)}"


def quantization_faults(
    model: Model, deepspeed: DeepSpeed, *, is_training: bool, is_remote: bool = False
) -> Iterator[str]:
    """Yield why 4-bit weights are not available, or cannot be trained like this.

    is_remote: True if the run is for another machine, so packages may be missing here.
    """
    if not model.quantization:
        return
    if not is_remote and not has_four_bits():
        yield (
            "model.quantization is nf4, which needs bitsandbytes: pip install 'vrft[qlora]', or choose model/peft=lora"
        )
    if is_training and not model.peft:
        yield "model.quantization is nf4, and 4-bit weights cannot be trained; choose model/peft=qlora"
    if is_training and deepspeed.zero.get("stage") == 3:
        yield (
            "model.quantization=nf4 does not go with ZeRO-3, which would share out packed numbers; choose "
            "deepspeed=zero2 or none, or model/peft=lora with deepspeed=zero3"
        )


def unshared_key(model: Model, trainer: Trainer) -> str | None:
    """The setting of an adapter or trainer with which no prompt is shared, as `KEY=VALUE`, or None."""
    peft, noise = model.peft or {}, trainer.args.get("neftune_noise_alpha")
    keys = {
        "model.peft.lora_dropout": peft.get("lora_dropout"),
        "model.peft.alora_invocation_tokens": peft.get("alora_invocation_tokens"),
        "trainer.args.neftune_noise_alpha": None if noise is None else str(noise),  # one of 0 draws, too
    }
    return next((f"{key}={value}" for key, value in keys.items() if value), None)


def has_four_bits() -> bool:
    """True if bitsandbytes, the package for 4-bit weights, is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def _adapter_faults(peft: dict[str, Any], model: Model) -> Iterator[str]:
    from vrft.models.adapters import parts_adapted
    from vrft.models.families import FAMILIES

    frozen = set(model.freeze)
    if frozen and peft.get("exclude_modules"):
        yield "model.peft.exclude_modules and model.freeze are both set; say in one of them what gets no adapter"
    if model.family in FAMILIES:
        adapted = parts_adapted(peft.get("target_modules"), FAMILIES[model.family])
        if adapted and adapted <= frozen < set(PARTS):
            yield (
                f"model.peft.target_modules has layers of {', '.join(sorted(adapted))} alone, and model.freeze leaves "
                "these out, so nothing would be trained; model/peft=lora_all adapts every part that is not frozen"
            )
