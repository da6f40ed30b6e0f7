"""`vrft export`: a checkpoint as one folder that transformers and vLLM load, an adapter merged into its base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoProcessor, PreTrainedModel
from transformers.utils import cached_file

from vrft.config.verb_schema import ExportConfig
from vrft.errors import UserError
from vrft.files import check_model_files, publish, remove
from vrft.models.adapters import base_of, read_adapter
from vrft.models.load import load_base, loading, require_all_weights, require_finite, require_folder

_CARD = "vrft.json"


def export(path: Path, out: Path, *, dtype: str | None = None, trust_remote_code: bool = False) -> dict[str, Any]:
    """Write the checkpoint in `path` to `out`: weights, processor, and its card where it has one.

    An adapter is merged in float32. dtype: of the weights written; None for that of the base, or of the checkpoint.
    Returns `{"is_merged", "n_weights", "n_bytes", "dtype"}`. Raises `UserError` where `out` holds anything, where
    `path` holds no whole checkpoint, or where what was written is not named as the base is.
    """
    _check_out(out)
    require_folder(str(path))
    check_model_files(path)
    adapter = read_adapter(path)
    if adapter and not (path / "adapter_model.safetensors").is_file():
        raise UserError(f"{path} has no adapter_model.safetensors; other formats can run code")
    base = base_of(path, adapter) if adapter else str(path)
    if adapter and base == str(path):
        raise UserError(
            f"model.path is {path}, a whole model with an adapter beside; move the adapter_* files to a folder of "
            "their own, and name the model there as base_model_name_or_path in adapter_config.json"
        )
    source = {"trust_remote_code": trust_remote_code, "revision": adapter.get("revision")}
    if adapter:
        whole = load_base(base, adapter=str(path), dtype="float32", **source)
        own = AutoConfig.from_pretrained(base, **source).dtype or torch.float32
        model = _merged(path, whole).to(getattr(torch, dtype) if dtype else own)
    else:
        model = load_base(base, dtype=dtype or "auto", **source)
    require_finite(str(path), model)
    has_processor = (path / "tokenizer_config.json").is_file()
    with loading(f"model.path={path}"):
        processor = AutoProcessor.from_pretrained(path if has_processor else base, **source)
    staging = out.with_name(out.name + ".partial")
    remove(staging)
    try:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        _for_older_readers(staging)
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


def _merged(path: Path, base: PreTrainedModel) -> PreTrainedModel:
    """The base, in float32, with the adapter's product added to it."""
    with loading(f"model.path={path}"):
        config = PeftConfig.from_pretrained(path)
        config.inference_mode = True
        model = PeftModel(base, config)
        found = model.load_adapter(path, model.active_adapter, use_safetensors=True, ignore_mismatched_sizes=True)
        keys = {"missing_keys": found.missing_keys, "unexpected_keys": found.unexpected_keys}
        require_all_weights(f"model.path={path}", **keys)
        return model.merge_and_unload(safe_merge=True)


def _for_older_readers(folder: Path) -> None:
    """Say in a folder's files what transformers 4 and what pins it read, beside what transformers 5 reads.

    transformers 4 looks for rotary positions and tied embeddings in `text_config`, and for special tokens under their
    former name.
    """
    with _edited(folder / "config.json") as config:
        text = config.get("text_config", config)
        text["tie_word_embeddings"] = config.get("tie_word_embeddings", False)
        if rope := text.get("rope_parameters"):
            if "rope_theta" in rope:
                text["rope_theta"] = rope["rope_theta"]
            text["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    if (path := folder / "tokenizer_config.json").is_file():
        with _edited(path) as settings:
            if isinstance(settings.get("extra_special_tokens"), list):
                settings["additional_special_tokens"] = settings.pop("extra_special_tokens")


@contextmanager
def _edited(path: Path) -> Iterator[dict[str, Any]]:
    """The content of a JSON file, written back when the block ends."""
    content = json.loads(path.read_text(encoding="utf-8"))
    yield content
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def run(config: ExportConfig) -> None:
    """The verb: export as the frozen config says, and print what was written."""
    transformers.logging.disable_progress_bar()
    model, out = config.model, Path(config.out)
    made = export(Path(model.path), out, dtype=config.dtype, trust_remote_code=model.trust_remote_code)
    how = "the adapter merged into its base" if made["is_merged"] else "all weights"
    size = f"{made['n_bytes'] / 1e6:,.0f} MB in {made['dtype']}"
    print(f"exported: {out} ({how}: {made['n_weights']} tensors, {size}); for from_pretrained, vLLM and model.path=")
