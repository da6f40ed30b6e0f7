"""Where LoRA goes: the linear layers that the config names, outside of the frozen parts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vrft.errors import UserError
from vrft.files import check_model_files, hash_kind, is_local, weight_hash
from vrft.models.families import Family, part_of, pattern_of
from vrft.models.prompt_settings import read_prompt_settings

_LAYERS = (
    *(f"model.language_model.layers.0.self_attn.{name}_proj" for name in "qkvo"),
    *(f"model.language_model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")),
    *(f"model.visual.blocks.0.attn.{name}" for name in ("qkv", "proj")),
    *(f"model.visual.blocks.0.mlp.{name}" for name in ("fc1", "gate_proj", "linear_fc1")),
    *(f"model.visual.merger.{name}" for name in ("mlp.0", "linear_fc1")),
)
"""Names of the linear layers in the first blocks of the three families. All blocks have the same ones."""


def parts_adapted(target_modules: Any, family: Family) -> set[str]:
    """The parts of the model (`vision`, `projector`, `language`) that get an adapter, without loading a model.

    target_modules: as in `peft.LoraConfig`, a regular expression for whole names or a list of name endings.
    """
    if isinstance(target_modules, str):
        if target_modules == "all-linear":
            target_modules = ".*"
        hit = [name for name in _LAYERS if re.fullmatch(target_modules, name)]
    else:
        hit = [name for name in _LAYERS if any(f".{name}".endswith(f".{end}") for end in target_modules or ())]
    return {part_of(f"{name}.weight", family) for name in hit}


def lora_settings(
    peft: Mapping[str, Any], family: Family, *, frozen: Sequence[str], revision: str | None
) -> dict[str, Any]:
    """The fields of `peft.LoraConfig`: `model.peft`, the frozen parts excluded, and the revision of the base model."""
    excluded = {"exclude_modules": pattern_of(frozen, family)} if frozen else {}
    return {**peft, **excluded, "revision": revision}


def read_adapter(folder: Path) -> dict[str, Any]:
    """The content of `adapter_config.json`; empty if the folder has none. Raises `UserError` if it names no base."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return {}
    try:
        adapter = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        adapter = None
    if not isinstance(adapter, dict) or not isinstance(adapter.get("base_model_name_or_path"), str):
        raise UserError(f"{path} names no base model (base_model_name_or_path); give it the folder or hub name")
    return adapter


def base_of(folder: Path, adapter: Mapping[str, Any]) -> str:
    """The folder or hub name of the model that an adapter was trained on; a folder that holds both is its own base.

    adapter: the content of its `adapter_config.json`. Raises `UserError` if the base is not there, or has other weights
    than in the adapter's training.
    """
    if (folder / "config.json").is_file() and any(folder.glob("model*.safetensors")):
        return str(folder)
    base = adapter["base_model_name_or_path"]
    said = f"model.path={folder} is an adapter of base_model_name_or_path={base} (in its adapter_config.json)"
    if is_local(base) and not (Path(base) / "config.json").is_file():
        raise UserError(
            f"{said}, where no model lies; write the whole path of the base's folder there, or a hub name, and delete "
            "the manifest.json beside it, which has the hash of what it was"
        )
    check_model_files(Path(base))
    trained = read_prompt_settings(str(folder)).get("base_hash")
    now = weight_hash(Path(base)) if isinstance(trained, str) else None  # it takes reading all weights
    if now and hash_kind(trained) == hash_kind(now) and trained != now:
        raise UserError(
            f"{said}, but was trained on other weights (base_hash in its vrft.json is {trained}, the base's is {now}); "
            "name the folder of the model that it was trained on"
        )
    return base


def check_targets(model: Any, peft: Mapping[str, Any]) -> None:
    """Raise `UserError` if `target_modules` matches no layer of the model."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(**peft)
    if config.target_modules in (None, "all-linear"):
        return
    if not any(check_target_module_exists(config, name) for name, _ in model.named_modules()):
        wanted = config.target_modules if isinstance(config.target_modules, str) else sorted(config.target_modules)
        raise UserError(
            f"model.peft.target_modules is {wanted!r}, and no layer outside of model.freeze has such a name; use the "
            "names of the model's linear layers: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
        )
