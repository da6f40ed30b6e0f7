"""The runs of a sweep as one table: all figures with their settings, the choice of hyperparameters, means over seeds.

A figure is one number of one run, a line of `figures.csv`:

    run, config_hash, seed      the run
    KEY …                       its settings: the config keys that differ between the runs of the sweep
    checkpoint                  before, best, last; `run` for figures of the run as a whole
    test_set, title, metric     `test`, `seen` …, `others/NAME`; `validation`; `run` for seconds and memory
    value, n                    the figure, and the number of questions or images behind it

The first line is a comment with the sweep's question, so that a report can be made from the file alone.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from vrft.config.schema import Question
from vrft.config.section import flat
from vrft.errors import UserError, shape_faults
from vrft.files import read_written
from vrft.report.escaping import csv_text, csv_value
from vrft.report.run_files import NOT_COMPARED, RunFiles
from vrft.report.run_forms import Record

FILE = "figures.csv"
FIXED = ("run", "config_hash", "seed", "checkpoint", "test_set", "title", "metric", "value", "n")
SEED = "run.seed"
_HEAD = "# question: "
_NOT_SETTINGS = ("run.", "evaluate.", "question.", "logging.")


@dataclass(frozen=True)
class Sweep:
    """figures: as above, of trained models. bases: the same of base models. settings: the keys that differ."""

    question: Question
    settings: list[str]
    figures: pd.DataFrame
    bases: pd.DataFrame


def read_sweep(sources: Sequence[Path]) -> Sweep:
    """The figures of all sources: folders of sweeps, folders of runs, and `figures.csv` files.

    A run that is in several sources is read from the first. If no run of the sweep was trained, evaluation-only runs
    are reported as methods, not as bases. Raises `UserError` if a source has no finished run, or a file has another
    form.
    """
    frames, questions, runs = [], [], []
    for source in map(Path, sources):
        if source.suffix == ".csv":
            question, frame = _read_csv(source)
            questions.append(question)
            frames.append(frame)
            continue
        found = [source / "result.json", *sorted(source.glob("*/result.json"))]
        runs_of_source = [RunFiles(path.parent) for path in found if path.is_file()]
        if not runs_of_source:
            raise UserError(f"no finished run in {source}; the folder of a sweep, a run or a figures.csv is needed")
        runs += runs_of_source
    questions = [run.config["question"] for run in runs if run.config.get("question")] + questions
    question = Question(**questions[0]) if questions else Question(title="")
    known = [column for frame in frames for column in frame if column not in FIXED]
    keys = list(dict.fromkeys([*_differing(runs), *known, *_question_keys(question)]))
    keys += [key for key in _distinguishing_keys(runs, keys) if key not in keys]
    if runs:
        frames.insert(0, pd.DataFrame([figure for run in runs for figure in _figures_of(run, keys)]))
    figures = pd.concat(frames, ignore_index=True)
    named = ["run", "config_hash", "checkpoint", "test_set", "metric"]
    figures = figures.drop_duplicates(named, ignore_index=True)
    trained = set(figures.loc[figures.checkpoint.isin(["best", "last"]), "run"])
    is_base = ~figures.run.isin(trained or figures.run) | ((figures.checkpoint == "before") & bool(trained))
    for key in keys:
        figures[key] = figures[key].map(_number_or_text).astype(object)
    shown = [key for key in keys if figures.loc[~is_base, key].nunique() > 1]
    return Sweep(question, shown, figures[~is_base].copy(), figures[is_base].copy())


def to_csv(sweep: Sweep) -> str:
    """The text of `figures.csv`."""
    together = pd.concat([sweep.figures, sweep.bases])
    ordered = ["run", "config_hash", "seed", *sweep.settings]
    ordered += [column for column in together if column not in ordered]
    head = _HEAD + json.dumps(sweep.question.model_dump()) + "\n"
    return head + together[ordered].map(csv_text).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def chosen(sweep: Sweep) -> pd.DataFrame:
    """The figures at the hyperparameters (`question.choose`) that validation selects, for each of the other settings.

    Selected are the values with the highest validation metric at the seed `question.choose_seed`. Without such a seed,
    it is the highest mean over seeds, among the values that were run with the most seeds: else one lucky seed would
    decide. Ties go to the smallest value, as in `vrft.run.sweep_choice`.
    """
    hyperparameters = [key for key in sweep.question.choose or [] if key in sweep.settings]
    if not hyperparameters:
        return sweep.figures
    others = [key for key in sweep.settings if key not in hyperparameters]
    tried = sweep.figures[sweep.figures.test_set == "validation"]
    if tried.empty:
        return sweep.figures
    if sweep.question.choose_seed is not None:
        is_choosing = tried.seed == sweep.question.choose_seed
        has_one = is_choosing.groupby([tried[key] for key in others], dropna=False).transform("any") if others else True
        tried = tried[is_choosing | ~has_one] if is_choosing.any() else tried
    means = tried.groupby([*others, *hyperparameters], dropna=False).value.agg(["mean", "count"]).reset_index()
    most = means.groupby(others, dropna=False)["count"].transform("max") if others else means["count"].max()
    ranked = means[means["count"] == most].sort_values(hyperparameters, key=lambda column: column.map(rank))
    ranked = ranked.sort_values("mean", ascending=False, kind="stable")
    best = ranked.drop_duplicates(others) if others else ranked.head(1)
    return sweep.figures.merge(best[[*others, *hyperparameters]], on=[*others, *hyperparameters])


def averaged(figures: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """Mean over seeds, `low` and `high` of its 95 % interval (Student's t), and the number of `seeds`.

    low and high are NaN below three seeds: with two, the interval is about thirteen times as wide as their difference.
    """
    by = [*settings, "checkpoint", "test_set", "title", "metric"]
    found = figures.groupby(by, sort=False, dropna=False).value.agg(["mean", "std", "count"]).reset_index()
    quantile = stats.t.ppf(0.975, (found["count"] - 1).where(found["count"] > 2))
    half = quantile * found["std"] / found["count"] ** 0.5
    return found.assign(low=found["mean"] - half, high=found["mean"] + half).rename(columns={"count": "seeds"})


def measures(sweep: Sweep) -> list[tuple[str, str | None]]:
    """The `(test set, metric)` pairs to show; metric None stands for the primary one.

    They are `question.measure` if given, else all test sets, else validation.
    """
    if sweep.question.measure:
        return [(one.rpartition("/")[0], one.rpartition("/")[2]) for one in sweep.question.measure]
    own = [name for name in dict.fromkeys(sweep.figures.test_set) if name not in ("validation", "run")]
    return [(name, None) for name in own or ["validation"]]


def figures_at(figures: pd.DataFrame, test_set: str, metric: str | None) -> pd.DataFrame:
    """The figures of a metric on a test set; None is each run's first primary metric."""
    found = figures[figures.test_set == test_set]
    if metric:
        return found[found.metric == metric]
    return found[found.metric == found.groupby(["run", "checkpoint"]).metric.transform("first")]


def _figures_of(run: RunFiles, keys: Sequence[str]) -> list[dict[str, Any]]:
    result, config = run.result, run.config
    shared = {
        "run": run.run_dir.name,
        "config_hash": (result.get("config_hash") or "")[:12],
        "seed": config["run"]["seed"],
    }
    shared |= {key: _setting(run, key) for key in keys}

    def figure(checkpoint: str, test_set: str, metric: str, value: float, n: int, title: str = "") -> dict[str, Any]:
        named = {"checkpoint": checkpoint, "test_set": test_set, "title": title or test_set, "metric": metric}
        return {**shared, **named, "value": value, "n": n}

    found = [
        figure(kind, split, metric, one["value"], one["n"], run.title(split))
        for split in run.splits
        for kind in run.evaluations
        for metric in run.primary_metrics
        if (one := run.metrics(kind, split).get(metric))
    ]
    for name, other in result.get("others", {}).items():
        for kind, by_protocol in other["evaluations"].items():
            metrics = by_protocol.get(other["protocol"], {})
            for metric in other["primary_metrics"]:
                if one := metrics.get(metric):
                    found.append(figure(kind, f"others/{name}", metric, one["value"], one["n"], f"other: {name}"))
    taken = [entry for entry in result["validation"] if entry["value"] is not None]
    if taken:
        best = max(taken, key=lambda entry: entry["value"])
        found.append(figure("best", "validation", run.primary_metrics[0], best["value"], best["n"]))
        found.append(figure("run", "run", "best_step", best["step"], 1))
    # A resumed run has the seconds and memory of its last part only.
    if not run.provenance.get("earlier"):
        found += [figure("run", "run", f"{part}_seconds", value, 1) for part, value in result["durations_s"].items()]
        found.append(figure("run", "run", "peak_memory_gib", result.get("peak_memory_gib"), 1))
    return found


def _differing(runs: Sequence[RunFiles]) -> list[str]:
    """The overridden config groups and keys in which the trained runs differ; without trained runs, all runs."""
    trained = [run for run in runs if run.is_trained] or runs
    overridden = dict.fromkeys(
        one.lstrip("+~").partition("=")[0].partition("@")[0]
        for run in trained
        for one in run.provenance.get("overrides") or []
    )
    return [
        key
        for key in overridden
        if key != SEED and not key.startswith(_NOT_SETTINGS) and len({str(_setting(run, key)) for run in trained}) > 1
    ]


def _distinguishing_keys(runs: Sequence[RunFiles], keys: Sequence[str]) -> list[str]:
    """More config keys that differ, of trained runs with equal settings and equal seed.

    Such runs exist after the sweep's file was edited between two calls. Without these keys a seed would count twice.
    """
    cells: dict[str, list[RunFiles]] = {}
    for run in (run for run in runs if run.is_trained):
        settings = [str(_setting(run, key)) for key in (*keys, SEED)]
        cells.setdefault(json.dumps(settings), []).append(run)
    found: dict[str, None] = {}
    for equal_runs in (cell for cell in cells.values() if len(cell) > 1):
        first, *others = [dict(flat(run.config)) for run in equal_runs]
        for other in others:
            found |= dict.fromkeys(key for key in {**first, **other} if first.get(key) != other.get(key))
    return [key for key in found if not key.startswith(NOT_COMPARED)]


def _setting(run: RunFiles, key: str) -> Any:
    """A run's value of a key: the override, else the chosen config group, else the config's value; "" if there is none.

    Overrides come first, because `memory=auto` and restarts after out-of-memory change values of the config.
    """
    for override in run.provenance.get("overrides") or []:
        name, _, value = override.lstrip("+").partition("=")
        if name == key:
            return value
    choices = run.provenance.get("choices") or {}
    if key in choices:
        return choices[key]
    value: Any = run.config
    for name in key.split("."):
        value = value.get(name, "") if isinstance(value, dict) else ""
    return str(value) if isinstance(value, dict | list) else value


def _number_or_text(value: Any) -> Any:
    """A number, integers without a point; other values as text; "" for None and NaN.

    >>> _number_or_text("4.0"), _number_or_text(1e-4), _number_or_text(float("nan")), _number_or_text(True)
    (4, 0.0001, '', 'True')
    """
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value)
    try:
        parsed = float(value)
    except ValueError:
        return str(value)
    if parsed != parsed:
        return ""
    return int(parsed) if parsed.is_integer() else parsed


