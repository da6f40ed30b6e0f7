"""The keys that name files and folders: what `~/` in them means, and which of them are not there."""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Mapping
from typing import Any

from vrft.files import is_local

PATHS = (
    "run.dir",
    "model.path",
    "dataset.path",
    "dataset.test_path",
    "dataset.image_root",
    "dataset.test_image_root",
    "dataset.instances",
    "dataset.classes",
    "dataset.test_classes",
    "predict.image",
    "predict.out",
    "plan.out",
    "annotations",
    "cases",
    "classes",
    "completions",
    "detections",
    "exist_map",
    "mask_model",
    "out",
    "rows",
    "runs",
)
_READ = ("model.path", "dataset.path", "dataset.test_path", "predict.image")  # before anything is made


def expand_home(values: dict[str, Any]) -> None:
    """Replace a leading `~/` in every path of a nested config, also in lists."""
    for key in PATHS:
        section, _, name = key.rpartition(".")
        holder = values.get(section) if section else values
        if isinstance(holder, dict) and name in holder:
            value = holder[name]
            holder[name] = [_expanded(one) for one in value] if isinstance(value, list) else _expanded(value)


def _expanded(path: Any) -> Any:
    return os.path.expanduser(path) if isinstance(path, str) and path.startswith("~/") else path


def missing_paths(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence for each path that is to be read and does not exist, found without reading any file."""
    for key in _READ:
        section, _, name = key.partition(".")
        path = (values.get(section) or {}).get(name)
        if not isinstance(path, str) or os.path.exists(path) or (key == "model.path" and not is_local(path)):
            continue
        yield f"{key} is {path!r}: there is no such file or folder"
