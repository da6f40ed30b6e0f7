"""What differs between model families: the frame of their boxes, their image sizes, the names of their parts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vrft.tasks.boxes import Frame


@dataclass(frozen=True)
class Family:
    """Facts about a model family, used wherever a question is put or a box is read.

    model_type: as the config of its checkpoints says.
    frame: the coordinate system its models were trained to speak.
    pixel_factor: the image is resized to multiples of it (patch size × merge size), in pixels.
    coordinate_step: written coordinates are multiples of it.
    parts: parameter-name prefixes of the vision tower, the projector and the language model (as in
        `model.named_parameters()`).
    """

    name: str
    model_type: str
    frame: str
    pixel_factor: int
    coordinate_step: int = 1
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
"""Frames as the models' authors state them: Qwen2-VL and Qwen3-VL 0..1000 of the image, Qwen2.5-VL pixels of the
resized image. `tiny` is the embedded Qwen2-VL with patches of 7 pixels, whose vocabulary holds every twentieth
number."""


def pixel_limits(memory: Mapping[str, Any]) -> dict[str, int]:
    """The areas, in pixels, between which images are resized, for `seen_size` and `frame_for`. memory: the section."""
    return {name: memory[name] for name in ("min_pixels", "max_pixels")}


def seen_size(image_wh: Sequence[int], family: Family, *, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (width, height) to which the family's image processor resizes an image, by its own arithmetic.

    `qwen_vl_utils.smart_resize` gives the same but for thin images, where it may even return a side of 0.
    """
    # imports torch and torchvision
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    width, height = image_wh
    seen_height, seen_width = smart_resize(
        height, width, factor=family.pixel_factor, min_pixels=min_pixels, max_pixels=max_pixels
    )
    return seen_width, seen_height


def frame_for(family: Family, image_wh: Sequence[int], *, min_pixels: int, max_pixels: int) -> Frame:
    """The frame in which the family speaks about an image of that size under these pixel limits."""
    seen_wh = seen_size(image_wh, family, min_pixels=min_pixels, max_pixels=max_pixels)
    return Frame(family.frame, tuple(image_wh), seen_wh, family.coordinate_step)


def part_of(parameter_name: str, family: Family) -> str:
    """`vision`, `projector` or `language`: which part of the model a parameter belongs to. Raises KeyError if unknown.

    >>> part_of("model.visual.merger.mlp.0.weight", FAMILIES["qwen2_vl"])
    'projector'
    """
    for part, prefix in family.parts:
        if parameter_name.startswith(prefix):
            return part
    raise KeyError(f"parameter {parameter_name!r} belongs to no part of family {family.name}")


def pattern_of(parts: Sequence[str], family: Family) -> str:
    """A regular expression for the whole names of modules in those parts.

    >>> bool(re.fullmatch(pattern_of(["vision"], FAMILIES["qwen2_vl"]), "model.visual.merger.mlp.0"))
    False
    """
    others, patterns = [], []
    for part, prefix in family.parts:
        if part not in parts:
            others.append(prefix)
        else:
            without = "".join(f"(?!{re.escape(other)})" for other in others if other.startswith(prefix))
            patterns.append(without + re.escape(prefix.removesuffix(".")) + r"(\..*)?")
    return "|".join(patterns)
