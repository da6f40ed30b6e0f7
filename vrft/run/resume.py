"""What a run directory was started with, and whether the same run can resume in it."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from vrft.config.package_files import TINY_MODEL
from vrft.config.schema import Config
from vrft.config.section import flat
from vrft.errors import UserError, raise_all, shape_faults
from vrft.files import hash_kind, read_rows, read_written, write_text_atomically
from vrft.report.run_forms import Provenance
from vrft.tasks.rows import Row

_MAY_CHANGE = (  # what had ended it; on it goes
    "alarms.",
    "memory.completions_per_device",
    "memory.evaluation_batch_size",
    "memory.gradient_checkpointing",
    "reward.options.on_fault",
    "reward.options.timeout_s",
)
_NOT_HASHED = (
    "run.dir",
    "run.name",
    "run.resume",
    "dataset.n_processes",
    "logging",
    "question",
    "derived",
)
_OTHER = (
    "{0} was started with another experiment (a new one can start from model.path={0}/checkpoints/last), so "
    "run.resume=true cannot resume it:"
)
_NOT_OURS = "run.dir must be one that vrft has made"


class _Model(BaseModel):
    path: str | None


class _EarlierConfig(BaseModel):
    """A frozen config as far as two are compared; the whole may be that of another version."""

    model: _Model
    run: dict[str, Any] = {}
    dataset: dict[str, Any] = {}
    launch: dict[str, Any] | None = None


def read_config(run_dir: Path) -> Config:
    """The frozen config of a run directory. Raises `UserError` if it is not one that this version has written."""
    path = run_dir / "config.yaml"
    values = read_written(path, _EarlierConfig)
    faults = list(shape_faults(values, Config))
    if not faults and values.get("derived") is None:
        faults.append("derived is missing; vrft writes it")
    raise_all(faults, heading=f"{path} cannot be used; it is one that this version of vrft writes:")
    return Config.model_validate(values)


def write_config(run_dir: Path, config: Config) -> None:
    """Freeze the config in the run directory."""
    text = yaml.safe_dump(config.plain(), sort_keys=False, allow_unicode=True)
    write_text_atomically(run_dir / "config.yaml", text)


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256, as a hex string, over everything in a frozen config that can change a result.

    Left out: where the run lies, its name, its logging, and on which path the shipped model is installed.
    """
    return _sha256(_that_matters(config))


def lasting_hash(config: dict[str, Any]) -> str:
    """The same over what has to stay as it is when a run resumes: no alarms, no `reward.options.on_fault`."""
    return _sha256(_that_lasts(config))


def config_differences(former: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two frozen configs and has to stay, as `key: VALUE then, VALUE now`."""
    before, after = _that_lasts(former), _that_lasts(now)
    return [
        f"{key}: {before.get(key)!r} then, {after.get(key)!r} now"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def _that_lasts(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat(_that_matters(config)) if not key.startswith(_MAY_CHANGE)}


def _that_matters(config: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(config)
    for key in _NOT_HASHED:
        section, _, name = key.partition(".")
        (config.get(section, {}) if name else config).pop(name or section, None)
    if config.get("launch"):  # how many processes and of which kind, not by whom they are started
        kept = {key: value for key, value in config["launch"].items() if key in ("nproc_per_node", "nnodes", "device")}
        config["launch"] = {"nnodes": 1} | kept
    if config["model"]["path"] == str(TINY_MODEL):
        config["model"]["path"] = None
    return config


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def first_provenance(run_dir: Path) -> dict[str, Any]:
    """The record of provenance with which the run directory was started, or nothing."""
    path = run_dir / "provenance.json"
    return read_written(path, Provenance) if path.is_file() else {}


def check_same_config(run_dir: Path, config: dict[str, Any]) -> None:
    """Raise `UserError` that names every key in which the run directory's config differs in a way that matters."""
    path = run_dir / "config.yaml"
    made = [name for name in ("checkpoints", "evaluations") if (run_dir / name).exists()]
    if made and not path.is_file():
        raise UserError(f"{run_dir} has {' and '.join(made)} but no config.yaml to tell of what; {_NOT_OURS}")
    if path.is_file():
        raise_all(config_differences(read_written(path, _EarlierConfig), config), heading=_OTHER.format(run_dir))


def check_same_rows(data_dir: Path, splits: dict[str, list[Row]]) -> None:
    """Raise `UserError` that names, for each split, the first row that is not as it lies in `data_dir`."""
    faults = []
    for split, rows in splits.items():
        path = data_dir / f"{split}.jsonl"
        former = read_rows(path) if path.is_file() else rows
        now = json.loads(json.dumps(rows))  # tuples become lists
        if len(former) != len(now):
            faults.append(f"{split}: {len(former)} rows then, {len(now)} now")
        elif other := [(old, new) for old, new in zip(former, now, strict=True) if old != new]:
            old, new = other[0]
            keys = ", ".join(key for key in {**old, **new} if old.get(key) != new.get(key))
            faults.append(f"{split}: {len(other)} rows have changed, row {new['row_id']} first, in {keys}")
    raise_all(faults, heading=_OTHER.format(data_dir.parent))


def check_same_hashes(run_dir: Path, former: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """Raise `UserError` if images or model weights have other bytes than those the run directory was created with.

    Returns the hashes that the run keeps, as what it has evaluated is filed under them: those of an earlier version are
    of another kind. They cannot be compared; a warning says so.
    """
    names = {"data_hash": "an image has other bytes", "model_hash": "the model has other weights"}
    kept = {key: former[key] for key in names if former.get(key) and record[key]}
    kept = {key: noted for key, noted in kept.items() if hash_kind(noted) != hash_kind(record[key])}
    faults = [
        f"{what} ({key} {former.get(key)} then, {record[key]} now)"
        for key, what in names.items()
        if former and key not in kept and former.get(key) != record[key]
    ]
    raise_all(faults, heading=_OTHER.format(run_dir))
    if kept:
        print(
            f"warning: an earlier version wrote {' and '.join(kept)} of {run_dir} as SHA-256, which is not compared; "
            "check yourself whether images or weights have changed",
            file=sys.stderr,
        )
    return kept


def warn_of_versions(former: dict[str, Any], record: dict[str, Any]) -> None:
    """Print a warning where the code differs from what the run was started with: its bits may then differ too."""
    before, now = (
        {"python": one.get("python"), "commit": one.get("commit"), **(one.get("versions") or {})}
        for one in (former, record)
    )
    others = [f"{name} {before[name]} then, {now[name]} now" for name in before if before[name] != now.get(name)]
    if former and others:
        print(
            f"warning: the run was started with other code, so its bits may differ: {'; '.join(others)}",
            file=sys.stderr,
        )
