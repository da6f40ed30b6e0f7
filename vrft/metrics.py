"""Means with their n and a bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_DRAWS_AT_ONCE = 4_000_000  # row indices held in memory: 32 MB


def mean_with_interval(values: Sequence[float], *, n_resamples: int = 1000, seed: int = 0) -> dict:
    """`{"value", "n", "interval"}`: the mean, how many values it has, and its 95 % percentile bootstrap interval.

    Rows are resampled with replacement (Efron 1979). The value of no rows is None.

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
