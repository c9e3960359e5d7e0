"""Intervals, bootstrap, baselines, perplexity and KL against known values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxinfer.evaluation.statistics import (
    coarse_kl,
    kl_divergence,
    majority,
    paired_bootstrap,
    perplexity,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # Published examples of the score interval at 95 %: Newcombe 1998, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(right: int, n: int, low: float, high: float) -> None:
    found = wilson(right, n)
    assert found.share == right / n
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_wilson_at_the_ends() -> None:
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0
    mirrored = wilson(10, 10)
    assert (round(1 - mirrored.high, 12), round(1 - mirrored.low, 12)) == (0.0, round(wilson(0, 10).high, 12))
    nothing = wilson(0, 0)
    assert math.isnan(nothing.share)
    assert (nothing.low, nothing.high) == (0.0, 1.0)


@pytest.mark.parametrize(("right", "n"), [(-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(right: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"right is {right}"):
        wilson(right, n)


def test_bootstrap_finds_the_interval_of_the_difference() -> None:
    """300 items of which B alone gets 40 and A alone 10: the normal approximation is good enough to compare with."""
    a = [True] * 200 + [True] * 10 + [False] * 40 + [False] * 50
    b = [True] * 200 + [False] * 10 + [True] * 40 + [False] * 50
    found = paired_bootstrap(a, b, seed=1)
    error = math.sqrt((50 / 300 - 0.1**2) / 300)
    assert (found.n, found.difference) == (300, pytest.approx(0.1))
    # A resampled quantile of 10,000 draws is good to about 1/50 of the error; the counts are whole numbers (1/300).
    assert found.low == pytest.approx(0.1 - 1.96 * error, abs=0.005)
    assert found.high == pytest.approx(0.1 + 1.96 * error, abs=0.005)


def test_bootstrap_pairs_the_items() -> None:
    """Two sides that agree on every item cannot differ, however uncertain each accuracy is."""
    rights = list(np.random.default_rng(0).random(50) < 0.5)
    same = paired_bootstrap(rights, rights)
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
    other = paired_bootstrap(rights, [not right for right in rights])
    assert other.low < other.difference < other.high


def test_bootstrap_repeats_with_its_seed() -> None:
    rng = np.random.default_rng(2)
    a, b = list(rng.random(80) < 0.6), list(rng.random(80) < 0.7)
    assert paired_bootstrap(a, b, seed=5) == paired_bootstrap(a, b, seed=5)
    assert paired_bootstrap(a, b, seed=5, resamples=20) != paired_bootstrap(a, b, seed=6, resamples=20)
    assert paired_bootstrap(a, b, seed=5).difference == -paired_bootstrap(b, a, seed=5).difference


def test_bootstrap_refuses_what_is_not_paired() -> None:
    with pytest.raises(ValueError, match="a has 1 items and b has 2"):
        paired_bootstrap([True], [True, False])
    with pytest.raises(ValueError, match="no items"):
        paired_bootstrap([], [])
    with pytest.raises(ValueError, match="confidence is 1"):
        paired_bootstrap([True], [True], confidence=1)


def test_majority() -> None:
    assert majority(["b", "a", "b", "c"]) == ("b", 0.5)
    assert majority(["b", "a"]) == ("a", 0.5)
    answer, share = majority([])
    assert answer is None
    assert math.isnan(share)


def test_perplexity_of_a_fair_coin() -> None:
    found = perplexity(100 * math.log(0.5), tokens=100, num_bytes=400)
    assert found.per_token == pytest.approx(2.0)
    assert found.bits_per_byte == pytest.approx(0.25)
    with pytest.raises(ValueError, match="0 tokens"):
        perplexity(0.0, 0, 0)


def test_kl_of_known_distributions() -> None:
    p = np.log([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
    with np.errstate(divide="ignore"):
        q = np.log([[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]])
        certain = np.log([[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(kl_divergence(p, q)[0], 0.25 * math.log(2))
    assert kl_divergence(p, q)[1] == np.inf
    np.testing.assert_array_equal(kl_divergence(p, p), [0.0, 0.0])
    np.testing.assert_allclose(kl_divergence(certain, p[:1]), [math.log(4)])
    with pytest.raises(ValueError, match="shapes are"):
        kl_divergence(p, q[:1])


def test_coarse_kl_is_a_lower_bound_that_becomes_exact() -> None:
    rng = np.random.default_rng(3)
    p, q = (np.log(rng.dirichlet(np.full(40, 0.5), size=6)) for _ in range(2))
    exact = kl_divergence(p, q)

    def top(table: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(-table, axis=1)[:, :count]
        return order, np.take_along_axis(table, order, axis=1)

    few, more, whole = (coarse_kl(*top(p, n), *top(q, n), 40) for n in (5, 25, 40))
    assert (few <= exact + 1e-9).all()
    assert (more <= exact + 1e-9).all()
    assert more.mean() > few.mean() > 0
    np.testing.assert_allclose(whole, exact, rtol=1e-12)
