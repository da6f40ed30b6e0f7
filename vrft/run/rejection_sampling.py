"""The model's own right completions of its training rows, as targets of SFT (rejection sampling)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from accelerate.utils import broadcast_object_list
from pydantic import BaseModel

from vrft.errors import UserError
from vrft.files import read_rows, write_text_atomically
from vrft.run.context import RunContext
from vrft.run.evaluation import completions_of
from vrft.tasks.reward import is_own
from vrft.tasks.reward_terms import RewardOptions
from vrft.tasks.rows import Row

FILE = "own_completions.jsonl"
COLUMN = "own_completion"


class _Judged(BaseModel):
    """A line of the file, as far as it is read."""

    row_id: str
    text: str
    earned: float


def rows_with_own_completions(experiment: RunContext, model) -> list[Row]:
    """The training rows, one for each different right completion of theirs, which stands in the column
    `own_completion`; rows without one are left out.

    `trainer.own_samples` completions of each row are sampled at `rollout.temperature`. Right is what earns at least
    `trainer.own_at_least` of what the reward pays for an answer, its form aside. All that were judged stand in
    `own_completions.jsonl`, from which a resumed run takes them. Raises `UserError` where none is right.
    """
    path, settings = experiment.run_dir / FILE, experiment.config.trainer
    rows = list({row["row_id"]: row for row in experiment.training_rows}.values())
    right: dict[str, list[str]] = {}
    for one in _judged(experiment, model, rows):
        if one["earned"] >= settings.own_at_least:
            right.setdefault(one["row_id"], []).append(one["text"])
    if not right:
        raise UserError(
            f"none of the model's own completions of {len(rows)} training rows is right ({path}); "
            "trainer.own_samples (more), trainer.own_at_least (less) or another trainer= would help"
        )
    taught = [{**row, COLUMN: text} for row in rows for text in dict.fromkeys(right.get(row["row_id"], ()))]
    if experiment.processes.is_main_process:
        print(
            f"{len(taught)} different right completions of {len(right)} of {len(rows)} training rows are trained on",
            file=sys.stderr,
        )
    return taught


def _judged(experiment: RunContext, model, rows: Sequence[Row]) -> list[dict]:
    """Sampled completions of the rows with what they have earned, those of the file where it is there by now.

    The main process alone looks at the file: the others may not see yet on a shared disk what it has written.
    """
    path, is_main = experiment.run_dir / FILE, experiment.processes.is_main_process
    (known,) = broadcast_object_list([read_rows(path, _Judged) if is_main and path.is_file() else None])
    if known is not None:
        return known
    judged = _sample(experiment, model, rows, n_samples=experiment.config.trainer.own_samples)
    if is_main:
        write_text_atomically(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in judged))
    (judged,) = broadcast_object_list([judged])
    return judged


def _sample(experiment: RunContext, model, rows: Sequence[Row], *, n_samples: int) -> list[dict]:
    """Sampled completions of the rows, each with the share of the answer's pay that it has `earned`."""
    config, by_id = experiment.config, {row["row_id"]: row for row in rows}
    completions = completions_of(
        experiment,
        model,
        rows,
        progress="own completions",
        n_samples=n_samples,
        temperature=config.rollout.temperature,
        seed=config.run.seed,
    )
    sampled = [one for one in completions if one["sample"]]  # 0 is the greedy one
    return [{**one, "earned": _earned(experiment, by_id[one["row_id"]], one)} for one in sampled]


def _earned(experiment: RunContext, row: Row, completion: dict) -> float:
    """What a completion earns of what the reward pays for the answer, in [0, 1]; nothing if it was cut."""
    task, weights = experiment.task.for_row(row), experiment.judge.weights(row)
    paid = {
        name: weight for name, weight in weights.items() if name in task.answer_terms(RewardOptions()) or is_own(name)
    }
    cut = completion["is_truncated"]
    parsed = task.parse(completion["text"], row, experiment.frame_for_row(row), is_truncated=cut)
    terms = experiment.judge(parsed, row)["terms"]
    return 0.0 if cut else sum(weight * terms[name] for name, weight in paid.items()) / sum(paid.values())
