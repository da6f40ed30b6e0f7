"""`vrft export`: a checkpoint as one folder that transformers and vLLM load, an adapter merged into its base."""

from __future__ import annotations

import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers.utils import cached_file

from vrft.config.verb_schema import ExportConfig
from vrft.errors import UserError, first_line
from vrft.files import publish, remove
from vrft.models.adapters import read_adapter
from vrft.models.load import require_folder

_CARD = "vrft.json"


def export(path: Path, out: Path, *, dtype: str | None = None, trust_remote_code: bool = False) -> dict[str, Any]:
    """Write the checkpoint in `path` to `out`: weights, processor, and its card where it has one.

    An adapter is merged in float32. dtype: of the weights written; None for that of the base, or of the checkpoint.
    Returns `{"is_merged", "n_weights", "n_bytes", "dtype"}`. Raises `UserError` where `out` holds anything, where
    `path` holds no checkpoint, or where what was written is not named as the base is.
    """
    _check_out(out)
    require_folder(str(path))
    adapter = read_adapter(path)
    base = _base_of(path, adapter) if adapter else str(path)
    source = {"trust_remote_code": trust_remote_code, "revision": adapter.get("revision")}
    try:
        if adapter:
            own = AutoConfig.from_pretrained(base, **source).dtype
            model = _merged(path, _load(base, "float32", **source))
            model = model.to(getattr(torch, dtype) if dtype else own or torch.float32)
        else:
            model = _load(base, dtype or "auto", **source)
        has_processor = (path / "tokenizer_config.json").is_file()
        processor = AutoProcessor.from_pretrained(path if has_processor else base, **source)
    except (OSError, ValueError, ImportError, SafetensorError, UnpicklingError) as error:
        raise UserError(f"model.path={path} cannot be exported: {first_line(error)}") from None
    staging = out.with_name(out.name + ".partial")
    remove(staging)
    try:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        if (path / _CARD).is_file():
            shutil.copy(path / _CARD, staging)
        names = weight_names(staging)
        known = weight_names(_folder_of(base, adapter.get("revision")))
        if other := names ^ known:
            raise UserError(
                f"the weights of model.path={path} are not named as in {base}, first {sorted(other)[0]}; others "
                "could not load them. Save them anew with the transformers that wrote the base"
            )
        n_bytes = sum(file.stat().st_size for file in staging.glob("*.safetensors"))
        publish(staging, out)
    finally:
        remove(staging)
    return {
        "is_merged": bool(adapter), "n_weights": len(names), "n_bytes": n_bytes, "dtype": str(model.dtype).split(".")[1]
    }  # fmt: skip


def weight_names(folder: Path) -> set[str]:
    """The names of all weights in a folder's safetensors files."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


def _folder_of(path: str, revision: str | None) -> Path:
    """A model's folder; of a hub name, that of the copy from which it has just been loaded."""
    if Path(path).is_dir():
        return Path(path)
    return Path(cached_file(path, "config.json", revision=revision, local_files_only=True)).parent


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out is {out}, which exists and is not empty; choose a new folder")


def _base_of(path: Path, adapter: dict[str, Any]) -> str:
    """The folder or hub name of the model that an adapter was trained on."""
    if not (path / "adapter_model.safetensors").is_file():
        raise UserError(f"{path} has no adapter_model.safetensors; other formats can run code")
    base = adapter["base_model_name_or_path"]
    require_folder(base)
    return base


def _load(path: str, dtype: str, **source: Any) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, use_safetensors=True, **source)


def _merged(path: Path, base: PreTrainedModel) -> PreTrainedModel:
    """The base, in float32, with the adapter's product added to it. Raises ValueError for what is no number."""
    return PeftModel.from_pretrained(base, path, use_safetensors=True).merge_and_unload(safe_merge=True)


def run(config: ExportConfig) -> None:
    """The verb: export as the frozen config says, and print what was written."""
    transformers.logging.disable_progress_bar()
    model, out = config.model, Path(config.out)
    made = export(Path(model.path), out, dtype=config.dtype, trust_remote_code=model.trust_remote_code)
    how = "the adapter merged into its base" if made["is_merged"] else "all weights"
    size = f"{made['n_bytes'] / 1e6:,.0f} MB in {made['dtype']}"
    print(f"exported: {out} ({how}: {made['n_weights']} tensors, {size}); for from_pretrained, vLLM and model.path=")
