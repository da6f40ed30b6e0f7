"""Means and their intervals."""

import numpy as np
import pytest

from vrft.evaluate import bootstrap
from vrft.evaluate.bootstrap import mean_with_interval


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([1, 1, 0, 0], 0.5),
        ([0.25], 0.25),  # one value: an interval of no width
        ([True, False], 0.5),
    ],
)
def test_mean_travels_with_n_and_interval(values, mean):
    result = mean_with_interval(values, n_resamples=200)
    assert result["value"] == mean
    assert result["n"] == len(values)
    assert result["interval"][0] <= mean <= result["interval"][1]
    assert (result["interval"] == [mean, mean]) is (len(values) == 1)


def test_the_mean_of_no_rows_is_none():
    assert mean_with_interval([]) == {"value": None, "n": 0, "interval": None}


def test_the_interval_of_coin_flips_is_that_of_the_normal_approximation():
    low, high = mean_with_interval([0, 1] * 500, n_resamples=2000)["interval"]
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / 1000**0.5, abs=0.004)
    assert high == pytest.approx(0.5 + 1.96 * 0.5 / 1000**0.5, abs=0.004)


def test_the_seed_decides():
    values = np.arange(50)
    assert mean_with_interval(values) == mean_with_interval(values)
    assert mean_with_interval(values) != mean_with_interval(values, seed=1)


def test_many_rows_in_chunks_give_what_one_chunk_gives(monkeypatch):
    values = np.random.default_rng(0).random(400)
    at_once = mean_with_interval(values)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 1000)  # two resamples a chunk
    assert mean_with_interval(values) == at_once
