"""The runs of a sweep as one table: every figure with its settings, averaged over seeds, knobs chosen by validation.

A figure is one number of one run, a line of `figures.csv`:

    run, config_hash, seed      which run
    KEY …                       its settings: what differs between the runs of the sweep
    checkpoint                  before, best, last; `run` for figures of the run as a whole
    test_set, title, metric     `test`, `seen` …, `others/NAME`; `validation`; `run` for seconds and memory
    value, n                    the figure, and of how many questions or images

The file begins with a comment that holds the sweep's question, so that it can be read again without the runs.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from vrft.config.schema import Question
from vrft.config.section import flat
from vrft.errors import UserError
from vrft.report.run_files import RunFiles

FILE = "figures.csv"
FIXED = ("run", "config_hash", "seed", "checkpoint", "test_set", "title", "metric", "value", "n")
SEED = "run.seed"
_HEAD = "# question: "
_NOT_COMPARED = ("run.", "question.", "logging.", "derived.")
_NOT_SETTINGS = ("run.", "evaluate.", "question.", "logging.")


@dataclass(frozen=True)
class Sweep:
    """figures: as above, base models (nothing trained) apart from the others in `bases`. settings: the keys that
    differ."""

    question: Question
    settings: list[str]
    figures: pd.DataFrame
    bases: pd.DataFrame


def read_sweep(sources: Sequence[Path]) -> Sweep:
    """The figures of sweeps' folders, of single runs and of `figures.csv` files, together; of a run that is in several,
    the first. Of a model that was only evaluated they count as trained ones' where nothing is trained.

    Raises `UserError` where a source holds no finished run, or a file is none of ours.
    """
    frames, questions, runs = [], [], []
    for source in map(Path, sources):
        if source.suffix == ".csv":
            question, frame = _read_csv(source)
            questions.append(question)
            frames.append(frame)
            continue
        found = [source / "result.json", *sorted(source.glob("*/result.json"))]
        of_source = [RunFiles(path.parent) for path in found if path.is_file()]
        if not of_source:
            raise UserError(f"no finished run in {source}; the folder of a sweep, a run or a figures.csv is needed")
        runs += of_source
    questions = [run.config["question"] for run in runs if run.config.get("question")] + questions
    question = Question(**questions[0]) if questions else Question(title="")
    known = [column for frame in frames for column in frame if column not in FIXED]
    keys = list(dict.fromkeys([*_differing(runs), *known, *_asked_keys(question)]))
    keys += [key for key in _telling_apart(runs, keys) if key not in keys]
    if runs:
        frames.insert(0, pd.DataFrame([figure for run in runs for figure in _figures_of(run, keys)]))
    figures = pd.concat(frames, ignore_index=True)
    named = ["run", "config_hash", "checkpoint", "test_set", "metric"]
    figures = figures.drop_duplicates(named, ignore_index=True)
    trained = set(figures.loc[figures.checkpoint.isin(["best", "last"]), "run"])
    is_base = ~figures.run.isin(trained or figures.run) | ((figures.checkpoint == "before") & bool(trained))
    for key in keys:
        figures[key] = figures[key].map(_plain).astype(object)
    shown = [key for key in keys if figures.loc[~is_base, key].nunique() > 1]
    return Sweep(question, shown, figures[~is_base].copy(), figures[is_base].copy())


def to_csv(sweep: Sweep) -> str:
    """All figures, the question above them."""
    together = pd.concat([sweep.figures, sweep.bases])
    ordered = ["run", "config_hash", "seed", *sweep.settings]
    ordered += [column for column in together if column not in ordered]
    head = _HEAD + json.dumps(asdict(sweep.question)) + "\n"
    return head + together[ordered].to_csv(index=False, float_format="%.6g", lineterminator="\n")


def chosen(sweep: Sweep) -> pd.DataFrame:
    """The figures at the settings of `question.choose` that validation prefers, for each of the other settings.

    Preferred is the highest best validation figure with `question.choose_seed`; without one the highest mean over
    seeds, among the settings that most seeds have tried: one lucky seed is no choice. Of equals it is the smallest,
    as in `vrft.run.sweep_choice`. What was chosen stays as columns.
    """
    knobs = [key for key in sweep.question.choose or [] if key in sweep.settings]
    if not knobs:
        return sweep.figures
    others = [key for key in sweep.settings if key not in knobs]
    tried = sweep.figures[sweep.figures.test_set == "validation"]
    if tried.empty:
        return sweep.figures
    if sweep.question.choose_seed is not None:
        is_choosing = tried.seed == sweep.question.choose_seed
        has_one = is_choosing.groupby([tried[key] for key in others], dropna=False).transform("any") if others else True
        tried = tried[is_choosing | ~has_one] if is_choosing.any() else tried
    by_knob = tried.groupby([*others, *knobs], dropna=False).value.agg(["mean", "count"]).reset_index()
    most = by_knob.groupby(others, dropna=False)["count"].transform("max") if others else by_knob["count"].max()
    ranked = by_knob[by_knob["count"] == most].sort_values(knobs, key=lambda column: column.map(rank))
    ranked = ranked.sort_values("mean", ascending=False, kind="stable")
    best = ranked.drop_duplicates(others) if others else ranked.head(1)
    return sweep.figures.merge(best[[*others, *knobs]], on=[*others, *knobs])


def averaged(figures: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """Mean over seeds, with `low` and `high` of its 95 % interval (Student's t, from three seeds on: of two it would be
    thirteen times as wide as they lie apart) and `seeds`."""
    by = [*settings, "checkpoint", "test_set", "title", "metric"]
    found = figures.groupby(by, sort=False, dropna=False).value.agg(["mean", "std", "count"]).reset_index()
    quantile = stats.t.ppf(0.975, (found["count"] - 1).where(found["count"] > 2))
    half = quantile * found["std"] / found["count"] ** 0.5
    return found.assign(low=found["mean"] - half, high=found["mean"] + half).rename(columns={"count": "seeds"})


def measures(sweep: Sweep) -> list[tuple[str, str | None]]:
    """The `(test set, metric)` pairs to show: those asked for, or the test sets with their primary metrics (None), or
    validation where no test set was judged."""
    if sweep.question.measure:
        return [(one.rpartition("/")[0], one.rpartition("/")[2]) for one in sweep.question.measure]
    own = [name for name in dict.fromkeys(sweep.figures.test_set) if name not in ("validation", "run")]
    return [(name, None) for name in own or ["validation"]]


def figures_at(figures: pd.DataFrame, test_set: str, metric: str | None) -> pd.DataFrame:
    """The figures of a test set; metric None: each run's first primary one."""
    found = figures[figures.test_set == test_set]
    if metric:
        return found[found.metric == metric]
    return found[found.metric == found.groupby(["run", "checkpoint"]).metric.transform("first")]


