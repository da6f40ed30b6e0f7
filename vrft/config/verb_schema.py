"""The configs of the verbs that describe no run: one model a verb."""

from __future__ import annotations

from typing import Any, Literal

from vrft.config.schema import Protocol, Reward
from vrft.config.section import AtLeastZero, Section


class RewardCasesConfig(Section):
    """A resolved config of the verb reward."""

    task: dict[str, Any]
    reward: Reward
    trust_code: list[str]
    cases: str
    rows: str | None = None
    out: str
    frame: Literal["norm1000", "seen_pixels", "pixels", "norm1"]


class AuditConfig(Section):
    """A resolved config of the verb audit."""

    task: dict[str, Any]
    reward: Reward
    trust_code: list[str]
    rows: str | None
    out: str | None
    frame: Literal["norm1000", "seen_pixels", "pixels", "norm1"]


class ExportModel(Section):
    """path: a checkpoint's folder."""

    path: str
    trust_remote_code: bool


class ExportConfig(Section):
    """A resolved config of the verb export. dtype: of the weights written; None leaves it."""

    model: ExportModel
    dtype: Literal["bfloat16", "float16", "float32"] | None
    out: str


class ScoreConfig(Section):
    """A resolved config of the verb score."""

    protocol: Protocol
    task: dict[str, Any]
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
    frame: Literal["norm1000", "seen_pixels", "pixels", "norm1"]
    mask_model: str | None


class BuildRun(Section):
    """seed: of the draws. resume: True to resume in a folder in which a build was killed."""

    seed: AtLeastZero
    resume: bool


class BuildConfig(Section):
    """A resolved config of the verb build; task and dataset keys belong to their own modules."""

    task: dict[str, Any]
    dataset: dict[str, Any]
    run: BuildRun
    trust_code: list[str]
    out: str


class ReportConfig(Section):
    """A resolved config of the verb report. runs: run directories, or a sweep's folder or kept figures."""

    runs: str | list[str]
    out: str | None
