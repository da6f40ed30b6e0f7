"""The report of one run, and tables of several runs, as self-contained HTML, Markdown, CSV and text."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from vrft.errors import UserError
from vrft.files import write_text_atomically
from vrft.report.charts import training_charts
from vrft.report.comparison import change_text, differing, sentences_of, with_differences
from vrft.report.confusion import confusion
from vrft.report.detection import detection_figures
from vrft.report.draw import EDGE_COLOUR, GOLD_COLOUR, PREDICTED_COLOUR
from vrft.report.escaping import csv_text, markdown_rows, markdown_text
from vrft.report.figures import Line, Panel, methods_of, metric_label, panels, untrained_notes
from vrft.report.gallery import make_gallery
from vrft.report.headline import duration, facts, headline, number, origin, sentences, share, signed
from vrft.report.run_files import CHECKPOINT_NAMES, RunFiles

_MOST_SETTINGS = 12  # on the terminal


def write_report(run_dir: Path, others: Sequence[Path] = ()) -> Path:
    """Write `report.html` to the run directory and return its path. others: runs that are added to its table.

    The page loads no other file. Raises `UserError` if a directory has no finished run.
    """
    run = RunFiles(Path(run_dir))
    methods = methods_of([run, *(RunFiles(Path(other)) for other in others)])
    shown, _ = with_differences(panels(methods), methods)
    page = render(
        "report.html.jinja",
        title=run.config["run"]["name"],
        headline=headline(run, shown),
        sentences=sentences(run, shown),
        facts=facts(run),
        origin=origin(run),
        panels=shown,
        all_metrics=_all_metrics(run),
        charts=training_charts(run.logs, metric=run.primary_metrics[0], best_step=run.best_step, alarms=run.alarms),
        alarms=run.alarms,
        is_trained=run.is_trained,
        detection=detection_figures(run),
        confusion=confusion(run),
        gallery=make_gallery(run),
    )
    return write_text_atomically(run.run_dir / "report.html", page)


def write_comparison(run_dirs: Sequence[Path], out_dir: Path) -> Path:
    """Write a table of the runs as `comparison.md`, `.csv` and `.html`, print it, and return the page's path.

    Rows are methods: the base, then each run's checkpoints. Each figure has its n and its 95 % interval. Below stand
    the paired differences of methods, such as RFT − SFT, and what differs between the runs beside the method. Raises
    `UserError` if there is no run, or a directory has no finished run.
    """
    if not run_dirs:
        raise UserError("runs is empty; name the directories of finished runs: runs=[runs/A,runs/B]")
    runs = [RunFiles(Path(run_dir)) for run_dir in run_dirs]
    methods = methods_of(runs)
    shown, found = with_differences(panels(methods), methods)
    names, verdicts, settings = [run.run_dir.name for run in runs], sentences_of(runs, methods, found), differing(runs)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    said = "".join(f"\n{markdown_text(sentence)}\n" for sentence in verdicts)
    write_text_atomically(out_dir / "comparison.md", markdown_table(shown) + said + _markdown_settings(names, settings))
    write_text_atomically(out_dir / "comparison.csv", csv_table(shown))
    page = render("comparison.html.jinja", panels=shown, runs=names, verdicts=verdicts, settings=settings)
    path = write_text_atomically(out_dir / "comparison.html", page)
    lines = [textwrap.fill(sentence, 100) for sentence in verdicts]
    print("\n".join([text_table(shown), "", *lines, *_settings_as_lines(names, settings)]))
    return path


def _settings_as_lines(names: Sequence[str], settings: Sequence[tuple[str, list[str]]]) -> list[str]:
    """What differs between the runs, for the terminal."""
    lines = [f"  {name}: {', '.join(values)}" for name, values in settings[:_MOST_SETTINGS]]
    more = (
        [f"  and {len(settings) - _MOST_SETTINGS} more, in comparison.html"] if len(settings) > _MOST_SETTINGS else []
    )
    return ["", f"What differs beside the method ({', '.join(names)}):", *lines, *more] if settings else []


def _markdown_settings(names: Sequence[str], settings: Sequence[tuple[str, list[str]]]) -> str:
    rows = [["What differs beside the method", *names], ["---"] * (1 + len(names))]
    rows += [[name, *values] for name, values in settings]
    return f"\n{markdown_rows(rows)}\n" if settings else ""


def text_table(shown: Sequence[Panel]) -> str:
    """The panels as text: a block for each metric, a column for each test set, a line for each method."""
    lines = []
    width = max((len(line.label) for panel in shown for line in panel.lines), default=0) + 4
    for metric, of_metric in _by_metric(shown).items():
        heads = [f"{panel.title} (n = {panel.n})" for panel in of_metric]
        column = max(24, *(len(head) + 2 for head in heads))
        lines += [f"{metric_label(metric):{width}}" + "".join(f"{head:{column}}" for head in heads)]
        for label in _labels(of_metric):
            cells = [_cell(panel, label) for panel in of_metric]
            lines.append(f"  {label:{width - 2}}" + "".join(f"{cell:{column}}" for cell in cells))
        lines.append("")
    return "\n".join(line.rstrip() for line in [*lines, *untrained_notes(shown), "[ ]: 95 % bootstrap interval"])


def markdown_table(shown: Sequence[Panel]) -> str:
    """One table: rows are methods, columns are test sets and metrics."""
    heads = [f"{panel.title}: {panel.label} (n = {panel.n})" for panel in shown]
    rows = [["", *heads], ["---"] + ["---:"] * len(shown)]
    rows += [[label, *(_cell(panel, label) + _against(panel, label) for panel in shown)] for label in _labels(shown)]
    notes = "".join(f"\n\n{markdown_text(note)}." for note in untrained_notes(shown))
    return f"{markdown_rows(rows)}{notes}\n\nIn brackets: 95 % bootstrap interval.\n"


def csv_table(shown: Sequence[Panel]) -> str:
    """One line for each figure, with its interval and its paired changes from the base and from another method."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ("value", "low", "high", "n", "change", "change_low", "change_high")
    names += ("against", "difference", "difference_low", "difference_high")
    writer.writerow(["method", "run", "checkpoint", "split", "metric", *names])
    for panel in shown:
        for line in panel.lines:
            change = line.change or {"value": None, "interval": None}
            numbers = [line.value, *(line.interval or (None, None)), line.n]
            numbers += [change["value"], *(change["interval"] or (None, None))]
            name, difference = next(iter(line.against.items()), (None, {"value": None, "interval": None}))
            numbers += [name, difference["value"], *(difference["interval"] or (None, None))]
            cells = [line.label, line.run.run_dir.name, line.kind, panel.split, panel.metric, *numbers]
            writer.writerow(map(csv_text, cells))
    return buffer.getvalue()


