"""A frozen run directory, opened: its config, rows, task and processor."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from vrft.config.schema import Config
from vrft.data.splits import mix
from vrft.errors import raise_all
from vrft.evaluate.protocols import primary_metrics, protocol_key
from vrft.files import read_rows
from vrft.models.families import FAMILIES, frame_for
from vrft.models.generate import render_prompt, set_thought_opening
from vrft.models.load import load_processor
from vrft.run.health import Status
from vrft.run.resume import read_config
from vrft.run.rows import data_folder, evaluation_folder, other_names, with_other
from vrft.tasks import MixedTask, Task, load_task
from vrft.tasks.boxes import Frame
from vrft.tasks.reward import RewardFunction
from vrft.tasks.rows import Row


@dataclass
class RunContext:
    """A frozen run directory, opened: its config, rows, task, judge and processor, and the process's place among the
    others.

    other: the name of the other task (`evaluate.others`) of which this is a view; None for the run itself. status: what
    this process tells the parent.
    """

    run_dir: Path
    config: Config
    rows: dict[str, list[Row]]
    task: Task | MixedTask
    judge: RewardFunction
    processor: Any
    processes: PartialState
    durations_s: dict[str, float] = field(default_factory=dict)
    other: str | None = None
    status: Status = field(default_factory=Status)

    @property
    def data_dir(self) -> Path:
        return data_folder(self.run_dir, self.other)

    @property
    def evaluation_dir(self) -> Path:
        """Where completions and scores go, in a folder for each evaluation and one for each split below it."""
        return evaluation_folder(self.run_dir, self.other)

    @property
    def training_rows(self) -> list[Row]:
        """The rows to train on; of a mixture each task's share."""
        if isinstance(self.task, MixedTask):
            return mix(self.rows["train"], self.task.weights, seed=self.config.run.seed)
        return self.rows["train"]

    @property
    def test_splits(self) -> list[str]:
        """`test` first, then the further test sets; none where there are no rows to test on."""
        others = (split for split in self.rows if split not in ("train", "validation", "test"))
        return [split for split in ("test", *others) if self.rows.get(split)]

    @property
    def primary_metrics(self) -> tuple[str, ...]:
        """The protocol's metrics by which results are compared, the first being the one that validation maximises."""
        return primary_metrics(self.config.protocol.plain(), self.task)

    @property
    def protocol(self) -> str:
        """The protocol's name and version, under which its metrics stand."""
        return protocol_key(self.config.protocol.plain())

    def prompt_of(self, question: str) -> str:
        """The whole prompt with one image and that question, the system's text included."""
        return render_prompt(self.processor, question, 1)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record the wall time of the block under `durations_s`."""
        started = time.perf_counter()
        yield
        self.durations_s[name] = round(time.perf_counter() - started, 2)

    def frame_for_row(self, row: Row) -> Frame:
        """The frame of the row's question and answer: the family's, or `dataset.frame` for a question taken
        verbatim."""
        frame = frame_for(FAMILIES[self.config.model.family], row["image_wh"], **self.config.memory.pixel_limits)
        own_frame = self.config.dataset.get("frame")
        if "problem" in row and own_frame:
            return Frame(own_frame, frame.image_wh, frame.seen_wh)
        return frame


def open_experiment(run_dir: Path, status: Status) -> RunContext:
    """Read the frozen files of a run directory and load its processor (no weights). Raises `UserError` for long
    questions."""
    config = read_config(run_dir)
    rows = {path.stem: read_rows(path) for path in sorted((run_dir / "data").glob("*.jsonl"))}
    experiment = replace(make_experiment(run_dir, config, rows), status=status)
    check_question_lengths(experiment)
    return experiment


def open_other(experiment: RunContext, name: str) -> RunContext:
    """The same run, to be judged on another task of `evaluate.others`. Raises `UserError` for long questions."""
    folder = data_folder(experiment.run_dir, name)
    config, rows = with_other(experiment.config, name), {"test": read_rows(folder / "test.jsonl")}
    other = make_experiment(experiment.run_dir, config, rows, is_model_checked=True)
    other = replace(other, other=name, status=experiment.status)
    check_question_lengths(other)
    return other


def make_experiment(
    run_dir: Path, config: Config, rows: dict[str, list[Row]], *, is_model_checked: bool = False
) -> RunContext:
    """An experiment on rows that are at hand, its processor loaded (no weights).

    is_model_checked: True if this process has loaded it before, so that its files are not read once more.
    """
    model, trusted = config.model, config.trust_code
    processes = PartialState(cpu=config.derived.device == "cpu")
    processor = load_processor(
        model.path,
        **config.memory.pixel_limits,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        is_checked=is_model_checked,
    )
    task = load_task(**config.task, trust_code=trusted)
    set_thought_opening(processor, is_prefilled=task.is_prefilled)
    judge = RewardFunction(task, config.reward.plain(), trust_code=trusted, root=run_dir / "data")
    return RunContext(run_dir, config, rows, task, judge, processor, processes)


def question_lengths(experiment: RunContext, rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """Yield the tokens of each row's question, image tokens included, and how many of them one image takes."""
    family = FAMILIES[experiment.config.model.family]
    for row in rows:
        frame = experiment.frame_for_row(row)
        prompt = render_prompt(experiment.processor, experiment.task.question(row, frame), len(row["images"]))
        n_image_tokens = math.prod(frame.seen_wh) // family.pixel_factor**2
        n_text_tokens = len(experiment.processor.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        yield n_text_tokens + len(row["images"]) * (n_image_tokens - 1), n_image_tokens


def check_questions(experiment: RunContext) -> None:
    """`check_question_lengths` of a run and of all other tasks that it is judged on, whose rows are written."""
    check_question_lengths(experiment)
    for name in other_names(experiment.config):
        open_other(experiment, name)


def check_question_lengths(experiment: RunContext) -> None:
    """Refuse rows to be asked whose question, image tokens included, is longer than `memory.max_prompt_length`: it is
    never cut."""
    memory, wanted = experiment.config.memory, experiment.config.evaluate
    asked = ["train", "validation"] if wanted.train else []
    asked += experiment.test_splits if wanted.before or wanted.after else []
    where = f"evaluate.others.{experiment.other}" if experiment.other else None
    faults = [
        f"{where or split}, row {row['row_id']}: {n_tokens} tokens, {n_image_tokens} of them for an image"
        for split, rows in experiment.rows.items()
        if split in asked
        for row, (n_tokens, n_image_tokens) in zip(rows, question_lengths(experiment, rows), strict=True)
        if n_tokens > memory.max_prompt_length
    ]
    raise_all(
        faults,
        heading=f"Questions longer than memory.max_prompt_length={memory.max_prompt_length}. "
        f"Raise it, or lower memory.max_pixels={memory.max_pixels}, or shorten these questions:",
    )
