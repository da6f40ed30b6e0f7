"""What differs between model families: the frame of boxes, the size of images, the names of the model's parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vrft.tasks.boxes import Frame


@dataclass(frozen=True)
class Family:
    """Facts about a model family.

    model_type: the key `model_type` of its checkpoints' config.
    frame: the coordinate system in which its models were trained to write boxes.
    pixel_factor: the sides of a resized image are multiples of it (patch size × merge size), in pixels.
    coordinate_step: written coordinates are multiples of it.
    parts: prefixes of parameter names (`model.named_parameters()`) and the part that each belongs to. The first prefix
        that fits counts.
    """

    name: str
    model_type: str
    frame: str
    pixel_factor: int
    coordinate_step: int = 1
    # The projector comes first: its parameters lie inside `model.visual.`, too.
    parts: tuple[tuple[str, str], ...] = (
        ("projector", "model.visual.merger."),
        ("projector", "model.visual.deepstack_merger_list."),
        ("vision", "model.visual."),
        ("language", "model.language_model."),
        ("language", "lm_head."),
    )


FAMILIES = {
    family.name: family
    for family in (
        Family("qwen2_vl", "qwen2_vl", "norm1000", 28),
        Family("qwen2_5_vl", "qwen2_5_vl", "seen_pixels", 28),
        Family("qwen3_vl", "qwen3_vl", "norm1000", 32),
        Family("tiny", "qwen2_vl", "norm1000", 14, coordinate_step=20),
    )
}
"""Frames are those that the models' authors state. Qwen2-VL and Qwen3-VL write 0..1000 of the image, Qwen2.5-VL writes
pixels of the resized image. `tiny` is the embedded Qwen2-VL: its patches are 7 pixels wide, and its vocabulary has only
every twentieth number."""

NOT_SUPPORTED = {
    "qwen3_vl_moe": "a mixture of experts, which has no family here yet",
    "qwen3_5": "with layers of linear attention, which LoRA's names and shared prompts do not cover",
    "qwen3_5_moe": "with layers of linear attention, which LoRA's names and shared prompts do not cover",
    "qwen4_exp": "with sparse attention whose blocks mix neighbouring tokens, which shared prompts do not cover",
    "qwen2_5_omni": "which also hears and speaks; vrft trains on images and text alone",
    "qwen3_omni_moe": "which also hears and speaks; vrft trains on images and text alone",
}
"""Newer Qwen models by `model_type`, and why none of the families fits."""


def other_type_fault(model_type: str) -> str:
    """What to say of a `model_type` that is not the one of the chosen family."""
    if model_type in {family.model_type for family in FAMILIES.values()}:
        return f"a {model_type}, which may write boxes in another frame; choose the matching model=…"
    reason = f", {NOT_SUPPORTED[model_type]}" if model_type in NOT_SUPPORTED else ""
    known = ", ".join(sorted({family.model_type for family in FAMILIES.values()}))
    return f"a {model_type}{reason}; vrft supports {known}"


def seen_size(image_wh: Sequence[int], family: Family, *, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (width, height) to which the family's image processor resizes an image; limits are areas in pixels."""
    # transformers' function, not `qwen_vl_utils.smart_resize`: that one differs for thin images, and may return 0.
    # Imported here, because it imports torch and torchvision.
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    width, height = image_wh
    seen_height, seen_width = smart_resize(
        height, width, factor=family.pixel_factor, min_pixels=min_pixels, max_pixels=max_pixels
    )
    return seen_width, seen_height


def frame_for(family: Family, image_wh: Sequence[int], *, min_pixels: int, max_pixels: int) -> Frame:
    """The frame in which the family writes boxes of an image of this size; limits are areas in pixels."""
    seen_wh = seen_size(image_wh, family, min_pixels=min_pixels, max_pixels=max_pixels)
    return Frame(family.frame, tuple(image_wh), seen_wh, family.coordinate_step)


def part_of(parameter_name: str, family: Family) -> str:
    """The part of the model that holds a parameter: `vision`, `projector` or `language`. Raises KeyError if unknown.

    >>> part_of("model.visual.merger.mlp.0.weight", FAMILIES["qwen2_vl"])
    'projector'
    """
    for part, prefix in family.parts:
        if parameter_name.startswith(prefix):
            return part
    raise KeyError(f"parameter {parameter_name!r} belongs to no part of family {family.name}")


def pattern_of(parts: Sequence[str], family: Family) -> str:
    """A regular expression that matches the whole names of all modules in these parts.

    >>> bool(re.fullmatch(pattern_of(["vision"], FAMILIES["qwen2_vl"]), "model.visual.merger.mlp.0"))
    False
    """
    excluded, patterns = [], []
    for part, prefix in family.parts:
        if part not in parts:
            excluded.append(prefix)
        else:  # `model.visual.` must not match the projector inside of it
            lookahead = "".join(f"(?!{re.escape(other)})" for other in excluded if other.startswith(prefix))
            patterns.append(lookahead + re.escape(prefix.removesuffix(".")) + r"(\..*)?")
    return "|".join(patterns)
