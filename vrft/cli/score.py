"""`vrft score`: any predictions in, the figures of a named protocol out, without a model."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vrft.config.cross_checks import judging_faults
from vrft.config.verb_schema import ScoreConfig
from vrft.errors import raise_all
from vrft.evaluate.protocols import protocol_key, ranking_faults
from vrft.files import write_text_atomically

_HEADING = "The config cannot be scored:"
_FILES = ("annotations", "detections", "exist_map", "cases", "completions", "rows")


def run(config: ScoreConfig) -> None:
    """Score what the config names, write `out`, print a table. Raises `UserError` for whatever cannot be scored.

    The file holds `{"protocol", "metrics": {name: {"value", "n", "interval"}}, "per_class", "absent_classes", "counts",
    "settings", "inputs": {file: SHA-256}}`, masks also `cases`. It is written in one piece, after all else has gone
    well. Completions that are scored by annotations also give a results file: OUT, but ending in `.detections.json`.
    """
    faults = config_faults(config.plain())
    faults += judging_faults(config.task, config.reward, config.trust_code) if config.completions else []
    raise_all(faults, heading=_HEADING)
    _score(config.plain())


def _score(config: dict[str, Any]) -> None:
    mask_of = lazy_mask_model(config["mask_model"])
    found = None
    if config["completions"]:
        from vrft.evaluate.completion_files import score_own

        result, found = score_own(config, mask_of)
    else:
        result = _SCORERS[config["protocol"]["scorer"]](config, mask_of)
    paths = [path for key in (*_FILES, "classes") for path in _paths(config, key)]
    settings = {key: config[key] for key in ("protocol", "classes", "frame", "mask_model")}
    name = protocol_key(config["protocol"]) + ("_mask_model" if mask_of else "")
    report = {"protocol": name, **result, "settings": settings, "inputs": _hashes(paths)}
    out = Path(config["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    if found is not None:
        write_text_atomically(_results_file(config), json.dumps(found) + "\n")
        print(f"detections: {_results_file(config)}")
    write_text_atomically(out, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    print(table(report))
    print(f"scores: {out}")


def config_faults(config: Mapping) -> list[str]:
    """What is wrong with a config of the right shape: files it needs or does not read, and a bad `out`."""
    protocol = config["protocol"]
    needed, optional = _keys(config)
    given = [key for key in (*_FILES, "classes") if config[key]]
    name = protocol["name"]
    faults = [f"{key} must be given for protocol={name}: {key}=FILE" for key in needed if not config[key]]
    faults += [
        f"{key} is given, which protocol={name} does not read here; it reads {', '.join([*needed, *optional])}"
        for key in given
        if key not in (*needed, *optional)
    ]
    if config["mask_model"] and protocol["scorer"] != "masks":
        faults.append(f"mask_model is given, which protocol={name} does not use; reasonseg_* do")
    inputs = {path.resolve() for key in given for path in _paths(config, key)}
    written = [Path(config["out"]), *([_results_file(config)] if config["completions"] else [])]
    faults += [
        f"out is {config['out']}, and {path} is a folder or one of the files that are scored; give a file of its own"
        for path in written
        if path.is_dir() or path.resolve() in inputs
    ]
    return faults + ranking_faults(protocol)


def table(report: Mapping) -> str:
    """The metrics and the counts that are not 0, as text.

    >>> print(table({"protocol": "p_v1", "metrics": {"AP": {"value": 0.5, "n": 2, "interval": None}}, "counts": {},
    ...              "absent_classes": ["cat"], "per_class": {}}))
    p_v1                            value  95 % interval             n
    AP                             0.5000  -                         2
    absent classes: 1 (cat)
    """
    lines = [f"{report['protocol']:28}{'value':>9}  {'95 % interval':18}{'n':>9}"]
    for name, metric in report["metrics"].items():
        value = "-" if metric["value"] is None else f"{metric['value']:.4f}"
        interval = "[{:.4f}, {:.4f}]".format(*metric["interval"]) if metric["interval"] else "-"
        lines.append(f"{name:28}{value:>9}  {interval:18}{metric['n']:>9}")
    lines += [f"{name.replace('_', ' ')}: {n}" for name, n in report["counts"].items() if n or name == "detections"]
    if absent := report["absent_classes"]:
        more = ", …" if len(absent) > 10 else ""
        lines.append(f"absent classes: {len(absent)} ({', '.join(absent[:10])}{more})")
    return "\n".join(lines)


def _results_file(config: Mapping) -> Path:
    return Path(config["out"]).with_suffix(".detections.json")


def _keys(config: Mapping) -> tuple[list[str], list[str]]:
    """The keys of files that the protocol needs, and those that it can do without."""
    protocol = config["protocol"]
    has_files = protocol["scorer"] in ("coco", "lvis")
    asks_map = ["exist_map"] if protocol.get("asked") == "exist_map" else []
    if config["completions"] or protocol["scorer"] not in _SCORERS or protocol.get("asked") == "rows":
        if has_files and (config["annotations"] or protocol["scorer"] == "lvis" or asks_map):
            return ["completions", "rows", "annotations", *asks_map], ["classes"]
        return ["completions", "rows"], ["annotations"] if has_files else []
    if has_files:
        return ["annotations", "detections", *asks_map], ["classes"]
    return ["cases"], ["classes"] if protocol["scorer"] == "classification" else []


def _score_boxes(config: Mapping, _: None) -> dict:
    from vrft.evaluate.box_files import score_coco_file, score_lvis_file

    protocol = config["protocol"]
    files = Path(config["annotations"]), _paths(config, "detections")
    options = {"classes": config["classes"], "n_resamples": protocol["n_resamples"]}
    if protocol["scorer"] == "lvis":
        return score_lvis_file(*files, **options)
    exist_map = Path(config["exist_map"]) if config["exist_map"] else None
    return score_coco_file(*files, asked=protocol.get("asked") or "all", exist_map=exist_map, **options)


def _score_labels(config: Mapping, _: None) -> dict:
    from vrft.evaluate.label_lists import score_label_file

    n_resamples = config["protocol"]["n_resamples"]
    return score_label_file(Path(config["cases"]), classes=config["classes"], n_resamples=n_resamples)


def _score_masks(config: Mapping, mask_of: Callable | None) -> dict:
    from vrft.evaluate.masks import score_mask_file

    protocol = config["protocol"]
    polygons = protocol.get("polygons") or "all"
    return score_mask_file(
        Path(config["cases"]), polygons=polygons, n_resamples=protocol["n_resamples"], mask_of=mask_of
    )


_SCORERS: dict[str, Callable[[Mapping, Callable | None], dict]] = {
    "coco": _score_boxes,
    "lvis": _score_boxes,
    "classification": _score_labels,
    "masks": _score_masks,
}


def lazy_mask_model(mask_model: str | None) -> Callable | None:
    """A function from an image and a box to a mask, whose model is loaded when it is first called; None without one."""
    if not mask_model:
        return None

    @functools.cache
    def model() -> Callable:
        import torch

        from vrft.models.box_masks import load_mask_model

        return load_mask_model(mask_model, device="cuda" if torch.cuda.is_available() else "cpu")

    return lambda image, xyxy: model()(image, xyxy)


def _paths(config: Mapping, key: str) -> list[Path]:
    """The files that a key names; none where it holds class names themselves."""
    value = config[key]
    if isinstance(value, list):
        return [Path(one) for one in value] if key == "detections" else []
    return [Path(value)] if value else []


def _hashes(paths: list[Path]) -> dict[str, str]:
    """SHA-256 by the files' names, or by their paths where two have the same name."""
    has_twins = len({path.name for path in paths}) < len(paths)
    return {str(path) if has_twins else path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
