"""Arrivals follow the distribution that the options name, and come at the rate that was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from serving.bench.arrivals import arrival_times

COUNT = 20_000


def gaps(burstiness: float, rate: float = 5.0) -> np.ndarray:
    return np.diff(arrival_times(COUNT, rate, burstiness, np.random.default_rng(7)), prepend=0.0)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_are_gammas_of_the_shape(burstiness):
    """A gamma distribution of shape k has the variation 1/sqrt(k), and the share of gaps below the mean P(k, k)."""
    found = gaps(burstiness)
    assert found.min() >= 0
    assert found.mean() == pytest.approx(1 / 5)
    assert found.std() / found.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)
    reference = np.random.default_rng(0).gamma(burstiness, 1 / (5 * burstiness), COUNT)
    wanted = [5, 25, 50, 75, 95]
    np.testing.assert_allclose(np.percentile(found, wanted), np.percentile(reference, wanted), rtol=0.12)


def test_a_poisson_process_has_as_much_variance_as_mean():
    """Requests in windows of a second are Poisson distributed."""
    times = arrival_times(COUNT, 5.0, 1.0, np.random.default_rng(3))
    counts, _ = np.histogram(times, bins=int(times[-1]), range=(0, int(times[-1])))
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.06)
    bursty = arrival_times(COUNT, 5.0, 0.25, np.random.default_rng(3))
    clumped, _ = np.histogram(bursty, bins=int(bursty[-1]), range=(0, int(bursty[-1])))
    assert clumped.var() / clumped.mean() > 2.5


def test_the_rate_is_exact_with_few_requests():
    for seed in range(5):
        assert arrival_times(7, 3.5, 1.0, np.random.default_rng(seed))[-1] == pytest.approx(2.0)


def test_infinities():
    rng = np.random.default_rng(0)
    assert arrival_times(4, math.inf, 1.0, rng).tolist() == [0, 0, 0, 0]
    assert arrival_times(4, 2.0, math.inf, rng).tolist() == [0.5, 1.0, 1.5, 2.0]


def test_the_seed_settles_everything():
    first, same, other = (arrival_times(9, 2.0, 0.5, np.random.default_rng(seed)).tolist() for seed in (1, 1, 2))
    assert first == same != other


@pytest.mark.parametrize(
    ("count", "rate", "burstiness"), [(0, 1, 1), (1, 0, 1), (1, -1, 1), (1, 1, 0), (1, math.nan, 1)]
)
def test_what_cannot_be_is_refused(count, rate, burstiness):
    with pytest.raises(ValueError, match=r"above 0|at least 1"):
        arrival_times(count, rate, burstiness, np.random.default_rng(0))
