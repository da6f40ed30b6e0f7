"""The verb `score`: any predictions in, the figures of a named protocol out, without a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vrft.boxes import Frame
from vrft.configure import judging_faults
from vrft.errors import raise_all
from vrft.evaluate.protocols import protocol_key, scorer_for
from vrft.rows import Row, numbered_rows
from vrft.schema import Protocol, Reward, shape_faults

_HEADING = "The config cannot be scored:"
_FILES = ("annotations", "detections", "exist_map", "cases", "completions", "rows")


@dataclass
class ScoreConfig:
    """A resolved config of the verb score."""

    protocol: Protocol
    task: dict
    reward: Reward
    trust_code: list[str]
    out: str
    annotations: str | None
    detections: str | list[str] | None
    exist_map: str | None
    cases: str | None
    completions: str | None
    rows: str | None
    classes: str | list[str] | None
    engine: Literal["official", "faster"]
    frame: Literal["norm1000", "seen_pixels", "pixels", "norm1"]


def score_file(config: dict[str, Any]) -> None:
    """Score what the config names, write `out`, print a table. Raises `UserError` for whatever cannot be scored.

    The file holds `{"protocol", "metrics": {name: {"value", "n", "interval"}}, "per_class", "absent_classes", "counts",
    "inputs": {file: SHA-256}}`, masks also `cases`. It is written in one piece, after all else has gone well.
    """
    raise_all(list(shape_faults(config, ScoreConfig)), heading=_HEADING)
    raise_all(list(config_faults(config)), heading=_HEADING)
    result = _scored(config)
    paths = [path for key in (*_FILES, "classes") for path in _paths(config, key)]
    report = {"protocol": protocol_key(config["protocol"]), **result, "inputs": _hashes(paths)}
    out = Path(config["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(out)
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
    if protocol["n_resamples"] < 1:
        faults.append(f"protocol.n_resamples is {protocol['n_resamples']}; at least 1 is needed")
    if config["engine"] == "faster" and "detections" not in needed:
        faults.append("engine is 'faster', which scores detections; leave it out")
    inputs = {path.resolve() for key in given for path in _paths(config, key)}
    if Path(config["out"]).is_dir() or Path(config["out"]).resolve() in inputs:
        faults.append(f"out is {config['out']}, a folder or one of the files that are scored; give a file of its own")
    return faults + (list(judging_faults(dict(config))) if config["completions"] else [])


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
    lines += [f"{name.replace('_', ' ')}: {n}" for name, n in report["counts"].items() if n]
    if absent := report["absent_classes"]:
        more = ", …" if len(absent) > 10 else ""
        lines.append(f"absent classes: {len(absent)} ({', '.join(absent[:10])}{more})")
    return "\n".join(lines)


def _keys(config: Mapping) -> tuple[list[str], list[str]]:
    """The keys of files that the protocol needs, and those that it can do without."""
    protocol = config["protocol"]
    if config["completions"] or protocol["scorer"] not in _SCORERS:
        return ["completions", "rows"], []
    if protocol["scorer"] in ("coco", "lvis"):
        asks_map = ["exist_map"] if protocol.get("asked") == "exist_map" else []
        return ["annotations", "detections", *asks_map], ["classes"]
    return ["cases"], ["classes"] if protocol["scorer"] == "classification" else []


def _scored(config: Mapping) -> dict:
    if config["completions"]:
        return _score_own(config)
    return _SCORERS[config["protocol"]["scorer"]](config)


def _score_coco(config: Mapping) -> dict:
    from vrft.evaluate.box_files import score_coco_file

    protocol = config["protocol"]
    exist_map = Path(config["exist_map"]) if config["exist_map"] else None
    return score_coco_file(
        Path(config["annotations"]),
        _paths(config, "detections"),
        asked=protocol.get("asked") or "all",
        exist_map=exist_map,
        classes=config["classes"],
        engine=config["engine"],
        n_resamples=protocol["n_resamples"],
    )


def _score_lvis(config: Mapping) -> dict:
    from vrft.evaluate.box_files import score_lvis_file

    return score_lvis_file(
        Path(config["annotations"]),
        _paths(config, "detections"),
        classes=config["classes"],
        engine=config["engine"],
        n_resamples=config["protocol"]["n_resamples"],
    )


def _score_labels(config: Mapping) -> dict:
    from vrft.evaluate.label_lists import score_label_file

    n_resamples = config["protocol"]["n_resamples"]
    return score_label_file(Path(config["cases"]), classes=config["classes"], n_resamples=n_resamples)


def _score_masks(config: Mapping) -> dict:
    from vrft.evaluate.masks import score_mask_file

    protocol = config["protocol"]
    polygons = protocol.get("polygons") or "all"
    return score_mask_file(Path(config["cases"]), polygons=polygons, n_resamples=protocol["n_resamples"])


_SCORERS: dict[str, Callable[[Mapping], dict]] = {
    "coco": _score_coco,
    "lvis": _score_lvis,
    "classification": _score_labels,
    "masks": _score_masks,
}


def _score_own(config: Mapping) -> dict:
    """The figures of vrft's own completions, read and judged as in training and evaluation."""
    from vrft.evaluate.score import score_completions
    from vrft.tasks import load_task
    from vrft.tasks.judge import Judge

    task = load_task(**config["task"], trust_code=config["trust_code"])
    scorer_for(config["protocol"], task)
    rows_path, completions_path = Path(config["rows"]), Path(config["completions"])
    faults: list[str] = []
    rows = _checked_lines(rows_path, faults, lambda row: _check_row(row, task, config["frame"]))
    completions = _checked_lines(completions_path, faults, _check_completion)
    raise_all(faults, heading=f"rows={rows_path} and completions={completions_path} cannot be scored:")
    _, metrics = score_completions(
        rows,
        completions,
        task=task,
        frame_for_row=lambda row: _frame(config["frame"], row),
        protocol=config["protocol"],
        judge=Judge(task, config["reward"], trust_code=config["trust_code"], root=rows_path.parent),
    )
    counts = {"rows": len(rows), "completions": len(completions)}
    return {"metrics": metrics, "per_class": {}, "absent_classes": [], "counts": counts}


