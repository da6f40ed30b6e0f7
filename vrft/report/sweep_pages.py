"""A sweep's answer: tables, plots of its question, and one page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vrft.report.run_files import CHECKPOINT_NAMES
from vrft.report.story import number
from vrft.report.sweep import FILE, Sweep, averaged, chosen, figures_at, measures, read_sweep, to_csv
from vrft.rows import write_text_atomically

_COLOURS = ("#0b6bb8", "#b4540a", "#0b7a53", "#8a3f8f", "#b3261e", "#5c6875")
_MARKERS = "osD^vP"
_PANEL_INCHES = (3.3, 2.9)


def write_sweep_report(sources: Sequence[Path], out_dir: Path | None = None) -> Path:
    """Write `sweep.md`, `sweep.csv`, `figures.csv`, `plot_*.png` and `sweep.html` to `out_dir` (the first source's
    folder unless given), print the table, and return the page's path. Raises `UserError` if there is no finished run.
    """
    first = Path(sources[0])
    out_dir = Path(out_dir or (first if first.is_dir() else first.parent))
    sweep = read_sweep(sources)
    shown = chosen(sweep)
    table = wide_table(sweep, shown)
    missed = [one for source in sources for one in _missed(Path(source))]
    out_dir.mkdir(parents=True, exist_ok=True)
    write_text_atomically(out_dir / FILE, to_csv(sweep))
    averages = averaged(shown, sweep.settings)
    write_text_atomically(out_dir / "sweep.csv", averages.to_csv(index=False, float_format="%.6g"))
    write_text_atomically(out_dir / "sweep.md", markdown(sweep, table, missed))
    plots = write_plots(sweep, shown, out_dir)
    print(table.to_string(index=False))
    from vrft.report import render

    images = [(name, base64.b64encode((out_dir / name).read_bytes()).decode()) for name in plots]
    page = render("sweep.html.jinja", question=sweep.question, table=table, plots=images, missed=missed)
    return write_text_atomically(out_dir / "sweep.html", page)


def wide_table(sweep: Sweep, shown: pd.DataFrame) -> pd.DataFrame:
    """Settings and checkpoints down, what is measured across; a cell: mean, 95 % interval over seeds, and their n."""
    columns = []
    for test_set, metric in measures(sweep):
        found = pd.concat([figures_at(_untrained(sweep), test_set, metric), figures_at(shown, test_set, metric)])
        cells = averaged(found, sweep.settings)
        if cells.empty:
            continue
        names = cells.groupby([*sweep.settings, "checkpoint"], sort=False).metric.first()
        is_one = names.nunique() == 1
        title = cells.title.iloc[0] + (f": {names.iloc[0]}" if is_one else "")
        text = [_cell(one) + ("" if is_one else f" ({one.metric})") for one in cells.itertuples()]
        cells = cells.assign(**{title: text})
        columns.append(cells.set_index([*sweep.settings, "checkpoint"])[title])
    table = pd.concat(columns, axis=1).reset_index() if columns else pd.DataFrame()
    table = table.fillna("").replace({"checkpoint": {**CHECKPOINT_NAMES, "before": "base"}})
    return table.sort_values(sweep.settings, key=_sort_key, kind="stable") if len(table) else table


def _untrained(sweep: Sweep) -> pd.DataFrame:
    """The base models' figures, once for each panel: what they were not trained with is left empty."""
    panels = sweep.question.panels or []
    own = sweep.bases.assign(**{key: "" for key in sweep.settings if key not in panels})
    return own.drop_duplicates([*(key for key in panels if key in own), "checkpoint", "test_set", "metric"])


