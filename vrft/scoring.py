"""The verb `score`: any predictions in, the figures of a named protocol out, without a model."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vrft.boxes import Frame
from vrft.configure import judging_faults
from vrft.errors import raise_all
from vrft.evaluate.protocols import protocol_key, row_faults, scorer_for
from vrft.metrics import mean_with_interval
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
    mask_model: str | None


def score_file(config: dict[str, Any]) -> None:
    """Score what the config names, write `out`, print a table. Raises `UserError` for whatever cannot be scored.

    The file holds `{"protocol", "metrics": {name: {"value", "n", "interval"}}, "per_class", "absent_classes", "counts",
    "inputs": {file: SHA-256}}`, masks also `cases`. It is written in one piece, after all else has gone well.
    Completions that are scored by annotations also give a results file, `OUT.detections.json`.
    """
    raise_all(list(shape_faults(config, ScoreConfig)), heading=_HEADING)
    raise_all(list(config_faults(config)), heading=_HEADING)
    result = _score_own(config) if config["completions"] else _SCORERS[config["protocol"]["scorer"]](config)
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
    if config["engine"] == "faster" and "annotations" not in given:
        faults.append("engine is 'faster', which scores detections by annotations; leave it out")
    if config["mask_model"] and protocol["scorer"] != "masks":
        faults.append(f"mask_model is given, which protocol={name} does not use; reasonseg_* do")
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
    has_files = protocol["scorer"] in ("coco", "lvis")
    asks_map = ["exist_map"] if protocol.get("asked") == "exist_map" else []
    if config["completions"] or protocol["scorer"] not in _SCORERS:
        if has_files and (config["annotations"] or protocol["scorer"] == "lvis"):
            return ["completions", "rows", "annotations", *asks_map], ["classes"]
        return ["completions", "rows"], ["annotations"] if has_files else []
    if has_files:
        return ["annotations", "detections", *asks_map], ["classes"]
    return ["cases"], ["classes"] if protocol["scorer"] == "classification" else []


def _score_boxes(
    config: Mapping, detections: Sequence[Path] | None = None, image_ids: Collection | None = None
) -> dict:
    """The figures of the config's results files, or of others, over all images or these."""
    from vrft.evaluate.box_files import score_coco_file, score_lvis_file

    protocol = config["protocol"]
    files = Path(config["annotations"]), detections or _paths(config, "detections")
    options = {
        "classes": config["classes"],
        "engine": config["engine"],
        "n_resamples": protocol["n_resamples"],
        "image_ids": image_ids,
    }
    if protocol["scorer"] == "lvis":
        return score_lvis_file(*files, **options)
    exist_map = Path(config["exist_map"]) if config["exist_map"] else None
    return score_coco_file(*files, asked=protocol.get("asked") or "all", exist_map=exist_map, **options)


def _score_labels(config: Mapping) -> dict:
    from vrft.evaluate.label_lists import score_label_file

    n_resamples = config["protocol"]["n_resamples"]
    return score_label_file(Path(config["cases"]), classes=config["classes"], n_resamples=n_resamples)


def _score_masks(config: Mapping) -> dict:
    from vrft.evaluate.masks import score_mask_file

    protocol, cases = config["protocol"], Path(config["cases"])
    mask_of = _mask_of(config["mask_model"], cases.parent)
    polygons = protocol.get("polygons") or "all"
    return score_mask_file(cases, polygons=polygons, n_resamples=protocol["n_resamples"], mask_of=mask_of)


_SCORERS: dict[str, Callable[[Mapping], dict]] = {
    "coco": _score_boxes,
    "lvis": _score_boxes,
    "classification": _score_labels,
    "masks": _score_masks,
}


def _mask_of(mask_model: str | None, root: Path) -> Callable | None:
    """A function from an image's path, from `root`, and a box to a mask; None without a model, which is loaded at the
    first mask."""
    if not mask_model:
        return None
    import torch

    from vrft.evaluate.generate import load_image
    from vrft.models.box_masks import load_mask_model

    @functools.cache
    def mask_function() -> Callable:
        return load_mask_model(mask_model, device="cuda" if torch.cuda.is_available() else "cpu")

    return lambda image, xyxy: mask_function()(load_image(root / image, what=f"case {image}"), xyxy)


