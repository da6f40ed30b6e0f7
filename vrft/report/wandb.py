"""Weights & Biases: one W&B run per run directory, with config, sweep, rollout images and result.

TRL logs its metrics to the W&B run that is started here. In offline mode the run is stored in `wandb/` of the run
directory, and `wandb sync` uploads it later.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vrft.config.schema import Logging
from vrft.config.secrets import is_secret_name, without_secrets
from vrft.data.images import decode_upright, image_bytes
from vrft.errors import UserError
from vrft.evaluate.score import answer_as_json
from vrft.files import read_written
from vrft.report.draw import LabelledBox, boxes_of
from vrft.report.run_forms import Provenance, Result
from vrft.report.sweep import CHILDREN
from vrft.tasks import MixedTask, Task
from vrft.tasks.boxes import Frame
from vrft.tasks.rows import Row, image_paths

_TAGS = ("task", "trainer", "model", "reward", "dataset", "experiment", "sweep")
_LONGEST_TAG = 64  # characters; W&B refuses more
_CONFIDENCE = re.compile(r" ?\b[01]\.\d\d$")


@contextmanager
def tracked(run_dir: Path, logging: Logging, values: dict[str, Any], *, job_type: str) -> Iterator[None]:
    """A W&B run for the time of the block. At the end the figures of `result.json` become its summary.

    values: the run's config, shown in W&B. job_type: `grpo`, `sft` or `evaluate`. Raises `UserError` if W&B cannot be
    reached, or has no login.
    """
    import wandb

    run = _start_run(run_dir, logging, values, job_type=job_type)
    code = 1
    try:
        yield
        run.summary.update(_result_figures(run_dir / "result.json"))
        code = 0
    finally:
        parts = Path(run.settings.sync_dir).parent / "offline-run-*"  # resuming adds a folder
        wandb.finish(exit_code=code)
        if logging.mode == "offline":
            print(f"W&B: offline; to upload the run later: wandb sync {parts}", file=sys.stderr)


def _start_run(run_dir: Path, logging: Logging, values: dict[str, Any], *, job_type: str):
    import wandb

    provenance = read_written(run_dir / "provenance.json", Provenance)
    try:
        with _without_job_secrets():
            return wandb.init(
                **run_fields(run_dir, logging, provenance.get("choices") or {}, job_type=job_type),
                # Under a key of its own: TRL adds its arguments to the same config, and both have a `deepspeed`.
                config={"vrft": without_secrets(values, os.environ), "origin": _origin(provenance)},
                project=logging.project,
                entity=logging.entity,
                mode=logging.mode,
                dir=str(run_dir),
                id=provenance.get("wandb_run_id"),
                resume="allow",
                # Without git: W&B stores the remote's URL, which may contain a token.
                settings=wandb.Settings(disable_git=True, disable_code=True, silent=True),
            )
    except wandb.errors.Error as error:
        raise UserError(
            f"logging.mode={logging.mode}, but W&B cannot be reached ({error}); log in once with `wandb login`, or "
            "choose logging=wandb_offline and upload later with `wandb sync`"
        ) from None


def run_fields(run_dir: Path, logging: Logging, choices: dict[str, Any], *, job_type: str) -> dict[str, Any]:
    """Name, group, tags and job type of a run. Its group is the sweep's folder, if the run belongs to one.

    choices: the option of each config group, as in `provenance.json`.
    """
    folder = run_dir.absolute()
    sweep = next((one for one in folder.parents[:3] if (one / CHILDREN).is_dir()), None)
    chosen = (choices.get(group) for group in _TAGS if group != "trainer" or job_type != "evaluate")
    tags = [*chosen, *(logging.tags or [])]
    return {
        "name": folder.name,
        "group": logging.group or (sweep and sweep.name),
        "tags": list(dict.fromkeys(str(tag)[:_LONGEST_TAG] for tag in tags if tag)),
        "job_type": job_type,
    }


def _origin(provenance: dict[str, Any]) -> dict[str, Any]:
    return {key: provenance.get(key) for key in ("commit", "is_dirty", "config_hash", "data_hash", "model_hash")}


@contextmanager
def _without_job_secrets() -> Iterator[None]:
    """Hide secrets of the SLURM job: W&B stores all of SLURM's environment variables, and some hold a token."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if "SLURM" in name and is_secret_name(name)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _result_figures(path: Path) -> dict[str, float | int]:
    """`result/WHEN/PROTOCOL/METRIC` of the test set, and `result/n`, its number of rows; empty without a result."""
    if not path.is_file():
        return {}
    result = read_written(path, Result)
    figures: dict[str, float | int] = {"result/n": (result["n_rows"]).get("test", 0)}
    for when in ("before", "after"):
        for protocol, metrics in (result[when] or {}).items():
            figures |= {f"result/{when}/{protocol}/{name}": metric["value"] for name, metric in metrics.items()}
    return {name: value for name, value in figures.items() if value is not None}


