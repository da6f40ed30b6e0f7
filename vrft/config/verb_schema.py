"""What the resolved configs of verbs hold that describe no run: one dataclass a verb."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vrft.config.schema import Protocol, Reward


@dataclass
class JudgeConfig:
    """A resolved config of the verb judge."""

    task: dict
    reward: Reward
    trust_code: list[str]
    cases: str
    out: str
    frame: Literal["norm1000", "seen_pixels", "pixels", "norm1"]


@dataclass
class AuditConfig:
    """A resolved config of the verb audit."""

    task: dict
    reward: Reward
    trust_code: list[str]
    rows: str | None
    out: str | None
    frame: Literal["norm1000", "seen_pixels", "pixels", "norm1"]


@dataclass
class ExportModel:
    """path: a checkpoint's folder."""

    path: str
    trust_remote_code: bool


@dataclass
class ExportConfig:
    """A resolved config of the verb export. dtype: of the weights written; None leaves it."""

    model: ExportModel
    dtype: Literal["bfloat16", "float16", "float32"] | None
    out: str


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
    frame: Literal["norm1000", "seen_pixels", "pixels", "norm1"]
    mask_model: str | None


@dataclass
class BuildRun:
    """seed: of the draws. resume: True to go on in a folder in which a build was killed."""

    seed: int
    resume: bool


@dataclass
class BuildConfig:
    """A resolved config of the verb build; task and dataset keys belong to their own modules."""

    task: dict
    dataset: dict
    run: BuildRun
    trust_code: list[str]
    out: str


@dataclass
class ReportConfig:
    """A resolved config of the verb report. runs: run directories, or a sweep's folder or kept figures."""

    runs: str | list[str]
    out: str | None
