"""The verbs `judge` and `audit`: what completions earn, and what every known trick would earn."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from vrft.boxes import Frame
from vrft.configure import config_folder
from vrft.errors import UserError, raise_all
from vrft.evaluate.score import plain
from vrft.rows import Row, numbered_rows
from vrft.tasks import MixedTask, Task, load_task
from vrft.tasks.audit import audit
from vrft.tasks.judge import Judge

_UNBOUNDED = 10**9  # the side of an image of unknown size in pixels: boxes are not cut
_SIDES = {"norm1000": 1000, "norm1": 1}


def judge_cases(
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
    Raises ValueError naming the first case that lacks something.

    >>> gold = "<answer>[{'Position': [0, 0, 500, 500], 'Confidence': 1}]</answer>"
    >>> judge_cases([{"completion": gold, "solution": gold}], reward="visual_rft")[0]["terms"]
    {'iou': 1.0, 'confidence': 1.0, 'format': 0.0}
    """
    task = load_task(task, trust_code=trust_code) if isinstance(task, str) else task
    judge = Judge(task, preset(reward) if isinstance(reward, str) else reward, trust_code=trust_code, root=root)
    verdicts = []
    for number, case in enumerate(cases, 1):
        try:
            row = row_of(case, task, frame=frame, root=root)
        except ValueError as error:
            raise ValueError(f"case {number}: {error}") from None
        verdicts.append(verdict_on(case, row, task, judge=judge, frame=frame))
    return verdicts


def preset(name: str) -> dict[str, Any]:
    """The content of `conf/reward/NAME.yaml`. Raises `UserError` if there is none."""
    path = config_folder() / "reward" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"reward is {name!r}; known presets: {known}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def row_of(case: Mapping, task: Task | MixedTask, *, frame: str, root: Path) -> Row:
    """The row that a case is about, with `gold` and `image_wh`. Raises ValueError saying what is missing or wrong."""
    if not isinstance(case.get("completion"), str):
        raise ValueError(f"column 'completion' is {str(case.get('completion'))[:100]!r}; the model's text is needed")
    row = {name: value for name, value in case.items() if name not in ("completion", "solution", "image")}
    images = case.get("images") or ([case["image"]] if "image" in case else [])
    if "image_wh" not in row:
        side = _SIDES.get(frame, _UNBOUNDED)
        row["image_wh"] = list(_image_wh(root / images[0])) if images else [side, side]
    if images:
        row["images"] = images
    if ("solution" in case) == ("gold" in case):
        raise ValueError(f"one of solution and gold is needed; the case has {', '.join(case)}")
    if "solution" in case:
        if not isinstance(case["solution"], str):
            raise ValueError(f"column 'solution' is {str(case['solution'])[:100]!r}; a text is needed")
        return row | {"gold": task.for_row(row).gold_of(case["solution"], _frame(frame, row))}
    if not images and "image_wh" not in case:
        raise ValueError("a case with gold needs image or image_wh, as gold is in pixels of the image")
    task.check(row)
    return row


def verdict_on(case: Mapping, row: Row, task: Task | MixedTask, *, judge: Judge, frame: str) -> dict:
    """The verdict on one case, as `judge_cases` returns it."""
    is_truncated = bool(case.get("is_truncated", False))
    parsed = task.parse(case["completion"], row, _frame(frame, row), is_truncated=is_truncated)
    return {**judge(parsed, row), "answer": plain(parsed.answer), "reason": parsed.reason}