class RolloutPictures(TrainerCallback):
    """Logs `n` completions to W&B every `every` steps: the image with gold and predicted boxes, and the reward.

    rows: the training rows. rollouts: the folder of sampled completions. draw: a function of a row and a line of a
    rollout file that returns the W&B image.
    """

    def __init__(self, rows: Sequence[Row], rollouts: Path, draw: Callable, *, n: int, every: int) -> None:
        self.rows, self.rollouts, self.draw = {row["row_id"]: row for row in rows}, rollouts, draw
        self.n, self.every = n, every

    def on_step_end(self, args, state, control, **kwargs) -> None:
        import wandb

        sampled = state.global_step - 1
        path = self.rollouts / f"step_{sampled:06d}.jsonl"
        if wandb.run is None or sampled % self.every or not path.is_file():
            return
        cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        pictures = [self.draw(self.rows[case["row_id"]], case) for case in _spread(cases, self.n)]
        wandb.log({"rollouts": pictures, "train/global_step": state.global_step})


def _spread(cases: list[dict], n: int) -> list[dict]:
    """At most n completions of as many questions as possible: the first of each question, then the second, …"""
    seen: dict[str, int] = {}
    order = []
    for index, case in enumerate(cases):
        seen[case["row_id"]] = seen.get(case["row_id"], 0) + 1
        order.append((seen[case["row_id"]], index))
    return [cases[index] for _, index in sorted(order)[:n]]


def picture(row: Row, case: dict, *, task: Task | MixedTask, frame: Frame, root: Path):
    """A `wandb.Image` of a completion with its boxes; the caption has reward, terms and text.

    case: a line of a rollout file. frame: the frame of the answer. root: the folder of relative image paths.
    """
    import wandb

    parsed = task.parse(case["text"], row, frame, is_truncated=case["is_truncated"])
    gold = [] if isinstance(row["gold"], int) else boxes_of(row["gold"])
    answered, name = boxes_of(answer_as_json(parsed.answer)), str(row.get("category") or "object")
    image, _ = decode_upright(image_bytes(image_paths(row, root)[0]))
    terms = ", ".join(f"{name} {value:.2f}" for name, value in case["terms"].items() if value is not None)
    caption = f"{row['row_id']}: reward {case['total']:.2f} ({terms})\n{case['text']}"
    boxes = {"ground_truth": _overlay(gold, name), "prediction": _overlay(answered, name)}
    return wandb.Image(image, boxes=boxes, caption=caption, file_type="jpg")


def _overlay(boxes: Sequence[LabelledBox], usual_name: str) -> dict[str, Any]:
    """Boxes in W&B's format. Each label, without its confidence, is a class; boxes without label get `usual_name`."""
    names = [_CONFIDENCE.sub("", label) or usual_name for _, label in boxes]
    classes = {name: number for number, name in enumerate(dict.fromkeys(names or [usual_name]))}
    return {
        "class_labels": {number: name for name, number in classes.items()},
        "box_data": [
            {
                "position": dict(zip(("minX", "minY", "maxX", "maxY"), map(float, xyxy), strict=True)),
                "domain": "pixel",
                "class_id": classes[name],
                "box_caption": label or name,
            }
            for (xyxy, label), name in zip(boxes, names, strict=True)
        ],
    }
