"""Loads a model and its processor from a folder or a hub name, and checks that each setting took effect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

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
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from vrft.errors import UserError, first_line
from vrft.files import check_model_files, model_folder_fault
from vrft.models.adapters import base_of, read_adapter
from vrft.models.chat_template import check_chat_template
from vrft.models.families import Family, other_type_fault, part_of

_DORA = WeightRenaming(r"lora_magnitude_vector\.default$", "lora_magnitude_vector.default.weight")
"""PEFT saves DoRA's magnitudes without `.weight`; transformers' `load_adapter` does not know of it."""


def load_processor(
    path: str,
    *,
    min_pixels: int,
    max_pixels: int,
    revision: str | None = None,
    trust_remote_code: bool = False,
    is_checked: bool = False,
) -> ProcessorMixin:
    """The processor. It pads on the left, and resizes each image to an area from `min_pixels` to `max_pixels`.

    Every verb loads it before any weights, so what is wrong with the folder is said here. Raises `UserError` if no
    processor can be loaded, if files differ from the folder's manifest, if the image processor does not take these
    limits, or as `check_chat_template` does. is_checked: True leaves out the manifest, for which all weights are read,
    and the trial of the template.
    """
    require_folder(path)
    if not is_checked:
        check_model_files(Path(path))
    with loading(f"model.path={path}"):
        processor = AutoProcessor.from_pretrained(
            path,
            revision=revision,
            trust_remote_code=trust_remote_code,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            padding_side="left",
        )
    size = processor.image_processor.size
    if (size["shortest_edge"], size["longest_edge"]) != (min_pixels, max_pixels):
        raise UserError(
            f"model.path={path}: the image processor has size {dict(size)}, but memory.min_pixels={min_pixels} and "
            f"memory.max_pixels={max_pixels} are set; it does not take these limits"
        )
    if not is_checked:
        check_chat_template(processor, path)
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
    Raises `UserError` if no model can be loaded, if weights are missing, superfluous, of another shape or not finite,
    or if it is of another family.
    """
    require_folder(path)
    adapter = read_adapter(Path(path))
    whole = base_of(Path(path), adapter) if adapter else path
    source = {"revision": adapter.get("revision") if adapter else revision, "trust_remote_code": trust_remote_code}
    with suppress(OSError, ValueError, ImportError):  # which loading the model reports
        _check_type(path, family, AutoConfig.from_pretrained(whole, **source).model_type)
    four_bits = _in_four_bits(dtype, device) if quantization else {}
    options = {"dtype": dtype, "attn_implementation": attention, **source, **four_bits}
    model = load_base(whole, adapter=path if adapter else None, **options)
    if adapter and whole != path:  # else transformers itself has added it
        _add_adapter(model, path, dtype=getattr(torch, dtype))
    _check_type(path, family, model.config.model_type)
    model = model if quantization else model.to(device)
    require_finite(path, model)
    return model


def load_base(path: str, *, adapter: str | None = None, **options: Any) -> PreTrainedModel:
    """The model of a folder or hub name with all weights of its own.

    adapter: the folder of the adapter whose base it is. options: of `from_pretrained`. Raises `UserError` if it cannot
    be loaded, or as `require_all_weights` does.
    """
    what = f"base_model_name_or_path={path} (of the adapter model.path={adapter})" if adapter else f"model.path={path}"
    # pytorch_model.bin is a pickle. What has another shape is named below, together with all else.
    careful = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    if Path(path).is_dir():
        path = str(Path(path).absolute())  # an adapter trained on it remembers the path, and is read elsewhere
    with loading(what):
        model, found = AutoModelForImageTextToText.from_pretrained(path, **careful, **options)
    require_all_weights(what, **found)
    return model


def _add_adapter(model: PreTrainedModel, path: str, *, dtype: torch.dtype) -> None:
    """Put the adapter of a folder into its base. Raises `UserError` as `load_model` does."""
    names = [*get_model_conversion_mapping(model), _DORA]
    how = {"dtype": dtype, "hf_quantizer": getattr(model, "hf_quantizer", None), "weight_mapping": names}
    with loading(f"model.path={path}"):
        found = model.load_adapter(path, use_safetensors=True, ignore_mismatched_sizes=True, **how)
    # Embeddings that are tied share one change of tokens, which is saved under the first name only.
    alone = {name for name, _ in model.named_parameters()}
    require_all_weights(f"model.path={path}", **found.to_dict() | {"missing_keys": found.missing_keys & alone})


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Within, what a library raises because it cannot load a model is a `UserError`. what: the key and its value."""
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError, UnpicklingError) as error:
        raise UserError(f"{what} could not be loaded: {first_line(error)}") from None


def require_all_weights(
    what: str, *, missing_keys: Iterable[str], unexpected_keys: Iterable[str], mismatched_keys: Iterable = (), **_: Any
) -> None:
    """Raise `UserError` naming weights that the files lack or have too much, or that have another shape.

    transformers would draw them at random, or leave them out. what: the key and its value. mismatched_keys: `(name,
    shape in the file, shape in the model)`.
    """
    shapes = [f"{name} {list(saved)} in place of {list(own)}" for name, saved, own in mismatched_keys]
    of_kind = {"missing": missing_keys, "not of this model": unexpected_keys, "of another shape": shapes}
    faults = [f"{_first(names)} {kind}" for kind, names in of_kind.items() if names]
    if faults:
        raise UserError(
            f"{what}: the weights do not fit its config.json (of an adapter: its adapter_config.json and "
            f"its base): {'; '.join(faults)}. Copy the whole model again, or give the one that the files belong to"
        )


def require_finite(path: str, model: PreTrainedModel) -> None:
    """Raise `UserError` naming weights that hold NaN or infinity."""
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.is_floating_point()}
    # The extremes of NaN are NaN. They take no memory, and the GPU is waited for once. Floats of 8 bits have none.
    wide = (weight if weight.dtype.itemsize > 1 else weight.to(torch.bfloat16) for weight in weights.values())
    extremes = torch.stack([torch.stack(weight.aminmax()).float() for weight in wide])
    is_finite = extremes.isfinite().all(dim=1).tolist()
    if faults := [name for name, is_right in zip(weights, is_finite, strict=True) if not is_right]:
        raise UserError(f"model.path={path}: {_first(faults)} NaN or infinite; take a checkpoint of finite weights")


def _first(names: Iterable[str]) -> str:
    """How many names there are, and the first three: `5 weights (a, b, c, …) are`."""
    names = sorted(names)
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} weights ({shown}) are" if len(names) > 1 else f"the weight {shown} is"


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