def markdown(sweep: Sweep, table: pd.DataFrame, missed: Sequence[dict]) -> str:
    """The table and what did not complete."""
    head = [str(column) for column in table]
    rows = [head, ["---"] * len(head), *([str(value) for value in row] for row in table.itertuples(index=False))]
    lines = [f"# {sweep.question.title}", ""] if sweep.question.title else []
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", "Mean over seeds, in brackets its 95 % interval (Student's t, from three on), n: seeds."]
    if knobs := [key for key in sweep.question.choose or [] if key in sweep.settings]:
        on = "" if sweep.question.choose_seed is None else f" with seed {sweep.question.choose_seed}"
        lines.append(f"Chosen by validation{on}, for each of the other settings: {', '.join(knobs)}.")
    if missed:
        lines += ["", "Not completed:", ""]
        lines += [f"- {one['state']}: {one['name']} ({one['cause']})" for one in missed]
    return "\n".join(lines) + "\n"


def write_plots(sweep: Sweep, shown: pd.DataFrame, out_dir: Path) -> list[str]:
    """A PNG for each measure, the question's x across, a panel each, a line each; their names."""
    question = sweep.question
    if not question.x or question.x not in shown:
        return []
    names = []
    for test_set, metric in measures(sweep):
        for checkpoint in ("best", "last", "run"):
            found = figures_at(shown[shown.checkpoint == checkpoint], test_set, metric)
            if found.empty:
                continue
            base = figures_at(sweep.bases, test_set, metric)
            words = "_".join(word for word in (*test_set.split("/"), metric, checkpoint) if word)
            name = f"plot_{words.replace('@', '_')}.png"
            figure = draw(sweep, found, base, CHECKPOINT_NAMES.get(checkpoint, ""))
            figure.savefig(out_dir / name, dpi=150, metadata={"Software": None})
            names.append(name)
    return names


def draw(sweep: Sweep, figures: pd.DataFrame, base: pd.DataFrame, subtitle: str):
    """Means with intervals over the question's x, small dots for single seeds, a dashed line for the base."""
    from matplotlib.figure import Figure  # a second to import, and no display to open

    question, x = sweep.question, sweep.question.x
    panel_keys = [key for key in question.panels or [] if key in figures]
    line_keys = [key for key in question.lines or [] if key in figures] or [
        key for key in sweep.settings if key not in (x, *panel_keys, *(question.choose or []))
    ]
    places = {value: place for place, value in enumerate(sorted(figures[x].unique(), key=_rank))}
    panels = list(figures.groupby(panel_keys, sort=False)) if panel_keys else [((), figures)]
    lines = {name: index for index, name in enumerate(dict.fromkeys(_names(figures, line_keys)))}
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(panels) + 1.5, height), layout="constrained")
    for axes, (panel, of_panel) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        for name, index in lines.items():
            one = of_panel[_names(of_panel, line_keys) == name]
            if one.empty:
                continue
            means = averaged(one, [x]).sort_values(x, key=lambda column: column.map(_rank))
            at = means[x].map(places) + (index - (len(lines) - 1) / 2) * 0.06
            style = {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index % len(_MARKERS)]}
            error = (means["high"] - means["mean"]).fillna(0)
            axes.errorbar(at, means["mean"], yerr=error, label=name, capsize=2, lw=1.6, ms=4.5, **style)
            shift = (index - (len(lines) - 1) / 2) * 0.06
            axes.scatter(one[x].map(places) + shift, one.value, s=6, alpha=0.45, color=style["color"], linewidths=0)
        own = base
        for key, value in zip(panel_keys, panel, strict=True):
            own = own[own[key] == value]
        if len(own):
            axes.axhline(own.value.mean(), color=_COLOURS[-1], ls=(0, (4, 3)), lw=1.2, label="base")
        axes.set_title(" · ".join(map(str, panel)) or of_panel.title.iloc[0], fontsize=9.5)
        axes.set_xticks(list(places.values()), [str(value) for value in places])
        axes.set_xlabel(x.rpartition(".")[2], fontsize=9)
        axes.set_ylabel(of_panel.metric.iloc[0], fontsize=9)
        axes.tick_params(labelsize=8.5)
        axes.grid(axis="y", lw=0.5, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    title = figures.title.iloc[0] + (f" ({subtitle})" if subtitle else "")
    figure.suptitle(f"{title}: mean and 95 % interval over seeds", fontsize=10)
    handles = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8.5, frameon=False)
    return figure


def _names(figures: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    if not keys:
        return pd.Series("mean", index=figures.index)
    return figures[list(keys)].astype(str).agg(" · ".join, axis=1)


def _cell(one: Any) -> str:
    interval = f" [{number(one.low)}, {number(one.high)}]" if one.seeds > 2 else ""
    return f"{number(one.mean)}{interval} n={one.seeds}"


def _rank(value: Any) -> tuple:
    """Numbers by size, then words: as a key to sort by."""
    try:
        return (0, float(value), "")
    except (TypeError, ValueError):
        return (1, 0.0, str(value))


def _sort_key(column: pd.Series) -> pd.Series:
    order = {value: place for place, value in enumerate(sorted(column.unique(), key=_rank))}
    return column.map(order)


def _missed(source: Path) -> list[dict[str, str]]:
    """The children of a sweep's folder that did not complete: name, state, cause."""
    from vrft.sweeping import read_record

    found = []
    for path in sorted(source.glob("children/*.json")) if source.is_dir() else []:
        record = read_record(path)
        if record and record["state"] not in ("completed", "not_chosen"):
            found.append({"name": path.stem, "state": record["state"], "cause": record["cause"]})
    return found
