"""Bootstrap samples of AP and AR over images, from matches that the official evaluator makes once.

A resample only accumulates the matches again, for all resamples of a class at a time. The resample with every image
once gives the official figure. COCO and LVIS differ in how they match and ignore boxes, not in how they accumulate.

Legend: `A` areas, `T` IoU thresholds, `R` resamples, `I` images, `K` classes. For one class: `M` images with it, `D`
detections by falling score, `P` true positives among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_N_NUMBERS_AT_ONCE = 4_000_000  # size of a temporary array: 32 MB


@dataclass(frozen=True)
class Figure:
    """The definition of an official figure. It is a mean over the classes with gold.

    kind: `precision` (interpolated, the mean over the recall thresholds) or `recall`.
    area: the size group of the boxes that count. iou: one IoU threshold; None: the mean over all thresholds.
    most: maximum number of detections per image and class, the most confident first; None: all that were matched.
    frequency: the LVIS group of the classes; None: all classes.
    """

    kind: str
    area: str = "all"
    iou: float | None = None
    most: int | None = None
    frequency: str | None = None


_PRECISIONS = {
    "AP": Figure("precision"),
    "AP50": Figure("precision", iou=0.5),
    "AP75": Figure("precision", iou=0.75),
    **{f"AP{area[0]}": Figure("precision", area) for area in ("small", "medium", "large")},
}

COCO_FIGURES = {
    **_PRECISIONS,
    "AR1": Figure("recall", most=1),
    "AR10": Figure("recall", most=10),
    "AR100": Figure("recall"),
    **{f"AR{area[0]}": Figure("recall", area) for area in ("small", "medium", "large")},
}
"""The twelve figures of `COCOeval.summarize`, in its order."""

LVIS_FIGURES = {
    **_PRECISIONS,
    **{f"AP{letter}": Figure("precision", frequency=letter) for letter in "rcf"},
    "AR@300": Figure("recall"),
    **{f"AR{area[0]}@300": Figure("recall", area) for area in ("small", "medium", "large")},
}
"""The thirteen figures of `LVISEval.get_results`, in its order."""


@dataclass(frozen=True)
class ClassMatches:
    """The official matches of one class.

    images: (M,) indexes of the images with a gold box or a detection of the class.
    image: (D,) position in `images` of each detection's image. rank: (D,) rank of a detection in its image, from 0.
    is_true, is_false: (A, T, D) True for a true or a false positive; both are False for an ignored detection.
    n_gold: (A, M) number of gold boxes that count.
    """

    images: np.ndarray
    image: np.ndarray
    rank: np.ndarray
    is_true: np.ndarray
    is_false: np.ndarray
    n_gold: np.ndarray


@dataclass(frozen=True)
class Matches:
    """The official matches of all classes, and the axes of the figures."""

    classes: list[ClassMatches]
    n_images: int
    areas: Sequence[str]
    iou_thresholds: np.ndarray
    recall_thresholds: np.ndarray


def coco_matches(evaluator) -> Matches:
    """The matches of a `pycocotools` COCOeval after its `evaluate`."""
    parameters = evaluator.params
    keys = ("dtScores", "dtMatches", "dtIgnore", "gtIgnore")
    n_images, areas = len(parameters.imgIds), parameters.areaRngLbl
    classes = _matches_by_class(evaluator.evalImgs, keys, len(parameters.catIds), len(areas), n_images)
    return Matches(classes, n_images, areas, np.asarray(parameters.iouThrs), np.asarray(parameters.recThrs))


def lvis_matches(evaluator) -> Matches:
    """The matches of an `lvis` LVISEval after its `evaluate`."""
    parameters = evaluator.params
    keys = ("dt_scores", "dt_matches", "dt_ignore", "gt_ignore")
    n_images, areas = len(parameters.img_ids), parameters.area_rng_lbl
    classes = _matches_by_class(evaluator.eval_imgs, keys, len(parameters.cat_ids), len(areas), n_images)
    return Matches(classes, n_images, areas, np.asarray(parameters.iou_thrs), np.asarray(parameters.rec_thrs))


def draw_counts(n_images: int, *, n_resamples: int, seed: int = 0) -> np.ndarray:
    """(n_resamples, n_images): how often each image occurs when `n_images` are drawn with replacement."""
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(n_images, size=n_images) for _ in range(n_resamples)]
    return np.array([np.bincount(images, minlength=n_images) for images in drawn], float).reshape(-1, n_images)


def class_samples(matches: Matches, counts: np.ndarray, figures: Mapping[str, Figure]) -> dict[str, np.ndarray]:
    """Each figure of each class, (K, R), for images that occur `counts` (R, I) times; NaN without gold.

    Copies of an image are ranked next to each other. Figures of a frequency group are left out: they are means of
    other figures.
    """
    figures = {name: figure for name, figure in figures.items() if figure.frequency is None}
    samples = {name: np.full((len(matches.classes), len(counts)), np.nan) for name in figures}
    for k, one in enumerate(matches.classes):
        if not one.n_gold.any():
            continue
        n_at_once = max(1, _N_NUMBERS_AT_ONCE // max(1, len(one.image), len(one.images)))
        for start in range(0, len(counts), n_at_once):
            part = slice(start, start + n_at_once)
            for name, values in _class_figures(one, counts[part, one.images], matches, figures).items():
                samples[name][k, part] = values
    return samples


def mean_samples(
    samples: Mapping[str, np.ndarray], figures: Mapping[str, Figure], frequencies: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Each figure, (R,): the mean of `class_samples` over the classes with gold; NaN if no class has gold.

    frequencies: the LVIS group of each class.
    """
    groups = np.asarray(frequencies)
    return {
        name: _mean_of_known(samples["AP"][groups == figure.frequency] if figure.frequency else samples[name])
        for name, figure in figures.items()
    }


