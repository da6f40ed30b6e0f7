"""Charts as inline SVG: training curves, and precision over recall. The page's style sheet sets fonts and colours."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from vrft.tasks.rows import counted

_SIZE_INCHES = (3.9, 2.3)
# Placeholder colours for matplotlib. `_finish` replaces them by CSS variables: charts follow light and dark mode.
_INK, _MUTED, _RULE = "#010203", "#020304", "#030405"
_SERIES = ("#040501", "#040502", "#040503", "#040504")
_DASHES = ("solid", (0, (4, 2)), (0, (1, 1.5)))
_PAGE_COLOURS = {_INK: "var(--ink)", _MUTED: "var(--muted)", _RULE: "var(--rule)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, 1)
}
_LARGEST = 1e300  # of what is drawn
_END_LABEL_GAP = 0.09  # minimum distance of two labels at the line ends, as a share of the chart's height


@dataclass(frozen=True)
class Curve:
    """A line of a chart: `values` over `steps`; both are empty if the run did not log the key."""

    label: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Chart:
    """A drawn chart: title, caption, and SVG in which every text is escaped."""

    title: str
    note: str
    svg: Markup


@dataclass(frozen=True)
class ChartPlan:
    """What a chart shows. curves: a key of the logs and a label, for each line. is_share: the y axis is [0, 1]."""

    title: str
    note: str
    curves: tuple[tuple[str, str], ...]
    is_share: bool = False


PLANS = (
    ChartPlan("Reward", "weighted sum of the terms, mean over the step’s completions", (("reward", ""),)),
    ChartPlan(
        "Readable and complete",
        "share of completions with a readable answer, and share truncated at the length limit",
        (("parse_rate", "readable"), ("completions/clipped_ratio", "truncated")),
        is_share=True,
    ),
    ChartPlan(
        "Zero-variance groups",
        "share of groups whose completions all have the same reward: their advantages are 0",
        (("frac_reward_zero_std", ""),),
        is_share=True,
    ),
    ChartPlan("Completion length", "tokens, mean over the step’s completions", (("completions/mean_length", ""),)),
    ChartPlan("KL to the reference model", "mean over tokens", (("kl", ""),)),
    ChartPlan("Entropy", "of the next token, mean over tokens", (("entropy", ""),)),
    ChartPlan(
        "Token accuracy",
        "share of gold tokens that are the most probable ones",
        (("mean_token_accuracy", ""),),
        is_share=True,
    ),
    ChartPlan("Loss", "as logged by the trainer; in GRPO it does not measure progress", (("loss", ""),)),
)


def training_charts(
    logs: Sequence[dict], *, metric: str, best_step: int | None, alarms: Sequence[dict] = ()
) -> list[Chart]:
    """The charts for which the logs have values: validation first, then reward and terms, then the rest.

    alarms: as in `alarms.jsonl`; each is a vertical line at its step.
    """
    at = sorted({alarm["step"] for alarm in alarms})
    validation = validation_chart(logs, metric=metric, best_step=best_step, alarms_at=at)
    drawn = [plan_chart(plan, logs, alarms_at=at) for plan in (PLANS[0], terms_plan(logs), *PLANS[1:])]
    return [chart for chart in (validation, *drawn) if chart is not None]


def terms_plan(logs: Sequence[dict]) -> ChartPlan:
    """The chart of the reward terms that the logs name."""
    names = dict.fromkeys(
        key.split("/")[1] for entry in logs for key in entry if re.fullmatch("rewards/[^/]+/mean", key)
    )
    curves = tuple((f"rewards/{name}/mean", name) for name in names)
    return ChartPlan("Terms of the reward", "unweighted, mean over the step’s completions", curves, is_share=True)


def validation_chart(
    logs: Sequence[dict], *, metric: str, best_step: int | None, alarms_at: Sequence[int] = ()
) -> Chart | None:
    """The validation metric over steps, with the best step marked; None if there are no values."""
    curve = curve_of(logs, f"validation/{metric}", "")
    if not curve.steps:
        return None
    counts = curve_of(logs, "validation/n", "").values
    figure, axes = _empty_chart(is_share=True, marks=alarms_at)
    axes.axhline(curve.values[0], color=_MUTED, linewidth=1, linestyle=(0, (2, 3)))
    axes.plot(curve.steps, curve.values, color=_SERIES[0], linewidth=1.8, marker="o", markersize=4)
    note = (
        f"on {counted(counts[-1], metric)} for validation, none of a test set; dotted: before training"
        if counts
        else ""
    )
    if best_step in curve.steps:
        best = curve.values[curve.steps.index(best_step)]
        axes.plot(
            [best_step], [best], color=_SERIES[0], marker="o", markersize=9, fillstyle="none", markeredgewidth=1.6
        )
        below = best > 0.85
        axes.annotate(
            f"best {best:.3f}" + (", untrained" if best_step == 0 else ""),
            (best_step, best),
            (0, -11 if below else 9),
            textcoords="offset points",
            ha=_anchor(best_step, curve.steps),
            va="top" if below else "bottom",
            color=_INK,
            fontsize=9,
        )
    if curve.steps[0] == 0 != best_step:
        axes.annotate(
            "untrained",
            (0, curve.values[0]),
            (0, 7 if curve.values[0] < 0.15 else -7),
            textcoords="offset points",
            ha="left",
            va="bottom" if curve.values[0] < 0.15 else "top",
            color=_MUTED,
            fontsize=9,
        )
    title = f"Validation: {metric}"
    return Chart(title, note, _finish(figure, axes, title, _describe(title, [curve])))


def plan_chart(plan: ChartPlan, logs: Sequence[dict], *, alarms_at: Sequence[int] = ()) -> Chart | None:
    """The chart, or None if the logs have none of its values."""
    curves = [curve for curve in (curve_of(logs, key, label) for key, label in plan.curves) if curve.steps]
    if not curves:
        return None
    figure, axes = _empty_chart(is_share=plan.is_share, has_end_labels=len(curves) > 1, marks=alarms_at)
    ends = []
    note = plan.note
    for number, curve in enumerate(curves):
        colour = _SERIES[number % len(_SERIES)]
        dashes = _DASHES[number // len(_SERIES) % len(_DASHES)]  # with more curves than colours: dashed, then dotted
        is_long = len(curve.values) >= 12
        window = max(3, len(curve.values) // 10) if is_long else 1
        smooth = moving_mean(curve.values, window)
        if is_long:
            axes.plot(curve.steps, curve.values, color=colour, linewidth=0.8, alpha=0.35)
        marker = "o" if len(curve.values) < 4 else ""
        axes.plot(curve.steps, smooth, color=colour, linewidth=1.8, linestyle=dashes, marker=marker, markersize=4)
        ends.append((smooth[-1], curve.label, colour))
    if any(len(curve.values) >= 12 for curve in curves):
        note += f"; bold: mean of {max(3, len(curves[0].values) // 10)} logs"
    if len(curves) > 1:
        _label_ends(axes, curves[0].steps[-1], ends)
    return Chart(plan.title, note, _finish(figure, axes, plan.title, _describe(plan.title, curves)))


def precision_recall_chart(
    title: str, note: str, recall: np.ndarray, curves: Sequence[tuple[str, np.ndarray]]
) -> Chart:
    """Precision over recall (R,). curves: a name and the precision (R,) of each side; the last one is emphasised."""
    figure, axes = _empty_chart(is_share=True, has_end_labels=len(curves) > 1, x_label="recall")
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks((0, 0.25, 0.5, 0.75, 1))
    ends = []
    for number, (label, precision) in enumerate(curves, 1):
        is_last = number == len(curves)
        colour = _SERIES[0] if is_last else _MUTED
        dashes = "solid" if is_last else (0, (4, 2))
        axes.plot(recall, precision, color=colour, linewidth=1.8 if is_last else 1.4, linestyle=dashes)
        ends.append((float(precision[-1]), label.lower(), colour))
    if len(curves) > 1:
        _label_ends(axes, 1, ends)
    description = "; ".join(f"{label}: mean precision {precision.mean():.3f}" for label, precision in curves)
    return Chart(title, note, _finish(figure, axes, title, description))


def curve_of(logs: Sequence[dict], key: str, label: str) -> Curve:
    """The logged values of a key over their steps, without those that are not finite."""
    found = [(entry["step"], entry[key]) for entry in logs if isinstance(entry.get(key), int | float)]
    found = [(step, value) for step, value in found if abs(value) < _LARGEST]  # False for NaN
    return Curve(label, [step for step, _ in found], [float(value) for _, value in found])


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean over a window around each value; the window is smaller at the ends.

    >>> moving_mean([0, 3, 6, 3], 3)
    [1.5, 3.0, 4.0, 4.5]
    """
    before, after = (window - 1) // 2, window // 2
    return [float(np.mean(values[max(0, i - before) : i + after + 1])) for i in range(len(values))]


