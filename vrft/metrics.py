"""Means with their n and a bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def mean_with_interval(values: Sequence[float], *, n_resamples: int = 1000, seed: int = 0) -> dict:
    """`{"value", "n", "interval"}`: the mean, how many values it has, and its 95 % percentile bootstrap interval.

    Rows are resampled with replacement (Efron 1979). The value of no rows is None.

    >>> mean_with_interval([1.0, 1.0, 1.0])
    {'value': 1.0, 'n': 3, 'interval': [1.0, 1.0]}
    """
    values = np.asarray(values, float)
    if not len(values):
        return {"value": None, "n": 0, "interval": None}
    interval = bootstrap_interval(lambda rows: values[rows].mean(), len(values), n_resamples=n_resamples, seed=seed)
    return {"value": float(values.mean()), "n": len(values), "interval": interval}


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], n_rows: int, *, n_resamples: int = 1000, seed: int = 0
) -> list[float]:
    """The 2.5 % and 97.5 % percentiles of `statistic(row_indices)` over resamples of `n_rows` rows, as [low, high]."""
    generator = np.random.default_rng(seed)
    resamples = (generator.integers(n_rows, size=n_rows) for _ in range(n_resamples))
    low, high = np.nanpercentile([statistic(rows) for rows in resamples], [2.5, 97.5])
    return [float(low), float(high)]
