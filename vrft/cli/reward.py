"""`vrft reward`: what completions of any origin earn, without a model."""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vrft.config.package_files import config_folder
from vrft.config.verb_schema import RewardCasesConfig
from vrft.errors import UserError, raise_all
from vrft.evaluate.completion_files import as_in_its_run
from vrft.evaluate.score import answer_as_json
from vrft.files import numbered_rows, read_rows, written_whole
from vrft.tasks import MixedTask, Task, load_task
from vrft.tasks.base import given
from vrft.tasks.boxes import Frame
from vrft.tasks.reward import RewardFunction
from vrft.tasks.rows import GoldBoxError, Row, check_sides, frame_of, image_paths, labelled_boxes
from vrft.terminal import progress_bar

_UNBOUNDED = 10**9  # the side of an image of unknown size in pixels: boxes are not cut


def reward_cases(
    cases: Iterable[Mapping],
    *,
    task: str | Task | MixedTask = "detection",
    reward: str | Mapping = "strict",
    frame: str = "norm1000",
    root: Path = Path(),
    trust_code: Sequence[str] = (),
) -> list[dict]:
    """`{"terms", "total", "answer", "reason"}` of each case, in order: terms unweighted and in [0, 1], the answer as
    its task reads it with boxes in pixels of the image, the reason where it cannot be read.

    cases: each with `completion`, and either `solution` (the right answer as text) or a row's columns (`gold` in pixels
        of the image …). A case with `image` (a path from `root`) or `image_wh` has an image; one with `solution` needs
        none, and then both texts are in `frame`, which is also that of the answer.
    task, reward: names of files in `conf/`, or a task and a preset's content.
    A gold box that cannot be right (swapped corners, outside the image) is judged as it stands, with a warning.
    Raises ValueError naming the first case that lacks something.

    >>> gold = "<answer>[{'Position': [0, 0, 500, 500], 'Confidence': 1}]</answer>"
    >>> reward_cases([{"completion": gold, "solution": gold}], reward="visual_rft")[0]["terms"]
    {'iou': 1.0, 'confidence': 1.0, 'format': 0.0}
    """
    task = load_task(task, trust_code=trust_code) if isinstance(task, str) else task
    judge = RewardFunction(
        task, preset(reward) if isinstance(reward, str) else reward, trust_code=trust_code, root=root
    )
    verdicts = []
    for number, case in enumerate(cases, 1):
        try:
            row, doubt = row_of(case, task, frame=frame, root=root)
        except ValueError as error:
            raise ValueError(f"case {number}: {error}") from None
        row.setdefault("row_id", f"case {number}")
        if doubt:
            warnings.warn(f"case {number}: {doubt}", stacklevel=2)
        verdicts.append(verdict_on(case, row, task, judge=judge, frame=frame))
    return verdicts


judge_cases = reward_cases  # its former name, until the next version


def preset(name: str) -> dict[str, Any]:
    """The content of `conf/reward/NAME.yaml`. Raises `UserError` if there is none."""
    path = config_folder() / "reward" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"reward is {name!r}; known presets: {known}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def row_of(case: Mapping, task: Task | MixedTask, *, frame: str, root: Path) -> tuple[Row, str | None]:
    """The row that a case is about, with `gold` and `image_wh`; and what is wrong with its solution's box, or None.

    Raises ValueError saying what is missing or wrong.
    """
    if not isinstance(given(case, "completion"), str):
        raise ValueError(f"column 'completion' is {str(case['completion'])[:100]!r}; the model's text is needed")
    if ("solution" in case) == ("gold" in case):
        raise ValueError(f"one of solution and gold is needed; the case has {', '.join(case)}")
    row, has_image = _with_size(case, frame=frame, root=root)
    own = task.for_row(row)
    if not has_image and ("gold" in case or ("pixels" in frame and own.answer_kind == "point")):
        raise ValueError("image or image_wh is needed, as the gold or a distance is measured in its pixels")
    if "solution" in case:
        if not isinstance(case["solution"], str):
            raise ValueError(f"column 'solution' is {case['solution']!r:.100}; the right answer as text is needed")
        row["gold"] = own.gold_of(case["solution"], frame_of(row, frame))
        row.setdefault("problem", "")
        if getattr(own, "labelled", False):
            row.setdefault("categories", sorted({label for _, label in labelled_boxes(row["gold"])}) or ["none"])
    try:
        own.check(row)
    except GoldBoxError as error:
        if "solution" not in case:
            raise
        return row, str(error)
    return row, None


def _with_size(case: Mapping, *, frame: str, root: Path) -> tuple[Row, bool]:
    """The case's columns with `image_wh`, and whether that is of an image; without one it is the frame's own extent."""
    row = {name: value for name, value in case.items() if name not in ("completion", "solution", "image")}
    images = case.get("images") or ([case["image"]] if "image" in case else [])
    has_image = bool(images) or "image_wh" in row
    if images:
        row["images"] = images
    if images and "image_wh" not in row:  # built rows have it, and their images may lie elsewhere
        row["image_wh"] = list(_image_wh(images[0], root))
    elif not has_image:
        extent = Frame(frame, (1, 1), (1, 1)).extent_wh
        row["image_wh"] = [_UNBOUNDED] * 2 if "pixels" in frame else [round(side) for side in extent]
    check_sides(row, frame)
    return row, has_image


def verdict_on(case: Mapping, row: Row, task: Task | MixedTask, *, judge: RewardFunction, frame: str) -> dict:
    """The verdict on one case, as `reward_cases` returns it."""
    is_truncated = bool(case.get("is_truncated", False))
    parsed = task.parse(case["completion"], row, frame_of(row, frame), is_truncated=is_truncated)
    return {**judge(parsed, row), "answer": answer_as_json(parsed.answer), "reason": parsed.reason}