def _figures_of(run: RunFiles, keys: Sequence[str]) -> list[dict[str, Any]]:
    result, config = run.result, run.config
    shared = {"run": run.run_dir.name, "config_hash": result["config_hash"][:12], "seed": config["run"]["seed"]}
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
            metrics = by_protocol[other["protocol"]]
            for metric in other["primary_metrics"]:
                one = metrics[metric]
                found.append(figure(kind, f"others/{name}", metric, one["value"], one["n"], f"other: {name}"))
    taken = [entry for entry in result["validation"] if entry["value"] is not None]
    if taken:
        best = max(taken, key=lambda entry: entry["value"])
        found.append(figure("best", "validation", run.primary_metrics[0], best["value"], best["n"]))
        found.append(figure("run", "run", "best_step", best["step"], 1))
    if not run.provenance.get("earlier"):  # else those of its last part alone
        found += [figure("run", "run", f"{part}_seconds", value, 1) for part, value in result["durations_s"].items()]
        found.append(figure("run", "run", "peak_memory_gib", result["peak_memory_gib"], 1))
    return found


def _differing(runs: Sequence[RunFiles]) -> list[str]:
    """The groups and keys that somebody has set and in which trained runs differ, or all where nothing is trained."""
    trained = [run for run in runs if run.is_trained] or runs
    said = dict.fromkeys(
        one.lstrip("+~").partition("=")[0].partition("@")[0]
        for run in trained
        for one in run.provenance.get("overrides", [])
    )
    return [
        key
        for key in said
        if key != SEED and not key.startswith(_NOT_SETTINGS) and len({str(_setting(run, key)) for run in trained}) > 1
    ]