def judge_file(config: dict[str, Any]) -> None:
    """The verb `judge`: read `cases`, write one verdict a line to `out`, print the means.

    Everything is read before anything is written. Raises `UserError` that names every line that cannot be used.
    """
    path, out = Path(config["cases"]), Path(config["out"])
    task = load_task(**config["task"], trust_code=config["trust_code"])
    judge = Judge(task, config["reward"], trust_code=config["trust_code"], root=path.parent)
    cases = list(_read_cases(path, task, frame=config["frame"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    verdicts = []
    with partial.open("w", encoding="utf-8") as file:
        for case, row in tqdm(cases, desc="judge", unit="case", disable=not sys.stderr.isatty()):
            verdicts.append(verdict_on(case, row, task, judge=judge, frame=config["frame"]))
            file.write(json.dumps(verdicts[-1], ensure_ascii=False, allow_nan=False) + "\n")
    partial.replace(out)
    print(_summary(verdicts, judge))
    print(f"verdicts: {out}")


def run_audit(config: dict[str, Any]) -> int:
    """The verb `audit`: print what each attack would earn; 1 if one earns more than honest work, else 0.

    Raises `UserError` for rows that cannot be used.
    """
    task = load_task(**config["task"], trust_code=config["trust_code"])
    frame, path = config["frame"], config["rows"]
    judge = Judge(task, config["reward"], trust_code=config["trust_code"], root=path and Path(path).parent)
    outcomes = []
    for name, one in getattr(task, "tasks", {task.name: task}).items():
        if path:
            rows = [row for _, row in _read_cases(Path(path), one, frame=frame, completion="")]
            rows = [row for row in rows if row.get("task", name) == name]
        else:
            rows = [{"row_id": f"example-{i}", "image_wh": [640, 480], **row} for i, row in enumerate(one.examples, 1)]
        rows = [row | {"task": name} for row in rows]
        found = audit(one, rows, judge=judge, frame_for_row=lambda row: _frame(frame, row))
        known = tqdm(found, desc=f"audit {name}", unit="attack", disable=not sys.stderr.isatty(), leave=False)
        outcomes += [{"task": name, **outcome} for outcome in known]
    print(_audit_table(outcomes, reward=config["reward"]["name"], source=path or "the tasks' own examples"))
    if config["out"]:
        Path(config["out"]).write_text(json.dumps(outcomes, indent=2) + "\n", encoding="utf-8")
        print(f"outcomes: {config['out']}")
    return int(any(outcome["succeeds"] for outcome in outcomes))


def _read_cases(
    path: Path, task: Task | MixedTask, *, frame: str, completion: str | None = None
) -> Iterator[tuple[dict, Row]]:
    """Yield each case of a JSON-lines file with its row. completion: what stands in for a missing one."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; JSON lines are needed, each with completion and solution")
    faults: list[str] = []
    found = []
    for number, case in numbered_rows(path, faults):
        if completion is not None:
            case.setdefault("completion", completion)
        try:
            found.append((case, row_of(case, task, frame=frame, root=path.parent)))
        except ValueError as error:
            faults.append(f"{path}, line {number}: {error}")
    raise_all(faults, heading=f"{path} has lines that cannot be used:")
    if not found:
        raise UserError(f"{path} holds no case; at least one line is needed")
    return iter(found)


def _frame(name: str, row: Row) -> Frame:
    image_wh = tuple(row["image_wh"])
    return Frame(name, image_wh, tuple(row.get("seen_wh", image_wh)))


def _image_wh(path: Path) -> tuple[int, int]:
    from vrft.evaluate.generate import load_image  # torch

    try:
        return load_image(path, what="image").size
    except UserError as error:
        raise ValueError(str(error)) from None


def _summary(verdicts: Sequence[Mapping], judge: Judge) -> str:
    """The means of the terms and of the total, and why answers were unreadable."""
    names = dict.fromkeys(name for verdict in verdicts for name in verdict["terms"])
    values = {name: [v["terms"][name] for v in verdicts if name in v["terms"]] for name in names}
    values["total"] = [verdict["total"] for verdict in verdicts]
    lines = [f"{name:20} {np.mean(column):7.4f}  (n = {len(column)})" for name, column in values.items()]
    reasons = Counter(verdict["reason"] for verdict in verdicts if verdict["reason"])
    lines += [f"unreadable: {reason:8} {n:7d}" for reason, n in reasons.most_common()]
    lines += [f"faults of {name}: {n}" for name, n in judge.faults.items()]
    return "\n".join(lines)


def _audit_table(outcomes: Sequence[Mapping], *, reward: str, source: str) -> str:
    lines = [f"{'task':26}{'attack':26}{'earns':>8}{'honest':>8}   rows better   what it does"]
    for one in outcomes:
        mark = "!" if one["succeeds"] else " "
        better = f"{mark} {one['n_better']} of {one['n_rows']}"
        earns = f"{one['earns']:8.3f}{one['honest']:8.3f}"
        lines.append(f"{one['task']:26}{one['attack']:26}{earns} {better:15} {one['what']}")
    n_successes = sum(one["succeeds"] for one in outcomes)
    lines.append(
        f"reward={reward}, on {source}: {n_successes} of {len(outcomes)} attacks earn more than honest work"
        + (" (marked !): a model will learn them" if n_successes else "")
    )
    return "\n".join(lines)