def percentile_interval(samples: np.ndarray) -> list[float] | None:
    """The 95 % percentile interval of bootstrap values, or None without values."""
    samples = samples[~np.isnan(samples)]
    return [float(bound) for bound in np.percentile(samples, [2.5, 97.5])] if len(samples) else None


def _matches_by_class(
    entries: Sequence, keys: tuple[str, ...], n_classes: int, n_areas: int, n_images: int
) -> list[ClassMatches]:
    """entries: the evaluator's list by class, then area, then image; None for an image without the class."""
    matches = []
    for k in range(n_classes):
        first = k * n_areas * n_images
        images = [i for i in range(n_images) if entries[first + i] is not None]
        by_area = [[entries[first + a * n_images + i] for i in images] for a in range(n_areas)]
        matches.append(_merge_images(images, by_area, keys))
    return matches


def _merge_images(images: list[int], by_area: list[list[dict]], keys: tuple[str, ...]) -> ClassMatches:
    scores_key, matches_key, ignored_key, gold_key = keys
    if not images:
        none = np.zeros(0, int)
        return ClassMatches(none, none, none, *[np.zeros((len(by_area), 1, 0), bool)] * 2, np.zeros((len(by_area), 0)))
    scores = [np.asarray(entry[scores_key], float) for entry in by_area[0]]
    order = np.argsort(-np.concatenate(scores), kind="mergesort")  # stable, as in the official code

    def merged(key: str) -> np.ndarray:
        return np.stack([np.concatenate([e[key] for e in area], axis=1)[:, order] > 0 for area in by_area])

    matched, ignored = merged(matches_key), merged(ignored_key)
    n_gold = [[np.count_nonzero(np.asarray(entry[gold_key]) == 0) for entry in area] for area in by_area]
    return ClassMatches(
        np.asarray(images),
        np.concatenate([np.full(len(own), m) for m, own in enumerate(scores)]).astype(int)[order],
        np.concatenate([np.arange(len(own)) for own in scores]).astype(int)[order],
        matched & ~ignored,
        ~matched & ~ignored,
        np.array(n_gold, float),
    )