def _telling_apart(runs: Sequence[RunFiles], keys: Sequence[str]) -> list[str]:
    """The config's keys in which trained runs differ that have the same settings and the same seed: else one seed would
    count twice, as after an edit of the sweep's file between two calls."""
    cells: dict[str, list[RunFiles]] = {}
    for run in (run for run in runs if run.is_trained):
        settings = [str(_setting(run, key)) for key in (*keys, SEED)]
        cells.setdefault(json.dumps(settings), []).append(run)
    found: dict[str, None] = {}
    for alike in (alike for alike in cells.values() if len(alike) > 1):
        first, *others = [dict(flat(run.config)) for run in alike]
        for other in others:
            found |= dict.fromkeys(key for key in {**first, **other} if first.get(key) != other.get(key))
    return [key for key in found if not key.startswith(_NOT_COMPARED)]


def _setting(run: RunFiles, key: str) -> Any:
    """What the user has said, the name chosen of a group, or a value of the config (a mapping as text), in this order:
    what memory=auto or a lack of memory has changed is no setting. "" where the run has none."""
    for said in run.provenance.get("overrides") or []:
        name, _, value = said.lstrip("+").partition("=")
        if name == key:
            return value
    choices = run.provenance.get("choices") or {}
    if key in choices:
        return choices[key]
    value: Any = run.config
    for name in key.split("."):
        value = value.get(name, "") if isinstance(value, dict) else ""
    return str(value) if isinstance(value, dict | list) else value


def _plain(value: Any) -> Any:
    """A number as such, whole ones without a point; anything else as text, nothing as "".

    >>> _plain("4.0"), _plain(1e-4), _plain(float("nan")), _plain(True)
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


def _asked_keys(question: Question) -> list[str]:
    lists = (question.panels, question.lines, [question.x] if question.x else [], question.choose)
    return [key for one in lists for key in one or []]


def _read_csv(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    try:
        head, _, body = path.read_text(encoding="utf-8").partition("\n")
        question = json.loads(head.removeprefix(_HEAD))
        frame = pd.read_csv(io.StringIO(body), dtype={"config_hash": str}, keep_default_na=False, na_values=["nan"])
        missing = [column for column in FIXED if column not in frame]
        if missing or set(question) - {field.name for field in fields(Question)}:
            raise ValueError(f"columns missing: {', '.join(missing)}" if missing else "an unknown question")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); a {FILE} as vrft report writes it is needed") from None
    return question, frame


CHILDREN = "children"  # the folder of a sweep's records, by which it is known


def rank(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then words: as a key to sort by. Of knobs that do equally well the first is preferred.

    >>> sorted(["b", 3e-5, "0.1", "a"], key=rank)
    [3e-05, '0.1', 'a', 'b']
    """
    try:
        return (0, float(value), "")
    except (TypeError, ValueError):
        return (1, 0.0, str(value))


def read_record(path: Path) -> dict[str, Any]:
    """What became of a child, or nothing where it has not ended or the file is damaged (then it runs again).

    A job that nobody has waited for has completed once its result is there.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    has_result = (path.parent.parent / path.stem / "result.json").is_file()
    if record.get("state") in ("submitted", "busy", "running", "interrupted") and has_result:
        record |= {"state": "completed", "cause": "", "last_lines": []}
    return record
