"""Models of the true shapes without weights: from a config.json, or from what is known of the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedConfig, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from vrft.config.schema import Model
from vrft.errors import UserError, first_line
from vrft.memory.four_bits import pack
from vrft.models.adapters import lora_settings
from vrft.models.attention import register_attention
from vrft.models.families import FAMILIES, other_type_fault
from vrft.models.load import freeze_parts

_TEXT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_WINDOWS = {"fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112, "intermediate_size": 3420}
_DEEP_24 = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_DEEP_27 = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-VL-2B-Instruct": {
        "model_type": "qwen2_vl", "text": (1536, 8960, 28, 12, 2), "vocabulary": 151936, "is_tied": True,
        "vision": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16},
    },
    "Qwen/Qwen2-VL-7B-Instruct": {
        "model_type": "qwen2_vl", "text": (3584, 18944, 28, 28, 4), "vocabulary": 152064, "is_tied": False,
        "vision": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16},
    },
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "model_type": "qwen2_5_vl", "text": (2048, 11008, 36, 16, 2), "vocabulary": 151936, "is_tied": True,
        "vision": {"depth": 32, "hidden_size": 1280, "out_hidden_size": 2048, "num_heads": 16, **_WINDOWS},
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "model_type": "qwen2_5_vl", "text": (3584, 18944, 28, 28, 4), "vocabulary": 152064, "is_tied": False,
        "vision": {"depth": 32, "hidden_size": 1280, "out_hidden_size": 3584, "num_heads": 16, **_WINDOWS},
    },
    "Qwen/Qwen3-VL-2B-Instruct": {
        "model_type": "qwen3_vl", "text": (2048, 6144, 28, 16, 8), "vocabulary": 151936, "is_tied": True,
        "vision": {"out_hidden_size": 2048, "num_heads": 16, **_DEEP_24},
    },
    "Qwen/Qwen3-VL-4B-Instruct": {
        "model_type": "qwen3_vl", "text": (2560, 9728, 36, 32, 8), "vocabulary": 151936, "is_tied": True,
        "vision": {"out_hidden_size": 2560, "num_heads": 16, **_DEEP_24},
    },
    "Qwen/Qwen3-VL-8B-Instruct": {
        "model_type": "qwen3_vl", "text": (4096, 12288, 36, 32, 8), "vocabulary": 151936, "is_tied": False,
        "vision": {"out_hidden_size": 4096, "num_heads": 16, **_DEEP_27},
    },
}  # fmt: skip
"""The numbers in which the published configs differ; the rest are the classes' defaults. Text: hidden, intermediate,
layers, heads, heads of keys."""


def architecture(model: Model) -> PreTrainedConfig:
    """The config of `model.path`: of a published model as recorded here, else from its folder or the hub.

    model: the section of a frozen config. Raises `UserError` if there is none to be had.
    """
    path = model.path
    if path in PUBLISHED and not Path(path).is_dir():
        return _published(PUBLISHED[path])
    try:
        found = AutoConfig.from_pretrained(path, revision=model.revision, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={path}: no config.json to plan by ({first_line(error)})") from None
    if found.model_type not in {family.model_type for family in FAMILIES.values()}:
        raise UserError(f"model.path={path} is {other_type_fault(found.model_type)}")
    return found


def _published(known: dict[str, Any]) -> PreTrainedConfig:
    text = dict(zip(_TEXT, known["text"], strict=True)) | {"vocab_size": known["vocabulary"]}
    if known["model_type"] == "qwen3_vl":
        text["head_dim"] = 128
        sections = [24, 20, 20]
    else:
        sections = [16, 24, 24]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    return AutoConfig.for_model(
        known["model_type"],
        text_config=text,
        vision_config=known["vision"],
        tie_word_embeddings=known["is_tied"],
    )


def make_model(model: Model, found: PreTrainedConfig) -> PreTrainedModel:
    """The policy on the meta device, with frozen parts and adapter as in training."""
    register_attention()
    with torch.device("meta"):
        made = AutoModelForImageTextToText.from_config(
            found, dtype=getattr(torch, model.dtype), attn_implementation=_attention(model)
        )
        made.generation_config = GenerationConfig()
        freeze_parts(made, model.freeze, FAMILIES[model.family])
        if model.quantization:
            pack(made.model.language_model)  # `load_model` leaves out the vision tower and the head
        add_fused_lm_head(made, outputs=("log_probs", "entropy"))  # as TRL does, before the adapter is put on
        if model.peft:
            family = FAMILIES[model.family]
            settings = lora_settings(model.peft, family, frozen=model.freeze, revision=model.revision)
            made = get_peft_model(made, LoraConfig(**settings))
    return made


def _attention(model: Model) -> str:
    """The implementation to run: flash_attention_2 keeps what sdpa's fused kernels keep, and may not be installed."""
    return "eager" if model.attention == "eager" else "sdpa"
