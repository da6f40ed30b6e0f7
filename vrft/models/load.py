"""Loads a model and its processor from a folder or a hub name, and checks that each setting took effect."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from vrft.errors import UserError, first_line
from vrft.files import model_folder_fault
from vrft.models.adapters import read_adapter
from vrft.models.families import Family, other_type_fault, part_of


def load_processor(
    path: str, *, min_pixels: int, max_pixels: int, revision: str | None = None, trust_remote_code: bool = False
) -> ProcessorMixin:
    """The processor. It pads on the left, and resizes each image to an area from `min_pixels` to `max_pixels`.

    Raises `UserError` if no processor can be loaded, or its image processor does not take these limits.
    """
    require_folder(path)
    try:
        processor = AutoProcessor.from_pretrained(
            path,
            revision=revision,
            trust_remote_code=trust_remote_code,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            padding_side="left",
        )
    except (OSError, ValueError) as error:
        raise UserError(_load_fault(path, error)) from None
    size = processor.image_processor.size
    if (size["shortest_edge"], size["longest_edge"]) != (min_pixels, max_pixels):
        raise UserError(
            f"model.path={path}: the image processor has size {dict(size)}, but memory.min_pixels={min_pixels} and "
            f"memory.max_pixels={max_pixels} are set; it does not take these limits"
        )
    return processor


def load_model(
    path: str,
    *,
    family: Family | None = None,
    dtype: str = "float32",
    attention: str = "sdpa",
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
) -> PreTrainedModel:
    """The model on `device`, in evaluation mode. An adapter's folder gives its base model with the adapter.

    quantization: `nf4` stores the language model in 4 bits and computes in `dtype`; the other parts stay in `dtype`.
    Raises `UserError` if no model can be loaded, or it is of another family.
    """
    require_folder(path)
    if adapter := read_adapter(Path(path)):
        revision = adapter.get("revision")  # of the base model
    elif family:  # before the weights are read
        with contextlib.suppress(OSError, ValueError):  # which loading the model reports
            config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
            _check_type(path, family, config.model_type)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            revision=revision,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,  # pytorch_model.bin is a pickle
            **(_in_four_bits(dtype, device) if quantization else {}),
        )
    except (OSError, ValueError, ImportError, SafetensorError, UnpicklingError) as error:
        raise UserError(_load_fault(path, error)) from None
    _check_type(path, family, model.config.model_type)
    return model if quantization else model.to(device)


def _in_four_bits(dtype: str, device: str) -> dict:
    """Arguments of `from_pretrained` for 4 bits: QLoRA's setting (Dettmers et al. 2023), with double quantization."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=["model.visual", "lm_head"],
    )
    return {"quantization_config": config, "device_map": {"": device}}


def freeze_parts(model: PreTrainedModel, parts: Sequence[str], family: Family) -> None:
    """Turn off gradients for the named parts (`vision`, `projector`, `language`)."""
    for name, parameter in model.named_parameters():
        if part_of(name, family) in parts:
            parameter.requires_grad_(False)


def require_folder(path: str) -> None:
    """Raise `UserError` if a local path is not a model's folder. Other paths are names on the hub."""
    if fault := model_folder_fault(path):
        raise UserError(fault)


def _check_type(path: str, family: Family | None, model_type: str) -> None:
    """Raise `UserError` if the weights are of another type than the family's."""
    if family is not None and model_type != family.model_type:
        fault = other_type_fault(model_type)
        raise UserError(f"model.family is {family.name}, but the weights at model.path={path} are {fault}")


def _load_fault(path: str, error: Exception) -> str:
    return f"model.path={path} could not be loaded: {first_line(error)}"
