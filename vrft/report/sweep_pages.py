"""A sweep's answer: tables, plots of its question, and one page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vrft.errors import UserError
from vrft.files import write_text_atomically
from vrft.report.sweep import FILE, Sweep, averaged, chosen, rank, read_sweep, to_csv
from vrft.report.sweep_tables import View, base_lines, in_order, question_table, views, wide_table

_COLOURS = ("#0b6bb8", "#b4540a", "#0b7a53", "#8a3f8f", "#b3261e", "#5c6875")
_MARKERS = "osD^vP"
_SHORT = (
    "Mean over seeds ± half of its 95 % interval (Student's t, from three on); in brackets seeds, where not the usual."
)
_WIDE = "Mean over seeds, in brackets its 95 % interval (Student's t, from three on), n: seeds."
_PANEL_INCHES = (3.3, 2.9)


def write_sweep_report(sources: Sequence[Path], out_dir: Path | None = None) -> Path:
    """Write `sweep.md`, `sweep.csv`, `figures.csv`, `plot_*.png` and `sweep.html` to `out_dir` (the first source's
    folder unless given), print the table, and return the page's path. Raises `UserError` if there is no finished run,
    or kept figures would be replaced by those of several sources.
    """
    first = Path(sources[0])
    if len(sources) > 1 and not (first.is_dir() or out_dir):
        raise UserError(f"the report of several sources would replace {first}; name a folder for it: out=DIR")
    out_dir = Path(out_dir or (first if first.is_dir() else first.parent))
    sweep = read_sweep(sources)
    shown = chosen(sweep)
    seen = views(sweep, shown)
    table, tables = wide_table(sweep, shown), [question_table(sweep, view) for view in seen]
    missed = [one for source in sources for one in _missed(Path(source))]
    out_dir.mkdir(parents=True, exist_ok=True)
    write_text_atomically(out_dir / FILE, to_csv(sweep))
    averages = averaged(shown, sweep.settings)
    write_text_atomically(out_dir / "sweep.csv", averages.to_csv(index=False, float_format="%.6g"))
    plots = write_plots(sweep, seen, out_dir)
    titled = list(zip([view.title for view in seen], tables, plots, strict=True))
    notes = [_SHORT if titled else "", _WIDE, _words_of_choice(sweep)]
    write_text_atomically(out_dir / "sweep.md", markdown(sweep, titled, table, notes=notes, missed=missed))
    print(table.to_string(index=False))
    from vrft.report.page import render

    images = [base64.b64encode((out_dir / name).read_bytes()).decode() for name in plots]
    page = render(
        "sweep.html.jinja",
        question=sweep.question,
        views=[(*one, image) for one, image in zip(titled, images, strict=True)],
        table=table,
        notes=notes,
        missed=missed,
    )
    return write_text_atomically(out_dir / "sweep.html", page)


def markdown(
    sweep: Sweep,
    titled: Sequence[tuple[str, pd.DataFrame, str]],
    table: pd.DataFrame,
    *,
    notes: Sequence[str],
    missed: Sequence[dict],
) -> str:
    """The question's tables, each with its title and its plot, then that of every cell, and what did not complete.

    notes: on the former, on the latter, and on both.
    """
    lines = [f"# {sweep.question.title}", ""] if sweep.question.title else []
    lines += [note for note in (notes[0], notes[2]) if titled and note]
    for title, one, plot in titled:
        lines += ["", f"**{title}**", "", *_markdown_table(one), "", f"![{title}]({plot})"]
    lines += ["", "**Every cell**", ""] if titled else []
    lines += [*_markdown_table(table), "", " ".join(note for note in notes[1:] if note)]
    if missed:
        lines += ["", "Not completed:", ""]
        lines += [f"- {one['state']}: {one['name']} ({one['cause']})" for one in missed]
    return "\n".join(lines) + "\n"


def _markdown_table(table: pd.DataFrame) -> list[str]:
    head = [str(column) for column in table]
    cells = [[str(value).replace("|", r"\|") for value in row] for row in table.itertuples(index=False)]
    rows = [head, ["---"] * len(head), *cells]
    return [f"| {' | '.join(row)} |" for row in rows]


def _words_of_choice(sweep: Sweep) -> str:
    knobs = [key for key in sweep.question.choose or [] if key in sweep.settings]
    on = "" if sweep.question.choose_seed is None else f" with seed {sweep.question.choose_seed}"
    return f"Chosen by validation{on}, for each of the other settings: {', '.join(knobs)}." if knobs else ""


def write_plots(sweep: Sweep, seen: Sequence[View], out_dir: Path) -> list[str]:
    """A PNG for each view, the question's x across, a panel each, a line each; their names."""
    names = []
    for view in seen:
        name = f"plot_{view.name}.png"
        draw(sweep, view).savefig(out_dir / name, dpi=150, metadata={"Software": None})
        names.append(name)
    return names


def draw(sweep: Sweep, view: View):
    """Means with intervals over the question's x, small dots for single seeds, a dashed line for the base."""
    from matplotlib.figure import Figure  # a second to import, and no display to open

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
    """A dashed line: across the whole plot where the base does not depend on x."""
    style = {"color": colour, "ls": (0, (4, 3)), "lw": 1.2, "label": "base"}
    if base.value.nunique() == 1:
        axes.axhline(base.value.iloc[0], **style)
    elif len(base):
        at = places[base.index].sort_values()
        axes.plot(at, base.value[at.index], **style)


def _missed(source: Path) -> list[dict[str, str]]:
    """The children of a sweep's folder that did not complete: name, state, cause."""
    from vrft.report.sweep import read_record

    found = []
    for path in sorted(source.glob("children/*.json")) if source.is_dir() else []:
        record = read_record(path)
        if record and record["state"] not in ("completed", "not_chosen"):
            found.append({"name": path.stem, "state": record["state"], "cause": record["cause"]})
    return found