def _score_own(config: Mapping) -> dict:
    """The figures of vrft's own completions, read and judged as in training and evaluation."""
    from vrft.evaluate.box_files import score_coco_rows
    from vrft.evaluate.score import answered_boxes, score_completions
    from vrft.tasks import load_task
    from vrft.tasks.judge import Judge

    protocol, task = config["protocol"], load_task(**config["task"], trust_code=config["trust_code"])
    if protocol["scorer"] == "lvis":
        protocol = {**protocol, "scorer": "coco"}  # for what is not AP
    scorer_for(protocol, task)
    rows_path, completions_path = Path(config["rows"]), Path(config["completions"])
    faults: list[str] = []
    rows = _checked_lines(rows_path, faults, lambda row: _check_row(row, task, config["frame"]))
    completions = _checked_lines(completions_path, faults, _check_completion)
    faults = faults or row_faults(protocol, rows)
    raise_all(faults, heading=f"rows={rows_path} and completions={completions_path} cannot be scored:")
    scored, metrics = score_completions(
        rows,
        completions,
        task=task,
        frame_for_row=lambda row: _frame(config["frame"], row),
        protocol=protocol,
        judge=Judge(task, config["reward"], trust_code=config["trust_code"], root=rows_path.parent),
    )
    counts = {"rows": len(rows), "completions": len(completions)}
    if config["annotations"]:
        result = _score_by_annotations(config, rows, list(map(answered_boxes, scored)))
    elif protocol["scorer"] == "coco":
        result = score_coco_rows(rows, list(map(answered_boxes, scored)), n_resamples=protocol["n_resamples"])
    elif protocol["scorer"] == "masks":
        result = _score_rows_masks(config, rows, [one["answer"] for one in scored])
    else:
        result = _means_by_class(rows, scored, n_resamples=protocol["n_resamples"])
    return {**result, "metrics": {**metrics, **result["metrics"]}, "counts": counts | result["counts"]}


def _score_by_annotations(config: Mapping, rows: Sequence[Row], answers: Sequence) -> dict:
    """The official figures of answers to rows that were built from annotations, over the images that were asked."""
    from vrft.evaluate.annotations import read_truth
    from vrft.evaluate.detections import detections_of

    truth = read_truth(Path(config["annotations"]), is_federated=config["protocol"]["scorer"] == "lvis")
    found, counts = detections_of(rows, answers, truth)
    path = Path(config["out"]).with_suffix(".detections.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(f"detections: {path}")
    result = _score_boxes(config, [path], {row["image_id"] for row in rows})
    return {**result, "counts": result["counts"] | counts}


def _score_rows_masks(config: Mapping, rows: Sequence[Row], answers: Sequence) -> dict:
    from vrft.evaluate.masks import mask_case, score_cases

    protocol = config["protocol"]
    return score_cases(
        [mask_case(row, answer) for row, answer in zip(rows, answers, strict=True)],
        polygons=protocol.get("polygons") or "all",
        n_resamples=protocol["n_resamples"],
        mask_of=_mask_of(config["mask_model"], Path(config["rows"]).parent),
    )


def _means_by_class(rows: Sequence[Row], scored: Sequence[Mapping], *, n_resamples: int) -> dict:
    """The means of the task's metrics for each class: a gold that is a name, or the category that was asked for."""
    by_class: dict[str, list[Mapping]] = {}
    for row, one in zip(rows, scored, strict=True):
        name = row["gold"] if isinstance(row["gold"], str) else row.get("category")
        if name is not None:
            by_class.setdefault(name, []).append(one["metrics"])
    per_class = {}
    for name, own in sorted(by_class.items()):
        columns = {key: [metrics[key] for metrics in own if metrics[key] is not None] for key in own[0]}
        per_class[name] = {key: mean_with_interval(values, n_resamples=n_resamples) for key, values in columns.items()}
    absent = {candidate for row in rows for candidate in row.get("candidates", ())} - by_class.keys()
    return {"metrics": {}, "per_class": per_class, "absent_classes": sorted(absent), "counts": {}}


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
    kinds = {"row_id": str, "text": str, "n_tokens": int, "is_truncated": bool, "sample": int}
    completion.setdefault("n_tokens", 0)
    completion.setdefault("sample", 0)
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