def _class_figures(
    one: ClassMatches, counts: np.ndarray, matches: Matches, figures: Mapping[str, Figure]
) -> dict[str, np.ndarray]:
    """Each figure of one class, (R,), for its images in `counts` (R, M)."""
    weights = counts[:, one.image]  # (R, D)
    precisions: dict[int, np.ndarray] = {}
    values = {}
    for name, figure in figures.items():
        a = list(matches.areas).index(figure.area)
        n_gold = counts @ one.n_gold[a]
        if figure.kind == "recall":
            is_counted = one.rank < (len(one.rank) if figure.most is None else figure.most)
            table = weights[:, is_counted] @ one.is_true[a][:, is_counted].T / np.maximum(n_gold, 1)[:, None]
        else:
            if a not in precisions:
                precisions[a] = _precision(one.is_true[a], one.is_false[a], weights, n_gold, matches.recall_thresholds)
            table = precisions[a]
        if figure.iou is not None:
            table = table[:, np.isclose(matches.iou_thresholds, figure.iou)]
        values[name] = np.where(n_gold > 0, table.mean(axis=1), np.nan)
    return values


def _precision(
    is_true: np.ndarray, is_false: np.ndarray, weights: np.ndarray, n_gold: np.ndarray, recall_thresholds: np.ndarray
) -> np.ndarray:
    """Interpolated precision (mean over recall thresholds) of one class and area, (R, T).

    Precision falls between true positives, so the official staircase needs only the points at true positives. Each
    point serves the recall thresholds between the previous true positive and itself.
    """
    precision = np.zeros((len(weights), len(is_true)))
    for t, (true, false) in enumerate(zip(is_true, is_false, strict=True)):
        if not true.any():
            continue
        counted = np.flatnonzero(true | false)
        counted = counted[: np.searchsorted(counted, np.flatnonzero(true)[-1], side="right")]
        n_true = np.cumsum(weights[:, true], axis=1)  # (R, P)
        n_found = np.cumsum(weights[:, counted], axis=1)[:, true[counted]]
        heights = n_true / (n_found + np.spacing(1))
        heights = np.maximum.accumulate(heights[:, ::-1], axis=1)[:, ::-1]
        n_reached = np.searchsorted(recall_thresholds, n_true / np.maximum(n_gold, 1)[:, None], side="right")
        n_served = np.diff(n_reached, axis=1, prepend=0)
        precision[:, t] = (heights * n_served).sum(axis=1) / len(recall_thresholds)
    return precision


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    is_known = ~np.isnan(values)
    n_known = is_known.sum(axis=0)
    total = np.where(is_known, values, 0.0).sum(axis=0)
    return np.divide(total, n_known, out=np.full(total.shape, np.nan), where=n_known > 0)


_DRAWS_AT_ONCE = 4_000_000  # row indices in memory: 32 MB


def mean_with_interval(values: Sequence[float], *, n_resamples: int = 1000, seed: int = 0) -> dict:
    """`{"value", "n", "interval"}`: the mean, the number of values, and the 95 % percentile bootstrap interval.

    Rows are resampled with replacement (Efron 1979). Without rows, value and interval are None.

    >>> mean_with_interval([1.0, 1.0, 1.0])
    {'value': 1.0, 'n': 3, 'interval': [1.0, 1.0]}
    """
    values = np.asarray(values, float)
    if not len(values):
        return {"value": None, "n": 0, "interval": None}
    generator = np.random.default_rng(seed)
    means: list[float] = []
    while len(means) < n_resamples:
        n_more = min(n_resamples - len(means), max(1, _DRAWS_AT_ONCE // len(values)))
        means.extend(values[generator.integers(len(values), size=(n_more, len(values)))].mean(axis=1))
    low, high = np.percentile(means, [2.5, 97.5])
    return {"value": float(values.mean()), "n": len(values), "interval": [float(low), float(high)]}
