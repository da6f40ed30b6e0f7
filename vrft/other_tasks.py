"""The other tasks that a run is judged on beside its own (`evaluate.others`): what training made the model forget."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def data_folder(run_dir: Path, other: str | None = None) -> Path:
    """Where the rows and images of a run lie, or those of another task that it is judged on."""
    return run_dir / "data" if other is None else run_dir / "data" / "others" / other


def evaluation_folder(run_dir: Path, other: str | None = None) -> Path:
    """Where completions and scores go, in a folder for each evaluation and one for each split below it."""
    return run_dir / "evaluations" if other is None else run_dir / "evaluations" / "others" / other


def other_names(config: dict[str, Any]) -> list[str]:
    """All of `evaluate.others` but the run's own task."""
    others = config["evaluate"]["others"] or {}
    return [name for name, other in others.items() if other["task"]["name"] != config["task"]["name"]]


def with_other(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The config as that other has it: its task, its rows, its protocol; nothing else to judge."""
    evaluate = config["evaluate"]
    return {**config, **evaluate["others"][name], "evaluate": {**evaluate, "titles": {}, "others": None}}