def run(config: RewardCasesConfig) -> None:
    """The verb: read `cases`, write one verdict a line to `out`, print the means.

    Everything is read before anything is written. Raises `UserError` that names every line that cannot be used.
    """
    path, out = Path(config.cases), _free_file(Path(config.out))
    if out.resolve() == path.resolve():
        raise UserError(f"cases and out are both {path}; give out another name, or the cases would be lost")
    task = load_task(**config.task, trust_code=config.trust_code)
    judge = RewardFunction(task, config.reward.plain(), trust_code=config.trust_code, root=path.parent)
    rows = _answered(Path(config.rows), task, config.frame) if config.rows else None
    cases = _read_cases(path, task, frame=config.frame, rows=rows)
    verdicts = []
    with written_whole(out) as file:
        for case, row in progress_bar(cases, desc="judge", unit="case"):
            verdicts.append(verdict_on(case, row, task, judge=judge, frame=config.frame))
            line = json.dumps(verdicts[-1], ensure_ascii=False, allow_nan=False) + "\n"
            file.write(line.encode(errors="backslashreplace"))  # lone surrogates as JSON has them
    print(_summary(verdicts, judge))
    print(f"verdicts: {out}")


def _free_file(out: Path) -> Path:
    """The path, its folder made. Raises `UserError` if it is a folder."""
    if out.is_dir():
        raise UserError(f"out is {out}, a folder; the name of a file is needed, such as {out / 'out.jsonl'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _read_cases(
    path: Path,
    task: Task | MixedTask,
    *,
    frame: str,
    completion: str | None = None,
    rows: Mapping[str, Row] | None = None,
) -> list[tuple[dict, Row]]:
    """Each case of a JSON-lines file with its row. completion: used where a case has none. rows: by their ids,
    what vrft's own completions answer."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; JSON lines are needed, each with completion and solution")
    faults: list[str] = []
    found, doubts = [], []
    for number, case in numbered_rows(path, faults):
        if completion is not None:
            case.setdefault("completion", completion)
        try:
            if completion is None and "completion" not in case and {"row_id", "text"} <= set(case):
                case = _with_row(case, rows)
            row, doubt = row_of(case, task, frame=frame, root=path.parent)
        except ValueError as error:
            faults.append(f"{path}, line {number}: {error}")
            continue
        row.setdefault("row_id", f"{path.name}, line {number}")
        found.append((case, row))
        doubts += [f"line {number}: {doubt}"] if doubt else []
    raise_all(faults, heading=f"{path} has lines that cannot be used:")
    if not found:
        raise UserError(f"{path} holds no case; at least one line is needed")
    if doubts:
        print(
            f"warning: the solutions of {len(doubts)} of {len(found)} cases hold boxes that cannot be right with "
            f"frame={frame}; they are judged as they stand. The first: {doubts[0]}",
            file=sys.stderr,
        )
    return found


def _answered(path: Path, task: Task | MixedTask, frame: str) -> dict[str, Row]:
    """The rows of a file by their ids. Their images are named from the file's own folder, where a user's term reads
    them. Raises `UserError` if there is no such file, or its run reads boxes in another frame."""
    if not path.is_file():
        raise UserError(f"rows is {path}: there is no such file")
    found, seen, faults = {}, as_in_its_run(path, task, frame), []
    for row in read_rows(path):
        try:
            seen(row)
        except ValueError as error:
            faults.append(f"row {row.get('row_id')!r}: {error}")
        images = row.get("images")
        if isinstance(images, list) and all(isinstance(image, str) for image in images):
            row["images"] = list(map(str, image_paths(row, path.parent.resolve())))
        found[str(row.get("row_id"))] = row
    raise_all(faults, heading=f"rows={path} has rows that cannot be used:")
    return found


def _with_row(completion: Mapping, rows: Mapping[str, Row] | None) -> dict:
    """One of vrft's own completions as a case: with the columns of its row. Raises ValueError without that row."""
    if rows is None:
        raise ValueError(
            "a completion of a run, which does not hold the right answer; give the rows that it answers: "
            "rows=runs/NAME/data/SPLIT.jsonl"
        )
    if (row := rows.get(str(completion["row_id"]))) is None:
        raise ValueError(f"row_id is {completion['row_id']!r}, which the file of rows does not have")
    return {**row, "completion": completion["text"], "is_truncated": completion.get("is_truncated", False)}


def _image_wh(image: Any, root: Path) -> tuple[int, int]:
    """Raises ValueError where it is no image, or none below `root`."""
    from vrft.data.images import decode_upright, image_bytes, locate

    path = locate(image, root.resolve(), remedy="give image_wh, [width, height] in pixels, in place of image")
    try:
        return decode_upright(image_bytes(path))[0].size
    except (OSError, ValueError) as error:
        raise ValueError(f"image {image!r} {error}") from None


def _summary(verdicts: Sequence[Mapping], judge: RewardFunction) -> str:
    """The means of the terms and of the total, and why answers were unreadable."""
    names = dict.fromkeys(name for verdict in verdicts for name in verdict["terms"])
    values = {name: [v["terms"][name] for v in verdicts if name in v["terms"]] for name in names}
    values["total"] = [verdict["total"] for verdict in verdicts]
    lines = [f"{name:20} {np.mean(column):7.4f}  (n = {len(column)})" for name, column in values.items()]
    reasons = Counter(verdict["reason"] for verdict in verdicts if verdict["reason"])
    lines += [f"unreadable: {reason:8} {n:7d}" for reason, n in reasons.most_common()]
    lines += [f"faults of {name}: {n}" for name, n in judge.faults.items()]
    return "\n".join(lines)
