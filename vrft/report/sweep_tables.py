"""Tables of a sweep: one for each measure of its question, and one of all cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from vrft.report.headline import number
from vrft.report.run_files import CHECKPOINT_NAMES
from vrft.report.sweep import Sweep, averaged, figures_at, measures, rank

_OF_TRAINING = (
    "trainer", "reward", "rollout", "deepspeed", "alarms", "recipe", "launch", "model/peft", "model.freeze",
    "dataset.k_shot", "memory.num_generations", "memory.gradient_checkpointing", "memory.completions_per_device",
)  # fmt: skip
"""Settings that do not apply to a base model. All others (model, experiment, max_pixels …) distinguish base models."""


class View(NamedTuple):
    """One measure at one checkpoint. name: part of the plot's file name.

    figures: of trained models, one row per run, with columns `panel` ("" if there is only one) and `line`.
    base: of base models, one row per `panel`, `line` and x; `value` is the mean.
    """

    name: str
    title: str
    figures: pd.DataFrame
    base: pd.DataFrame


def views(sweep: Sweep, shown: pd.DataFrame) -> list[View]:
    """A view for each measure of the question at each checkpoint; empty if all runs have the same `x`."""
    question, found = sweep.question, []
    if not question.x or question.x not in shown:
        return []
    panels = [key for key in question.panels or [] if key in shown]
    placed = (question.x, *panels, *(question.choose or []))
    lines = [key for key in question.lines or [] if key in shown] or [
        key for key in sweep.settings if key not in placed
    ]
    for test_set, metric in measures(sweep):
        base = figures_at(sweep.bases, test_set, metric)
        for checkpoint in ("best", "last", "run") if _is_trained(sweep) else ("before",):
            figures = figures_at(shown[shown.checkpoint == checkpoint], test_set, metric)
            if figures.empty:
                continue
            name = "_".join(part for part in (*test_set.split("/"), metric, checkpoint) if part)
            kind = CHECKPOINT_NAMES.get(checkpoint, "")
            figures = figures.assign(
                panel=_names(figures, panels, question.labels),
                line=_names(figures, lines, question.labels) if lines else "mean",
            )
            title = figures.title.iloc[0] + (f" ({kind})" if kind else "")
            of_cells = _base_of_cells(figures, base, keys=[question.x, *panels, *lines])
            found.append(View(name.replace("@", "_"), title, figures, of_cells))
    return found


def _base_of_cells(figures: pd.DataFrame, base: pd.DataFrame, *, keys: Sequence[str]) -> pd.DataFrame:
    cells = figures[[*keys, "panel", "line"]].drop_duplicates()
    if base.empty:
        return cells.assign(value=None).iloc[:0]
    if base_keys := [key for key in keys if not key.startswith(_OF_TRAINING)]:
        return cells.merge(base.groupby(base_keys, dropna=False).value.mean().reset_index(), on=base_keys)
    return cells.assign(value=base.value.mean())


def base_lines(view: View, x: str) -> dict[str, pd.DataFrame]:
    """`{line: the base's figures}`; `{None: figures}` if they are the same for all lines."""
    if (view.base.groupby(["panel", x]).value.nunique() <= 1).all():
        return {None: view.base.drop_duplicates(["panel", x])} if len(view.base) else {}
    return {line: view.base[view.base.line == line] for line in dict.fromkeys(view.base.line)}


def in_order(sweep: Sweep, names: pd.Series) -> list[str]:
    """The distinct names: first those of `question.labels` in its order, then the others in order of appearance."""
    order = {label: place for place, label in enumerate((sweep.question.labels or {}).values())}
    return sorted(dict.fromkeys(names), key=lambda name: order.get(name, len(order)))


def question_table(sweep: Sweep, view: View) -> pd.DataFrame:
    """Rows are lines, the base first. Columns are panels and values of `x`.

    A cell is the mean ± half of the 95 % interval, and in brackets the number of seeds if most cells have another one.
    """
    x = sweep.question.x
    cells = averaged(view.figures, ["panel", x, "line"])
    cells = cells.assign(text=[_short_cell(one, cells.seeds.mode().max()) for one in cells.itertuples()])
    texts = {line: cells[cells.line == line] for line in in_order(sweep, view.figures.line)}
    for line, base in base_lines(view, x).items():
        name = "base" if line is None else f"base of {line}"
        texts = {name: base.assign(text=base.value.map(number)), **texts}
    rows: dict[str, dict[str, str]] = {line: {} for line in texts}
    for panel in in_order(sweep, view.figures.panel):
        for value in sorted(cells[cells.panel == panel][x].unique(), key=rank):
            column = f"{panel}, {value}" if panel else f"{x.rpartition('.')[2]} {value}"
            for line, found in texts.items():
                here = found[(found.panel == panel) & (found[x] == value)]
                rows[line][column] = here.text.iloc[0] if len(here) else ""
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("").reset_index()


def wide_table(sweep: Sweep, shown: pd.DataFrame) -> pd.DataFrame:
    """Rows are settings and checkpoints, columns are measures. A cell: mean, 95 % interval, number of seeds."""
    columns = []
    for test_set, metric in measures(sweep):
        found = pd.concat([figures_at(_untrained(sweep), test_set, metric), figures_at(shown, test_set, metric)])
        cells = averaged(found, sweep.settings)
        if cells.empty:
            continue
        metrics = cells.groupby([*sweep.settings, "checkpoint"], sort=False).metric.first()
        is_one = metrics.nunique() == 1
        title = cells.title.iloc[0] + (f": {metrics.iloc[0]}" if is_one else "")
        text = [_cell(one) + ("" if is_one else f" ({one.metric})") for one in cells.itertuples()]
        cells = cells.assign(**{title: text})
        columns.append(cells.set_index([*sweep.settings, "checkpoint"])[title])
    table = pd.concat(columns, axis=1).reset_index() if columns else pd.DataFrame()
    before = "base" if _is_trained(sweep) else "evaluated"
    table = table.fillna("").replace({"checkpoint": {**CHECKPOINT_NAMES, "before": before}})
    return table.sort_values(sweep.settings, key=_sort_key, kind="stable") if len(table) else table


def _names(figures: pd.DataFrame, keys: Sequence[str], labels: dict[str, str] | None) -> pd.Series | str:
    """One name for all settings of a row."""
    if not keys:
        return ""
    named = figures[list(keys)].astype(str).map(lambda value: (labels or {}).get(value, value))
    return named.agg(" · ".join, axis=1) if len(named) else ""


def _untrained(sweep: Sweep) -> pd.DataFrame:
    """The distinct figures of base models, with the settings of a training set to ""."""
    own = sweep.bases.assign(**{key: "" for key in sweep.settings if key.startswith(_OF_TRAINING)})
    return own.drop_duplicates([*sweep.settings, "checkpoint", "test_set", "metric", "value"])


def _is_trained(sweep: Sweep) -> bool:
    return bool(sweep.figures.checkpoint.isin(["best", "last"]).any())


def _cell(one: Any) -> str:
    interval = f" [{number(one.low)}, {number(one.high)}]" if one.seeds > 2 else ""
    return f"{number(one.mean)}{interval} n={one.seeds}"


def _short_cell(one: Any, usual: int) -> str:
    half = f" ± {number(one.high - one.mean)}" if one.seeds > 2 else ""
    return f"{number(one.mean)}{half}" + (f" ({one.seeds})" if one.seeds != usual else "")


def _sort_key(column: pd.Series) -> pd.Series:
    order = {value: place for place, value in enumerate(sorted(column.unique(), key=rank))}
    return column.map(order)