def _checked_lines(path: Path, faults: list[str], check: Callable[[Row], None]) -> list[Row]:
    """The lines of a file that pass the check; what is wrong with the others is appended to `faults`."""
    if not path.is_file():
        faults.append(f"{path}: there is no such file; JSON lines are needed")
        return []
    found, n_before = [], len(faults)
    for number, row in numbered_rows(path, faults):
        try:
            check(row)
            found.append(row)
        except ValueError as error:
            faults.append(f"{path}, line {number}: {error}")
    if not found and len(faults) == n_before:
        faults.append(f"{path} holds no line; at least one is needed")
    return found


def _check_row(row: Row, task, frame: str) -> None:
    if not isinstance(row.get("row_id"), str):
        raise ValueError(f"row_id is {row.get('row_id')!r}; a text is needed, the one that its completion names")
    for key in ("image_wh", "seen_wh") if frame == "seen_pixels" else ("image_wh",):
        sides = row.get(key)
        if not isinstance(sides, list) or len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise ValueError(f"{key} is {sides!r}; [width, height] in pixels is needed")
    row.setdefault("images", [row["row_id"]])
    task.check(row)


def _check_completion(completion: Row) -> None:
    kinds = {"row_id": str, "text": str, "n_tokens": int, "is_truncated": bool}
    completion.setdefault("n_tokens", 0)
    completion.setdefault("is_truncated", False)
    for key, kind in kinds.items():
        if type(completion.get(key)) is not kind:
            raise ValueError(f"{key} is {str(completion.get(key))[:60]!r}; a {kind.__name__} is needed")


def _frame(name: str, row: Row) -> Frame:
    image_wh = tuple(row["image_wh"])
    return Frame(name, image_wh, tuple(row.get("seen_wh", image_wh)))


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
