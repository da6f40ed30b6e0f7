"""The forms of the files of a run, as far as vrft reads them again; other keys may be there."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, RootModel

from vrft.config.schema import Question

Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e15, le=1e15)]
Step = Annotated[int, Field(ge=0, le=10**9)]
Interval = Annotated[list[Finite], Field(min_length=2, max_length=2)]
Xyxy = Annotated[list[Finite], Field(min_length=4, max_length=4)]
Side = Annotated[int, Field(ge=1, le=10**6)]


class Figure(BaseModel):
    """A metric with the number of rows or images behind it."""

    value: Finite | None
    n: int
    interval: Interval | None


ByProtocol = dict[str, dict[str, Figure]]


class Metrics(RootModel[ByProtocol]):
    """`evaluations/NAME/SPLIT/metrics.json`."""


class _Taken(BaseModel):
    step: Step
    value: Finite | None
    n: int


class _Other(BaseModel):
    protocol: str
    primary_metrics: list[str]
    evaluations: dict[str, ByProtocol]


class Result(BaseModel):
    """`result.json`."""

    before: ByProtocol | None
    after: ByProtocol | None
    after_is: str | None
    primary_metrics: Annotated[list[str], Field(min_length=1)]
    reward_terms: list[Annotated[list[str | Finite], Field(min_length=2, max_length=2)]]
    test_sets: dict[str, dict[str, ByProtocol]]
    others: dict[str, _Other] = {}
    validation: list[_Taken]
    peak_memory_gib: Finite | None = None
    n_rows: dict[str, int]
    durations_s: dict[str, Finite]
    config_hash: str | None = None
    seed: int | None = None


class _Evaluate(BaseModel):
    train: bool
    titles: dict[str, str]


class _Trainer(BaseModel):
    name: str
    prompts_per_step: int
    learning_rate: Finite


class _Named(BaseModel):
    name: str


class _Memory(BaseModel):
    num_generations: int


class _Model(BaseModel):
    path: str | None
    family: str


class _Dataset(BaseModel):
    builder: str


class _Run(_Named):
    seed: int


class _Protocol(_Named):
    version: int
    scorer: str
    n_resamples: Annotated[int, Field(ge=1)]
    asked: str | None = None


class ReportedConfig(BaseModel):
    """`config.yaml`, as far as a report needs it: the whole would not be that of an earlier version."""

    run: _Run
    model: _Model
    task: _Named
    dataset: _Dataset
    trainer: _Trainer
    memory: _Memory
    reward: _Named
    protocol: _Protocol
    evaluate: _Evaluate
    question: Question | None = None


class Provenance(BaseModel):
    """`provenance.json`."""

    commit: str | None = None
    is_dirty: bool | None = None
    versions: dict[str, str | None] | None = None
    choices: dict[str, Any] | None = None
    overrides: list[str] | None = None
    config_hash: str | None = None
    data_hash: str | None = None
    model_hash: str | None = None
    model_family: str | None = None
    earlier: list[dict[str, Any]] = []


class LogLine(BaseModel):
    """A line of `metrics.jsonl`: a step, and figures by name; NaN and infinity are texts."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | str | bool | None]
    step: Step


class Alarm(BaseModel):
    """A line of `alarms.jsonl`."""

    step: Step
    rule: str
    action: str
    message: str


class _Mask(BaseModel):
    intersection: int
    union: int
    iou: Finite


class RowForm(BaseModel):
    """A line of `data/SPLIT.jsonl`; see `vrft.tasks.rows`. The gold of a user's own task may be anything, and so may
    every column that the task does not read."""

    row_id: str
    images: Annotated[list[str], Field(min_length=1)]
    image_wh: Annotated[list[Side], Field(min_length=2, max_length=2)]
    gold: Any


class ScoredForm(BaseModel):
    """A line of `evaluations/NAME/SPLIT/scores.jsonl`; see `vrft.evaluate.score`."""

    row_id: str
    text: str
    answer: Any
    reason: str | None
    terms: dict[str, Finite | None]
    total: Finite
    metrics: dict[str, Finite | None]
    mask: _Mask | None = None


class _Box(BaseModel):
    xyxy: Xyxy
    label: str


class _FoundBox(_Box):
    confidence: Finite


class _DetectionRow(RowForm):
    gold: list[Xyxy] | list[_Box]


class _DetectionScored(ScoredForm):
    answer: list[_FoundBox] | None


class _Accuracy(BaseModel):
    accuracy: Finite | None


class _ClassificationRow(RowForm):
    gold: str
    aliases: list[str] = []


class _ClassificationScored(ScoredForm):
    answer: str | None
    metrics: _Accuracy


FORMS = {"coco": (_DetectionRow, _DetectionScored), "classification": (_ClassificationRow, _ClassificationScored)}
"""By the protocol's scorer, where the report reads golds and answers in the form of the task: rows, and scored rows."""


class Trial(BaseModel):
    """A child's place in a sweep that chooses hyperparameters; see `vrft.run.sweep_choice`."""

    cell: str
    knobs: dict[str, Any]
    seed: int
    is_choosing: bool


class Record(BaseModel):
    """`children/NAME.json`, the record of a sweep's child."""

    state: str
    cause: str
    trial: Trial | None = None
