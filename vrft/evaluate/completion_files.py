"""`vrft score completions=…`: scores vrft's own completions by their rows, or by the annotations of the rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from vrft.errors import raise_all
from vrft.evaluate.bootstrap import mean_with_interval
from vrft.evaluate.box_files import score_coco_detections, score_coco_rows, score_lvis_detections
from vrft.evaluate.coco import asked_boxes
from vrft.evaluate.protocols import questions_not_asked, row_faults, scorer_for
from vrft.evaluate.score import answered_boxes, score_completions
from vrft.files import numbered_rows, parse_yaml
from vrft.models.families import FAMILIES, seen_size
from vrft.tasks import MixedTask, Task, load_task
from vrft.tasks.reward import RewardFunction
from vrft.tasks.rows import Row, check_sides, frame_of


def score_own(config: Mapping, mask_of: Callable | None) -> tuple[dict, list[dict] | None]:
    """The figures, and with annotations also the boxes as a results file (else None).

    Completions are parsed and scored as in training and evaluation. config: of the verb score, already checked.
    mask_of: makes masks of predicted boxes. Raises `UserError` that lists what is wrong with the files.
    """
    protocol, task = config["protocol"], load_task(**config["task"], trust_code=config["trust_code"])
    scorer_for({**protocol, "scorer": "coco"} if protocol["scorer"] == "lvis" else protocol, task)
    rows_path, completions_path = Path(config["rows"]), Path(config["completions"])
    faults: list[str] = []
    seen = as_in_its_run(rows_path, task, config["frame"])
    rows = _checked_lines(rows_path, faults, lambda row: _check_row(row, task, config["frame"], seen))
    completions = _checked_lines(completions_path, faults, _check_completion)
    faults = faults or row_faults(protocol, rows)
    raise_all(faults, heading=f"rows={rows_path} and completions={completions_path} cannot be scored:")
    has_own_figures = protocol["scorer"] in ("coco", "lvis", "masks")  # added below to the task's metrics
    scored, metrics = score_completions(
        rows,
        completions,
        task=task,
        frame_for_row=lambda row: frame_of(row, config["frame"]),
        protocol={**protocol, "scorer": "rows"} if has_own_figures else protocol,
        judge=RewardFunction(task, config["reward"], trust_code=config["trust_code"], root=rows_path.parent),
    )
    found = None
    if config["annotations"]:
        result, found = _score_by_annotations(config, rows, list(map(answered_boxes, scored)))
    elif protocol["scorer"] == "coco":
        found_by_row = asked_boxes(rows, list(map(answered_boxes, scored)), asked=protocol.get("asked"))
        result = score_coco_rows(rows, found_by_row, n_resamples=protocol["n_resamples"])
        result["counts"] |= {"questions_not_asked": questions_not_asked(rows, protocol)}
    elif protocol["scorer"] == "masks":
        result = _score_masks(config, rows, [one["answer"] for one in scored], mask_of)
    else:
        result = _means_by_class(rows, scored, n_resamples=protocol["n_resamples"])
    counts = {"rows": len(rows), "completions": len(completions), **result["counts"]}
    return {**result, "metrics": {**result["metrics"], **metrics}, "counts": counts}, found


def _score_by_annotations(config: Mapping, rows: Sequence[Row], answers: Sequence) -> tuple[dict, list[dict]]:
    """The official figures over the images of the rows, and over their classes unless `classes` is given.

    Gold that no row asks for counts as missed, and is counted; `coco_asked` leaves it out.
    """
    from vrft.evaluate.detections import asked_pairs, detections_of
    from vrft.evaluate.truth import read_truth

    protocol = config["protocol"]
    whole = read_truth(Path(config["annotations"]), is_federated=protocol["scorer"] == "lvis")
    pairs = set().union(*asked_pairs(rows, whole))
    truth = whole.of_images({image_id for image_id, _ in pairs})
    if protocol.get("asked") == "rows":
        truth = truth.of_pairs(pairs)
    found, n_unknown = detections_of(rows, answers, whole)
    asked_ids = {number for _, number in pairs}
    options = {
        "classes": config["classes"] or [name for number, name in whole.class_names.items() if number in asked_ids],
        "n_resamples": protocol["n_resamples"],
    }
    if protocol["scorer"] == "lvis":
        result = score_lvis_detections(truth, found, **options)
    else:
        exist_map = Path(config["exist_map"]) if config["exist_map"] else None
        result = score_coco_detections(
            truth, found, asked=protocol.get("asked") or "all", exist_map=exist_map, **options
        )
    scored = {*result["per_class"], *result["absent_classes"]}
    scored_ids = {number for number, name in whole.class_names.items() if name in scored}
    gold = [(one["image_id"], one["category_id"]) for one in truth.dataset["annotations"] if not one.get("iscrowd")]
    counts = {
        "detections_with_an_unknown_label": n_unknown,
        "annotated_images_not_asked": len(whole.image_ids) - len(truth.image_ids),
        "classes_not_asked": len(whole.class_names.keys() - asked_ids),
        "gold_boxes_not_asked": sum(pair not in pairs for pair in gold if pair[1] in scored_ids),
    }
    if protocol.get("asked") == "all":
        counts["questions_not_asked"] = len(truth.image_ids) * len(scored_ids) - sum(n in scored_ids for _, n in pairs)
    return {**result, "counts": {**result["counts"], **counts}}, found


def _score_masks(config: Mapping, rows: Sequence[Row], answers: Sequence, mask_of: Callable | None) -> dict:
    from vrft.evaluate.mask_cases import mask_case
    from vrft.evaluate.masks import score_cases

    return score_cases(
        [mask_case(row, answer) for row, answer in zip(rows, answers, strict=True)],
        polygons=config["protocol"].get("polygons") or "all",
        n_resamples=config["protocol"]["n_resamples"],
        mask_of=mask_of,
        root=Path(config["rows"]).parent,
    )


def _means_by_class(rows: Sequence[Row], scored: Sequence[Mapping], *, n_resamples: int) -> dict:
    """The means of the task's metrics by class: a gold that is a name, or the category of the question.

    In a mixture each task has its own classes.
    """
    by_class: dict[str, list[Mapping]] = {}
    for row, one in zip(rows, scored, strict=True):
        name = row["gold"] if isinstance(row["gold"], str) else row.get("category")
        if isinstance(name, str | int):  # a column that the task does not read may hold anything
            by_class.setdefault(f"{row['task']}: {name}" if "task" in row else str(name), []).append(one["metrics"])
    per_class = {}
    for name, own in sorted(by_class.items()):
        columns = {key: [metrics[key] for metrics in own if metrics[key] is not None] for key in own[0]}
        known = {key: values for key, values in columns.items() if values}
        per_class[name] = {key: mean_with_interval(values, n_resamples=n_resamples) for key, values in known.items()}
    absent = {candidate for row in rows for candidate in row.get("candidates", ())} - by_class.keys()
    return {"metrics": {}, "per_class": per_class, "absent_classes": sorted(absent), "counts": {}}


def _checked_lines(path: Path, faults: list[str], check: Callable[[Row], None]) -> list[Row]:
    """The lines of a file that pass the check. Each other line adds a text to `faults`."""
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


def as_in_its_run(rows: Path, task: Task | MixedTask, frame: str) -> Callable[[Row], None]:
    """What gives a row of a run's `data/SPLIT.jsonl` the column `seen_wh`, if `frame` is measured in it.

    rows: the file; rows of other files stay as they are. It raises ValueError where the run reads boxes or points in
    another frame than `frame`, in which the same text is another box.
    """
    try:
        run = parse_yaml((rows.resolve().parent.parent / "config.yaml").read_text(encoding="utf-8"))
        family, own = FAMILIES[run["model"]["family"]], run["dataset"].get("frame")
        limits = {name: int(run["memory"][name]) for name in ("min_pixels", "max_pixels")}
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError, RecursionError):
        return lambda row: None

    def act(row: Row) -> None:
        if task.for_row(row).answer_kind in ("name", "count"):
            return
        expected = own if own and "problem" in row else family.frame
        if frame != expected:
            raise ValueError(
                f"its run, with model.family={family.name}, reads boxes in {expected}; give frame={expected}"
            )
        if frame == "seen_pixels" and "seen_wh" not in row:
            with contextlib.suppress(LookupError, TypeError, ValueError):  # `check_sides` names what is wrong
                row["seen_wh"] = list(seen_size(row["image_wh"], family, **limits))

    return act


def _check_row(row: Row, task, frame: str, seen: Callable[[Row], None]) -> None:
    if not isinstance(row.get("row_id"), str):
        raise ValueError(f"row_id is {row.get('row_id')!r}; a text is needed, as in its completion")
    seen(row)
    check_sides(row, frame)
    images = row.setdefault("images", [row["row_id"]])
    if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
        raise ValueError(f"images is {images!r}; a list of paths is needed")
    task.check(row)


def _check_completion(completion: Row) -> None:
    kinds = {"row_id": str, "text": str, "n_tokens": int, "is_truncated": bool, "sample": int}
    completion.setdefault("n_tokens", 0)
    completion.setdefault("sample", 0)
    completion.setdefault("is_truncated", False)
    for key, kind in kinds.items():
        if type(completion.get(key)) is not kind:
            raise ValueError(f"{key} is {str(completion.get(key))[:60]!r}; a {kind.__name__} is needed")
    if "token_logprobs" not in completion:
        return
    entries = completion["token_logprobs"]
    if not isinstance(entries, list) or not all(
        isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and type(entry[1]) in (int, float)
        for entry in entries
    ):
        raise ValueError(f"token_logprobs is {str(entries)[:60]}; [[end in the text, log probability], …] is needed")
