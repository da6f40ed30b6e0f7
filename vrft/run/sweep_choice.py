"""Sweeps that choose hyperparameters on one seed: the children of other seeds run only with what was chosen."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vrft.errors import UserError
from vrft.report.run_files import RunFiles
from vrft.report.sweep import CHILDREN, rank, read_record
from vrft.run.directory import claimed
from vrft.run.resume import config_hash

PENALTY = -1.0  # the objective of a child that failed: finite, as a search (Optuna) needs, and below every metric
_ENDED = ("completed", "failed", "killed", "hung", "oom")


def objective(run_dir: Path) -> float:
    """The best validation figure of the first primary metric; without validation, that of `after` on the test set."""
    result = RunFiles(run_dir).result
    history = [entry["value"] for entry in result["validation"] if entry["value"] is not None]
    if history:
        return max(history)
    metrics = next(iter((result["after"] or result["before"] or {"": {}}).values()))
    value = metrics.get(result["primary_metrics"][0], {}).get("value")
    return PENALTY if value is None else value


def trial(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """A child's place in a sweep that chooses hyperparameters on one seed; None in any other sweep.

    `cell`: a hash of its composed config but for `knobs` (the hyperparameters to choose) and `seed`. `is_choosing`:
    True for the selection seed. Raises `UserError` where a knob is no key of the config.

    >>> def child(lr, seed):
    ...     question = {"choose": ["trainer.learning_rate"], "choose_seed": 0}
    ...     rest = {"model": {"path": None}, "question": question}
    ...     return trial({"trainer": {"learning_rate": lr, "max_steps": 9}, "run": {"seed": seed}, **rest})
    >>> child(1e-4, 0)["cell"] == child(3e-4, 1)["cell"], child(3e-4, 1)["knobs"], child(3e-4, 1)["seed"]
    (True, {'trainer.learning_rate': 0.0003}, 1)
    >>> child(1e-4, 0)["is_choosing"], child(1e-4, 1)["is_choosing"]
    (True, False)
    """
    question = values.get("question") or {}
    if question.get("choose_seed") is None:
        return None
    alike = copy.deepcopy(dict(values))
    knobs = {key: _take(alike, key) for key in question.get("choose") or []}
    seed = _take(alike, "run.seed")
    return {"cell": config_hash(alike), "knobs": knobs, "seed": seed, "is_choosing": seed == question["choose_seed"]}


def _take(config: dict[str, Any], key: str) -> Any:
    """Remove the value of a dotted key from the config, and return it."""
    *folders, name = key.split(".")
    section: Any = config
    for folder in folders:
        section = section.get(folder) if isinstance(section, dict) else None
    if not isinstance(section, dict) or name not in section or isinstance(section[name], dict):
        raise UserError(f"question.choose has {key!r}, which is no value of the config; choose_seed needs such keys")
    return section.pop(name)


def reason_to_skip(mine: dict[str, Any] | None, sweep_dir: Path) -> dict[str, Any] | None:
    """The record of a child that is not to run: the selection seed chose other hyperparameters, or has not finished.

    None: it runs. mine: its `trial`. Waits for children of the selection seed that another process runs.
    """
    if mine is None or mine["is_choosing"]:
        return None
    for name, record in _choosing(mine["cell"], sweep_dir).items():
        if record["state"] == "running":
            with claimed(sweep_dir / CHILDREN / f"{name}.lock", is_patient=True):
                pass
    found = _choosing(mine["cell"], sweep_dir)
    skipped = {"code": 0, "last_lines": [], "trial": mine}
    if unfinished := [name for name, record in found.items() if record["state"] not in _ENDED]:
        return {"state": "waiting", "cause": f"the choice needs {unfinished[0]}, which has not ended", **skipped}
    done = [name for name, record in found.items() if record["state"] == "completed"]
    tried = [(-objective(sweep_dir / name), found[name]["trial"]) for name in done]
    if not tried:
        return None
    _, best = min(tried, key=lambda one: (one[0], [rank(value) for value in one[1]["knobs"].values()]))
    if best["knobs"] == mine["knobs"]:
        return None
    chosen = ", ".join(f"{key}={value}" for key, value in best["knobs"].items())
    return {"state": "not_chosen", "cause": f"seed {best['seed']} chose {chosen} by validation", **skipped}


def _choosing(cell: str, sweep_dir: Path) -> dict[str, dict[str, Any]]:
    """The records of a cell's children of the selection seed, by name."""
    records = {path.stem: read_record(path) for path in sorted((sweep_dir / CHILDREN).glob("*.json"))}
    trials = {name: record.get("trial") or {} for name, record in records.items()}
    return {name: records[name] for name, one in trials.items() if one.get("is_choosing") and one["cell"] == cell}
