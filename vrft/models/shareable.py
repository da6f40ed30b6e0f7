"""What shared prompts are known to equal. All else takes the path of TRL or transformers, with the reason said.

These are lists of what is known, not of what is known to fail: a new model, adapter or sampling setting is not shared
until a test shows that results stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import LoraConfig, PeftModel
from transformers import GenerationConfig, PreTrainedModel

from vrft.models.attention import SHAREABLE_ATTENTION
from vrft.models.families import FAMILIES
from vrft.models.shared_prefix import without_adapter

# Settings that keep no state of their own per row: rows leave the batch when they end.
_SAMPLING = {
    *("max_new_tokens", "max_length", "min_new_tokens", "min_length", "eos_token_id", "pad_token_id", "bos_token_id"),
    *("do_sample", "temperature", "top_p", "top_k", "min_p", "suppress_tokens", "bad_words_ids"),
    *("use_cache", "disable_compile", "transformers_version", "_from_model_config"),
}
# Fields of LoRA that say where it goes, how large it is and how it begins. What it adds to a token depends on that
# token alone. Not so with `alora_invocation_tokens`, which looks for the place where a prompt ends.
_LORA = {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"),
    *("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("lora_dropout", "trainable_token_indices", "ensure_weight_tying"),
    *("peft_type", "task_type", "auto_mapping", "peft_version"),
    *("base_model_name_or_path", "revision", "inference_mode"),
}


def sharing_fault(model: PreTrainedModel | PeftModel, *, is_training: bool) -> str | None:
    """Why prompts of this model, its adapters included, cannot be shared, or None. is_training: dropout is active."""
    return next(_faults(model, is_training), None)


def _faults(model: PreTrainedModel | PeftModel, is_training: bool) -> Iterator[str]:
    base = without_adapter(model)
    text = base.config.get_text_config()
    if other := set(getattr(text, "layer_types", None) or ()) - {"full_attention"}:
        yield f"a {base.config.model_type} has layers of {', '.join(sorted(other))}"
    # Weights with code of their own may have a known type and another class.
    is_known = base.config.model_type in {family.model_type for family in FAMILIES.values()}
    if not is_known or not type(base).__module__.startswith("transformers.models."):
        yield f"a {base.config.model_type} ({type(base).__name__}) is not of the Qwen-VL families known here"
    if text._attn_implementation not in SHAREABLE_ATTENTION:
        yield f"model.attention={text._attn_implementation}; {' or '.join(SHAREABLE_ATTENTION)} is needed"
    for adapter in getattr(model, "peft_config", {}).values():
        yield from _adapter_faults(adapter)
    if is_training and (dropping := next((name for name, part in model.named_modules() if _drops_out(part)), None)):
        yield f"dropout is above 0 ({dropping or 'model'}), and fewer rows computed draw other masks"


def _adapter_faults(adapter: object) -> Iterator[str]:
    if type(adapter) is not LoraConfig:
        yield f"the adapter is a {type(adapter).__name__}; only LoRA is known to be the same wherever a token is"
        return
    default = LoraConfig().to_dict()
    other = {name for name, value in adapter.to_dict().items() if name not in _LORA and value != default.get(name)}
    if other:
        yield f"the adapter sets {', '.join(sorted(other))}, which may depend on where a token is"


def _drops_out(module: torch.nn.Module) -> bool:
    """True for a dropout layer, and for a layer with a rate such as `attention_dropout`, above 0."""
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
        return module.p > 0
    return any("drop" in name and isinstance(value, float) and value > 0 for name, value in vars(module).items())


def sampling_fault(config: GenerationConfig, checkpoint: GenerationConfig) -> str | None:
    """Why these sampling settings cannot be shared, or None.

    checkpoint: the model's own `generation_config`. `generate` takes from it what `config` leaves open.
    """
    asked = {name: value for name, value in config.to_dict().items() if value is not None}
    left_open = {name: value for name, value in checkpoint.to_dict().items() if name != "cache_implementation"}
    off = GenerationConfig._get_default_generation_params()  # values that stand for a setting that is not used
    other = {
        name
        for name, value in (left_open | asked).items()
        if name not in _SAMPLING and not (value is None or value is False or value == off.get(name))
    }
    return f"the sampling setting {', '.join(sorted(other))} is left to transformers" if other else None
