"""AP of a detection run by class and by object size, and precision-recall curves.

All figures come from the official evaluator. It runs once for each side, on the rows and scored rows of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vrft.report.charts import Chart, precision_recall_chart
from vrft.report.figures import Line, Panel
from vrft.report.run_files import RunFiles
from vrft.tasks.answers import normal_name
from vrft.tasks.rows import Row

SIZES = {
    "APs": "small: below 32 × 32 pixels",
    "APm": "medium: up to 96 × 96 pixels",
    "APl": "large: above",
}
_SUMMARIES = {"AP50": "IoU 0.50", "AP75": "IoU 0.75", "AP": "Mean over IoU 0.50 to 0.95"}
_MOST_CLASS_CURVES = 12


@dataclass(frozen=True)
class ClassLine:
    """A class with gold boxes. values: AP on each side. intervals: of each AP; None if one image has all gold boxes."""

    name: str
    n_gold: int
    n_images: int
    values: list[float]
    intervals: list[list[float] | None]


@dataclass(frozen=True)
class AbsentClass:
    """A class without gold boxes. n_found: predicted boxes on each side. was_asked: True if a question asks for it."""

    name: str
    n_found: list[int]
    was_asked: bool


@dataclass(frozen=True)
class DetectionFigures:
    """The detection part of the page. sides: titles, before and after or only one.

    class_lines: lowest AP first. sizes: a panel for each object size with gold boxes; missing_sizes: the other sizes.
    curves: means over classes. class_curves: at IoU 0.5, of the classes with the most gold boxes.
    """

    sides: list[str]
    class_lines: list[ClassLine]
    absent: list[AbsentClass]
    sizes: list[Panel]
    missing_sizes: list[str]
    curves: list[Chart]
    class_curves: list[Chart]


@dataclass(frozen=True)
class _Evaluated:
    """One side's figures of the official evaluator. names: of the K classes.

    precision: (IoU thresholds, recall thresholds, K) for boxes of all sizes; -1 for classes without gold.
    samples: by figure, (K, 1 + R): the official value first, then the values of R bootstrap samples of the images.
    n_gold: (A, K) boxes by size (all sizes first). n_images: (K,) images with gold. n_found: (K,) predicted boxes.
    """

    names: list[str]
    recall: np.ndarray
    precision: np.ndarray
    figures: dict[str, float | None]
    samples: dict[str, np.ndarray]
    n_gold: np.ndarray
    n_images: np.ndarray
    n_found: np.ndarray


def detection_figures(run: RunFiles, *, split: str = "test") -> DetectionFigures | None:
    """The figures of a test set; None if the scorer is not AP, nothing was evaluated, or no row has a gold box."""
    from vrft.evaluate.coco import asked_names

    rows, kinds = run.rows(split), run.judged_kinds(split)
    if run.config["protocol"]["scorer"] != "coco" or not kinds or not any(row["gold"] for row in rows):
        return None
    n_resamples = run.config["protocol"]["n_resamples"]
    asked = run.config["protocol"].get("asked")
    sides = [_evaluate(rows, run.scores(kind, split), asked, n_resamples) for kind in kinds]
    titles = run.side_titles(split)
    lines = _class_lines(sides, asked_names(rows))
    sizes = [_size_panel(run, split, kinds, titles, sides, name) for name in SIZES]
    return DetectionFigures(
        sides=titles,
        class_lines=sorted(lines, key=lambda line: (line.values[-1], line.name)),
        absent=_absent_classes(rows, sides),
        sizes=[panel for panel in sizes if panel.lines],
        missing_sizes=[panel.title.partition(":")[0] for panel in sizes if not panel.lines],
        curves=[_mean_curves(titles, sides, name) for name in _SUMMARIES],
        class_curves=[_class_curve(titles, sides, line) for line in _with_most_gold(lines)],
    )


def _evaluate(rows: Sequence[Row], scored: Sequence[dict], asked: str | None, n_resamples: int) -> _Evaluated:
    from vrft.evaluate.bootstrap import COCO_FIGURES, class_samples, coco_matches, draw_counts
    from vrft.evaluate.coco import as_coco, asked_boxes, evaluate_boxes, official_figures
    from vrft.evaluate.score import answered_boxes

    ground_truth, detections = as_coco(rows, asked_boxes(rows, list(map(answered_boxes, scored)), asked=asked))
    evaluator = evaluate_boxes(ground_truth, detections)
    matches = coco_matches(evaluator)
    once = np.ones((1, matches.n_images))
    counts = np.concatenate([once, draw_counts(matches.n_images, n_resamples=n_resamples)])
    n_classes = len(ground_truth["categories"])
    return _Evaluated(
        names=[category["name"] for category in ground_truth["categories"]],
        recall=np.asarray(evaluator.params.recThrs),
        precision=evaluator.eval["precision"][:, :, :, 0, -1],
        figures=official_figures(evaluator),
        samples=class_samples(matches, counts, {name: COCO_FIGURES[name] for name in ("AP", *SIZES)}),
        n_gold=np.stack([one.n_gold.sum(axis=1) for one in matches.classes], axis=1),
        n_images=np.array([np.count_nonzero(one.n_gold[0]) for one in matches.classes]),
        n_found=np.bincount([one["category_id"] - 1 for one in detections], minlength=n_classes),
    )


def _class_lines(sides: Sequence[_Evaluated], asked: Mapping[str, str]) -> list[ClassLine]:
    from vrft.evaluate.bootstrap import percentile_interval

    lines, last = [], sides[-1]
    for k, name in enumerate(last.names):
        if not last.n_gold[0, k]:
            continue
        samples = [side.samples["AP"][side.names.index(name)] for side in sides]
        intervals = [percentile_interval(one[1:]) if last.n_images[k] > 1 else None for one in samples]
        values = [float(one[0]) for one in samples]
        lines.append(ClassLine(asked.get(name, name), int(last.n_gold[0, k]), int(last.n_images[k]), values, intervals))
    return lines


def _absent_classes(rows: Sequence[Row], sides: Sequence[_Evaluated]) -> list[AbsentClass]:
    """Classes that were asked for or predicted, but have no gold box; those asked for come first."""
    from vrft.evaluate.coco import asked_names

    asked = asked_names(rows)
    n_found: dict[str, list[int]] = {name: [0] * len(sides) for name in asked}
    has_gold = set()
    for s, side in enumerate(sides):
        for k, name in enumerate(side.names):
            n_found.setdefault(name, [0] * len(sides))[s] = int(side.n_found[k])
            if side.n_gold[0, k]:
                has_gold.add(name)
    absent = [AbsentClass(asked.get(name, name), n, name in asked) for name, n in n_found.items()]
    kept = [one for one in absent if normal_name(one.name) not in has_gold]
    return sorted(kept, key=lambda one: (not one.was_asked, one.name))


def _size_panel(
    run: RunFiles, split: str, kinds: Sequence[str], titles: Sequence[str], sides: Sequence[_Evaluated], name: str
) -> Panel:
    from vrft.evaluate.bootstrap import COCO_FIGURES, mean_samples, percentile_interval

    n_gold = int(sides[-1].n_gold[1 + list(SIZES).index(name)].sum())
    means = [mean_samples(side.samples, {name: COCO_FIGURES[name]})[name] for side in sides]
    lines = []
    for kind, title, mean in zip(kinds, titles, means, strict=True):
        change = None
        if kind != kinds[0]:
            gain = mean - means[0]
            change = {"value": float(gain[0]), "n": n_gold, "interval": percentile_interval(gain[1:])}
        lines.append(Line(title, run, kind, float(mean[0]), n_gold, percentile_interval(mean[1:]), change))
    return Panel(split, SIZES[name], "AP by object size", lines if n_gold else [])


def _mean_curves(titles: Sequence[str], sides: Sequence[_Evaluated], name: str) -> Chart:
    """Precision over recall, averaged over classes with gold. The mean of a curve is the official figure."""
    thresholds = {"AP50": slice(0, 1), "AP75": slice(5, 6), "AP": slice(None)}[name]
    curves = []
    for title, side in zip(titles, sides, strict=True):
        has_gold = side.precision[0, 0] > -1
        curves.append((title, side.precision[thresholds][:, :, has_gold].mean(axis=(0, 2))))
    values = ", ".join(f"{side.figures[name]:.3f} {title.lower()}" for title, side in zip(titles, sides, strict=True))
    return precision_recall_chart(_SUMMARIES[name], f"mean over classes; {name} {values}", sides[0].recall, curves)


def _class_curve(titles: Sequence[str], sides: Sequence[_Evaluated], line: ClassLine) -> Chart:
    curves = [
        (title, side.precision[0, :, side.names.index(normal_name(line.name))])
        for title, side in zip(titles, sides, strict=True)
    ]
    values = ", ".join(f"{curve.mean():.3f} {title.lower()}" for title, curve in curves)
    note = f"{line.n_gold} gold boxes; AP50 {values}"
    return precision_recall_chart(line.name, note, sides[0].recall, curves)


def _with_most_gold(lines: Sequence[ClassLine]) -> list[ClassLine]:
    return sorted(lines, key=lambda line: -line.n_gold)[:_MOST_CLASS_CURVES] if len(lines) > 1 else []
