"""The report of a sweep: tables, plots of its question, and one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from vrft.errors import UserError
from vrft.files import write_text_atomically, written_whole
from vrft.report.charts import as_svg
from vrft.report.escaping import csv_text, markdown_rows, markdown_text
from vrft.report.sweep import FILE, Sweep, averaged, chosen, rank, read_sweep, to_csv
from vrft.report.sweep_tables import View, base_lines, in_order, question_table, views, wide_table

_COLOURS = ("#0b6bb8", "#b4540a", "#0b7a53", "#8a3f8f", "#b3261e", "#5c6875")
_PAGE_COLOURS = {
    colour: f"var(--{name})"
    for colour, name in zip(
        (*_COLOURS, "#000000", "#b0b0b0"),
        ("series-1", "series-2", "series-3", "series-4", "bad", "muted", "ink", "rule"),
        strict=True,
    )
} | {"#ffffff": "none"}
_MARKERS = "osD^vP"
_SHORT = (
    "Mean over seeds ± half of the 95 % interval (Student's t, from three seeds on). In brackets: the number of seeds, "
    "if it is not that of most cells."
)
_WIDE = "Mean over seeds. In brackets: 95 % interval (Student's t, from three seeds on). n: seeds."
_PANEL_INCHES = (3.3, 2.9)


def write_sweep_report(sources: Sequence[Path], out_dir: Path | None = None) -> Path:
    """Write `sweep.md`, `.csv` and `.html`, `figures.csv` and `plot_*.png`, print the table, return the page's path.

    out_dir: the first source's folder unless given. Raises `UserError` if there is no finished run, or if a
    `figures.csv` would be overwritten by the figures of several sources.
    """
    first = Path(sources[0])
    if len(sources) > 1 and not (first.is_dir() or out_dir):
        raise UserError(f"the report of several sources would overwrite {first}; choose another folder: out=DIR")
    out_dir = Path(out_dir or (first if first.is_dir() else first.parent))
    sweep = read_sweep(sources)
    shown = chosen(sweep)
    shown_views = views(sweep, shown)
    table, tables = wide_table(sweep, shown), [question_table(sweep, view) for view in shown_views]
    incomplete = [one for source in sources for one in _incomplete(Path(source))]
    out_dir.mkdir(parents=True, exist_ok=True)
    write_text_atomically(out_dir / FILE, to_csv(sweep))
    averages = averaged(shown, sweep.settings)
    write_text_atomically(out_dir / "sweep.csv", averages.map(csv_text).to_csv(index=False, float_format="%.6g"))
    plots = write_plots(sweep, shown_views, out_dir)
    titled = [(view.title, one, plot.name) for view, one, plot in zip(shown_views, tables, plots, strict=True)]
    notes = [_SHORT if titled else "", _WIDE, _selection_note(sweep)]
    write_text_atomically(out_dir / "sweep.md", markdown(sweep, titled, table, notes=notes, incomplete=incomplete))
    print(table.to_string(index=False))
    from vrft.report.page import render

    page = render(
        "sweep.html.jinja",
        question=sweep.question,
        views=[(title, one, plot) for (title, one, _), plot in zip(titled, plots, strict=True)],
        table=table,
        notes=notes,
        incomplete=incomplete,
    )
    return write_text_atomically(out_dir / "sweep.html", page)


def markdown(
    sweep: Sweep,
    titled: Sequence[tuple[str, pd.DataFrame, str]],
    table: pd.DataFrame,
    *,
    notes: Sequence[str],
    incomplete: Sequence[dict],
) -> str:
    """The question's tables, each with title and plot, then the table of all cells, then the runs without a result.

    notes: three texts, on the question's tables, on the table of all cells, and on both.
    """
    lines = [f"# {markdown_text(sweep.question.title)}", ""] if sweep.question.title else []
    lines += [note for note in (notes[0], notes[2]) if titled and note]
    for title, one, plot in titled:
        title = markdown_text(title)
        lines += ["", f"**{title}**", "", *_markdown_table(one), "", f"![{title}]({plot})"]
    lines += ["", "**Every cell**", ""] if titled else []
    lines += [*_markdown_table(table), "", " ".join(note for note in notes[1:] if note)]
    if incomplete:
        lines += ["", "Not completed:", ""]
        lines += [f"- {markdown_text('{state}: {name} ({cause})'.format(**one))}" for one in incomplete]
    return "\n".join(lines) + "\n"


def _markdown_table(table: pd.DataFrame) -> list[str]:
    rows = [list(table), ["---"] * len(table.columns), *table.itertuples(index=False)]
    return markdown_rows(rows).splitlines()


def _selection_note(sweep: Sweep) -> str:
    names = [key for key in sweep.question.choose or [] if key in sweep.settings]
    seed = "" if sweep.question.choose_seed is None else f" with seed {sweep.question.choose_seed}"
    if not names:
        return ""
    return f"Selected by validation{seed}, for each combination of the other settings: {', '.join(names)}."


@dataclass(frozen=True)
class Plot:
    """A view's plot: the name of its PNG, and for the page the same as SVG that is at most `width` pixels wide."""

    name: str
    svg: Markup
    width: int