def _cell(panel: Panel, label: str) -> str:
    line = next((line for line in panel.lines if line.label == label), None)
    return "" if line is None else f"{number(line.value)}{_bracket(line)}"


def _against(panel: Panel, label: str) -> str:
    line = next((line for line in panel.lines if line.label == label), None)
    return "".join(f"; vs {name} {change_text(change)}" for name, change in (line.against.items() if line else ()))


def _bracket(line: Line) -> str:
    return f" [{number(line.interval[0])}, {number(line.interval[1])}]" if line.interval else ""


def _labels(shown: Sequence[Panel]) -> list[str]:
    return list(dict.fromkeys(line.label for panel in shown for line in panel.lines))


def _by_metric(shown: Sequence[Panel]) -> dict[str, list[Panel]]:
    return {metric: [p for p in shown if p.metric == metric] for metric in dict.fromkeys(p.metric for p in shown)}


def _all_metrics(run: RunFiles) -> list[tuple[str, list[str], list[tuple[str, list[dict | None]]]]]:
    """For each test set: its title, the names of the evaluations, and every metric with one figure per evaluation."""
    tables = []
    for split in run.splits:
        by_name = {name: run.metrics(name, split) for name in run.result["test_sets"][split]}
        metrics = dict.fromkeys(metric for figures in by_name.values() for metric in figures)
        lines = [(metric, [figures.get(metric) for figures in by_name.values()]) for metric in metrics]
        tables.append((run.title(split), [CHECKPOINT_NAMES.get(name, name) for name in by_name], lines))
    return tables


def render(template: str, **values) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "share": share,
        "duration": duration,
        "with_faint_tags": _with_faint_tags,
    }
    colours = {"gold": GOLD_COLOUR, "predicted": PREDICTED_COLOUR, "edge": EDGE_COLOUR}
    return environment.get_template(template).render(colours=colours, by_metric=_by_metric, **values)


def _with_faint_tags(text: str) -> Markup:
    """The completion as escaped HTML; the tags of thought and answer get an element of their own."""
    return Markup(re.sub(r"(&lt;/?(?:think|answer)&gt;)", r"<b>\1</b>", str(escape(text))))