def _question_keys(question: Question) -> list[str]:
    lists = (question.panels, question.lines, [question.x] if question.x else [], question.choose)
    return [key for one in lists for key in one or []]


def _read_csv(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    try:
        head, _, body = path.read_text(encoding="utf-8").partition("\n")
        question = json.loads(head.removeprefix(_HEAD))
        frame = pd.read_csv(io.StringIO(body), dtype={"config_hash": str}, keep_default_na=False, na_values=["nan"])
        missing = [column for column in FIXED if column not in frame]
        faults = [f"column {column} is missing" for column in missing] + list(shape_faults(question, Question))
        if faults:
            raise ValueError("; ".join(faults))
        frame = frame.map(csv_value)
        for column in ("value", "n"):
            frame[column] = pd.to_numeric(frame[column])
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); a {FILE} as vrft report writes it is needed") from None
    return question, frame


CHILDREN = "children"  # a folder with this subfolder, which has the records of the runs, is a sweep


def rank(value: Any) -> tuple[int, float, str]:
    """A sort key: numbers by size, then text.

    >>> sorted(["b", 3e-5, "0.1", "a"], key=rank)
    [3e-05, '0.1', 'a', 'b']
    """
    try:
        return (0, float(value), "")
    except (TypeError, ValueError):
        return (1, 0.0, str(value))


def read_record(path: Path) -> dict[str, Any]:
    """The record of a child run; empty if it has not ended, or if the file is damaged (the child then runs again).

    The status of a job is not updated if nothing waited for it. Such a job is completed if its result exists.
    """
    if not path.is_file():
        return {}
    try:
        record = read_written(path, Record)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
        return {}
    has_result = (path.parent.parent / path.stem / "result.json").is_file()
    if record["state"] in ("submitted", "busy", "running", "interrupted") and has_result:
        record |= {"state": "completed", "cause": "", "last_lines": []}
    return record
