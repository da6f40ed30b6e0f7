"""Metrics of several methods side by side: values, intervals, and paired changes from the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vrft.evaluate.paired_change import metric_change
from vrft.evaluate.protocols import protocol_key
from vrft.report.run_files import CHECKPOINT_NAMES, RunFiles

METRIC_LABELS = {"iou": "mean IoU", "pick_rate": "pick rate"}


@dataclass(frozen=True)
class Method:
    """One evaluation of a run, a line of a table. kind: `before` (training), or the checkpoint's name."""

    label: str
    run: RunFiles
    kind: str


@dataclass(frozen=True)
class Line:
    """A method's metric. change: the paired difference from the base, `{"value", "n", "interval"}`; None if unknown.

    against: the same from other methods, by their names.
    """

    label: str
    run: RunFiles
    kind: str
    value: float | None
    n: int
    interval: list[float] | None
    change: dict | None
    against: Mapping[str, dict] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """One metric on one test set, for all methods with a value."""

    split: str
    title: str
    metric: str
    lines: list[Line]

    @property
    def label(self) -> str:
        return metric_label(self.metric)

    @property
    def n(self) -> str:
        """The number of questions or images behind the values, as text; several numbers if they differ."""
        return " / ".join(str(n) for n in dict.fromkeys(line.n for line in self.lines))


def untrained_notes(shown: Sequence[Panel]) -> list[str]:
    """One sentence for each method whose best checkpoint by validation is the model as it was before training."""
    lines = {line.label: line for panel in shown for line in panel.lines}
    return [
        f"{label}: step 0, the untrained model, as no later step had a higher validation figure"
        for label, line in lines.items()
        if line.kind == "best" and line.run.best_step == 0
    ]


def metric_label(metric: str) -> str:
    """The name of a metric in tables."""
    return METRIC_LABELS.get(metric, metric)


def methods_of(runs: Sequence[RunFiles]) -> list[Method]:
    """Base models first (equal ones once), then the checkpoints. Runs of one method get the run's name as a suffix."""
    bases, trained = [], []
    for run in runs:
        if "before" in run.evaluations and not any(_same_figures(run, base.run) for base in bases):
            bases.append(Method("Base" if run.is_trained else run.model_name, run, "before"))
        same = [other for other in runs if other.method == run.method and other.is_trained]
        name = run.method if len(same) < 2 else f"{run.method} ({run.run_dir.name})"
        for kind in run.evaluations:
            if kind != "before":
                trained.append(Method(f"{name}, {CHECKPOINT_NAMES.get(kind, kind)}", run, kind))
    if len(bases) > 1:
        bases = [Method(f"{base.label} ({base.run.run_dir.name})", base.run, "before") for base in bases]
    found = [*bases, *trained]
    # Metrics of two protocols are not comparable: with several protocols, each label names its own.
    if len({protocol_key(run.config["protocol"]) for run in runs}) > 1:
        keys = [protocol_key(method.run.config["protocol"]) for method in found]
        found = [replace(method, label=f"{method.label}, {key}") for method, key in zip(found, keys, strict=True)]
    return found


def panels(methods: Sequence[Method], *, n_resamples: int = 1000) -> list[Panel]:
    """A panel for each primary metric and test set, in the order of the metrics; empty without methods."""
    runs = {id(method.run): method.run for method in methods}.values()
    metrics = dict.fromkeys(metric for run in runs for metric in run.primary_metrics)
    titles = {split: run.title(split) for run in runs for split in run.splits}
    found = [
        Panel(split, title, metric, _lines(methods, split, metric, n_resamples))
        for metric in metrics
        for split, title in titles.items()
    ]
    return [panel for panel in found if panel.lines]


def _lines(methods: Sequence[Method], split: str, metric: str, n_resamples: int) -> list[Line]:
    bases = [method for method in methods if method.kind == "before"]
    lines = []
    for method in methods:
        figure = method.run.metrics(method.kind, split).get(metric)
        if figure is None or not figure["n"]:
            continue
        base = next((base for base in bases if base.run is method.run), bases[0] if len(bases) == 1 else None)
        change = None
        if base is not None and method.kind != "before":
            change = change_between(base, method, split=split, metric=metric, n_resamples=n_resamples)
        lines.append(
            Line(method.label, method.run, method.kind, figure["value"], figure["n"], figure["interval"], change)
        )
    return lines


def change_between(base: Method, method: Method, *, split: str, metric: str, n_resamples: int = 1000) -> dict | None:
    """The paired change of a metric from `base` to `method`; None unless both were evaluated on the same rows."""
    rows = base.run.rows(split)
    before, after = base.run.scores(base.kind, split), method.run.scores(method.kind, split)
    if not rows or method.run.rows(split) != rows or not before or not after:
        return None
    asked = method.run.config["protocol"].get("asked")
    return metric_change(rows, before, after, metric=metric, asked=asked, n_resamples=n_resamples)


def _same_figures(run: RunFiles, other: RunFiles) -> bool:
    return all(run.metrics("before", split) == other.metrics("before", split) for split in run.splits)