def write_plots(sweep: Sweep, shown_views: Sequence[View], out_dir: Path) -> list[Plot]:
    """Draw each view and write it as PNG."""
    import matplotlib

    plots = []
    for view in shown_views:
        name = f"plot_{view.name}.png"
        with matplotlib.rc_context({"text.parse_math": False}):  # a name may hold a $
            figure = draw(sweep, view)
            with written_whole(out_dir / name) as file:
                figure.savefig(file, dpi=150, metadata={"Software": None})
            svg = as_svg(figure, _PAGE_COLOURS, title=name, description=view.title)
        plots.append(Plot(name, svg, round(110 * figure.get_size_inches()[0])))
    return plots


def draw(sweep: Sweep, view: View):
    """A matplotlib figure over the question's x: means with intervals, dots for seeds, dashed lines for the base."""
    # Imported here: it takes a second. `Figure` without pyplot needs no display.
    from matplotlib.figure import Figure

    x, figures = sweep.question.x, view.figures
    places = {value: place for place, value in enumerate(sorted(figures[x].unique(), key=rank))}
    panels, lines = in_order(sweep, figures.panel), in_order(sweep, figures.line)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(panels) + 1.5, height), layout="constrained")
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        of_panel = figures[figures.panel == panel]
        for index, line in enumerate(lines):
            one = of_panel[of_panel.line == line]
            if one.empty:
                continue
            means = averaged(one, [x]).sort_values(x, key=lambda column: column.map(rank))
            shift = (index - (len(lines) - 1) / 2) * 0.06
            style = {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index % len(_MARKERS)]}
            error = (means["high"] - means["mean"]).fillna(0)
            at = means[x].map(places) + shift
            axes.errorbar(at, means["mean"], yerr=error, label=line, capsize=2, lw=1.6, ms=4.5, **style)
            axes.scatter(one[x].map(places) + shift, one.value, s=6, alpha=0.45, color=style["color"], linewidths=0)
        for line, base in base_lines(view, x).items():
            colour = _COLOURS[-1] if line is None else _COLOURS[lines.index(line) % len(_COLOURS)]
            _draw_base(axes, base[base.panel == panel], places=base[x].map(places), colour=colour)
        axes.set_title(panel or of_panel.title.iloc[0], fontsize=9.5)
        axes.set_xticks(list(places.values()), [str(value) for value in places])
        axes.set_xlabel(x.rpartition(".")[2], fontsize=9)
        axes.set_ylabel(of_panel.metric.iloc[0], fontsize=9)
        axes.tick_params(labelsize=8.5)
        axes.grid(axis="y", lw=0.5, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{view.title}: mean and 95 % interval over seeds", fontsize=10)
    handles = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8.5, frameon=False)
    return figure


def _draw_base(axes, base: pd.DataFrame, *, places: pd.Series, colour: str) -> None:
    """Draw a dashed line, across the whole plot if the base does not depend on x."""
    style = {"color": colour, "ls": (0, (4, 3)), "lw": 1.2, "label": "base"}
    if base.value.nunique() == 1:
        axes.axhline(base.value.iloc[0], **style)
    elif len(base):
        at = places[base.index].sort_values()
        axes.plot(at, base.value[at.index], **style)


def _incomplete(source: Path) -> list[dict[str, str]]:
    """`{"name", "state", "cause"}` of each child run of a sweep that has no result."""
    from vrft.report.sweep import read_record

    found = []
    for path in sorted(source.glob("children/*.json")) if source.is_dir() else []:
        record = read_record(path) or {"state": "unknown", "cause": f"its record {path.name} is damaged"}
        if record["state"] not in ("completed", "not_chosen"):
            found.append({"name": path.stem, "state": record["state"], "cause": record["cause"]})
    return found