def _empty_chart(*, is_share: bool, has_end_labels: bool = False, x_label: str = "step", marks: Sequence[int] = ()):
    """marks: positions on the x axis that get a vertical line."""
    # Imported here: it takes a second. `Figure` without pyplot needs no display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=_SIZE_INCHES, facecolor="none")
    figure.subplots_adjust(left=0.125, right=0.78 if has_end_labels else 0.98, bottom=0.19, top=0.97)
    axes = figure.add_subplot(facecolor="none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    axes.grid(axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel(x_label, color=_MUTED, fontsize=9, loc="right", labelpad=1)
    for place in marks:
        axes.axvline(place, color=_MUTED, linewidth=1, linestyle=(0, (1, 2)))
    if is_share:
        axes.set_ylim(-0.03, 1.03)
    return figure, axes


def _label_ends(axes, step: int, ends: list[tuple[float, str, str]]) -> None:
    """Write each line's label at its right end, in its colour; labels that would overlap are moved upwards."""
    low, high = axes.get_ylim()
    gap = _END_LABEL_GAP * (high - low)
    position = -np.inf
    for value, label, colour in sorted(ends):
        position = max(value, position + gap)
        axes.annotate(
            label,
            (step, position),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9.5,
            annotation_clip=False,
            parse_math=False,  # a name may hold a $
        )


def _anchor(step: int, steps: Sequence[int]) -> str:
    share = (step - steps[0]) / max(steps[-1] - steps[0], 1)
    return "left" if share < 0.2 else "right" if share > 0.8 else "center"


def _describe(title: str, curves: Sequence[Curve]) -> str:
    return "; ".join(
        f"{curve.label or title} from {curve.values[0]:.3g} at step {curve.steps[0]} "
        f"to {curve.values[-1]:.3g} at step {curve.steps[-1]}"
        for curve in curves
    )


def _finish(figure, axes, title: str, description: str) -> Markup:
    """The figure as SVG. description: for screen readers."""
    axes.margins(x=0.02)
    # For small values matplotlib writes a common factor above the chart, where the caption is.
    if max(map(abs, axes.get_ylim())) < 1e-3:
        axes.yaxis.set_major_formatter(lambda value, position: f"{value:.0e}" if value else "0")
    return as_svg(figure, _PAGE_COLOURS, title=title, description=description)


def as_svg(figure, colours: Mapping[str, str], *, title: str, description: str) -> Markup:
    """A matplotlib figure as SVG that a page may hold as it is, without its own sizes and fonts.

    colours: the figure's, as hex, and what takes their place: variables of the style sheet, so that charts follow light
    and dark mode. description: any text, for screen readers.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for hexed, colour in colours.items():
        svg = svg.replace(hexed, colour)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1))  # matplotlib escapes
