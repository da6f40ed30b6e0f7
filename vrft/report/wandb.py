"""Weights & Biases: one run of it a run directory, with the config, the sweep it belongs to, rollouts and the result.

TRL reports every figure to the run that is begun here. Without network the run lies below `wandb/` in the run
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
from vrft.data.images import decode_upright
from vrft.errors import UserError
from vrft.evaluate.score import answer_as_json
from vrft.report.draw import LabelledBox, boxes_of
from vrft.report.sweep import CHILDREN
from vrft.tasks import MixedTask, Task
from vrft.tasks.boxes import Frame
from vrft.tasks.rows import Row, image_paths

_TAGS = ("task", "trainer", "model", "reward", "dataset", "experiment", "sweep")
_LONGEST_TAG = 64  # characters; W&B refuses more
_CONFIDENCE = re.compile(r" ?\b[01]\.\d\d$")


@contextmanager
def tracked(run_dir: Path, logging: Logging, values: dict[str, Any], *, job_type: str) -> Iterator[None]:
    """Within, W&B has a run; it ends with the figures of `result.json`, where there is one.

    values: the run's config, to be shown. job_type: `grpo`, `sft` or `evaluate`. Raises `UserError` where W&B cannot be
    reached or knows no login.
    """
    import wandb

    run = _begin(run_dir, logging, values, job_type=job_type)
    code = 1
    try:
        yield
        run.summary.update(_result_figures(run_dir / "result.json"))
        code = 0
    finally:
        parts = Path(run.settings.sync_dir).parent / "offline-run-*"  # one for each time that it was resumed
        wandb.finish(exit_code=code)
        if logging.mode == "offline":
            print(f"W&B: offline; with a network, upload it by: wandb sync {parts}", file=sys.stderr)


def _begin(run_dir: Path, logging: Logging, values: dict[str, Any], *, job_type: str):
    import wandb

    provenance = json.loads((run_dir / "provenance.json").read_text(encoding="utf-8"))
    try:
        with _without_job_secrets():
            return wandb.init(
                **run_fields(run_dir, logging, provenance["choices"], job_type=job_type),
                # below a key of its own: TRL adds its arguments, of which `deepspeed` has our name
                config={"vrft": without_secrets(values, os.environ), "origin": _origin(provenance)},
                project=logging.project,
                entity=logging.entity,
                mode=logging.mode,
                dir=str(run_dir),
                id=provenance["wandb_run_id"],
                resume="allow",
                # git: it notes the remote's address, where a token may stand as the user
                settings=wandb.Settings(disable_git=True, disable_code=True, silent=True),
            )
    except wandb.errors.Error as error:
        raise UserError(
            f"logging.mode={logging.mode}, but W&B cannot be reached ({error}); log in once with `wandb login`, or "
            "choose logging=wandb_offline and upload later with `wandb sync`"
        ) from None


def run_fields(run_dir: Path, logging: Logging, choices: dict[str, Any], *, job_type: str) -> dict[str, Any]:
    """Name, group, tags and job type of a run. group: the folder of the sweep that the run directory lies in.

    choices: of each config group, as in `provenance.json`.
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
    """W&B notes every variable that SLURM sets, the job's own token among them."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if "SLURM" in name and is_secret_name(name)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _result_figures(path: Path) -> dict[str, float | int]:
    """`result/WHEN/PROTOCOL/METRIC` of the test set, with its number of rows."""
    if not path.is_file():
        return {}
    result = json.loads(path.read_text(encoding="utf-8"))
    figures: dict[str, float | int] = {"result/n": (result["n_rows"] or {}).get("test", 0)}
    for when in ("before", "after"):
        for protocol, metrics in (result[when] or {}).items():
            figures |= {f"result/{when}/{protocol}/{name}": metric["value"] for name, metric in metrics.items()}
    return {name: value for name, value in figures.items() if value is not None}


class RolloutPictures(TrainerCallback):
    """Sends `n` completions of every `every` steps to W&B: the image with gold and answered boxes, and the reward.

    rows: the training rows. rollouts: the folder of the sampled completions. draw: makes the picture of a row and a
    line of such a file.
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
    """At most n of them, the first of each question before the second of any."""
    seen: dict[str, int] = {}
    order = []
    for index, case in enumerate(cases):
        seen[case["row_id"]] = seen.get(case["row_id"], 0) + 1
        order.append((seen[case["row_id"]], index))
    return [cases[index] for _, index in sorted(order)[:n]]


def picture(row: Row, case: dict, *, task: Task | MixedTask, frame: Frame, root: Path):
    """A `wandb.Image` of a rollout, boxes in pixels of the original image; the caption is reward, terms and text.

    case: a line of `rollouts/`. frame: of the row's answer. root: the folder that relative image paths start from.
    """
    import wandb

    parsed = task.parse(case["text"], row, frame, is_truncated=case["is_truncated"])
    gold = [] if isinstance(row["gold"], int) else boxes_of(row["gold"])
    answered, name = boxes_of(answer_as_json(parsed.answer)), row.get("category") or "object"
    image, _ = decode_upright(image_paths(row, root)[0].read_bytes())
    terms = ", ".join(f"{name} {value:.2f}" for name, value in case["terms"].items() if value is not None)
    caption = f"{row['row_id']}: reward {case['total']:.2f} ({terms})\n{case['text']}"
    boxes = {"ground_truth": _overlay(gold, name), "prediction": _overlay(answered, name)}
    return wandb.Image(image, boxes=boxes, caption=caption, file_type="jpg")


def _overlay(boxes: Sequence[LabelledBox], usual_name: str) -> dict[str, Any]:
    """Boxes as W&B takes them: one class a label (the confidence cut off), `usual_name` where there is none."""
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
