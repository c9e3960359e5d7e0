"""top-k, top-p and min-p against sorting, and the sums that they and the draw stand on."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.runtime import thresholds
from jaxinfer.runtime.sampling import kept_tokens
from jaxinfer.runtime.thresholds import TopKTopP, fixed_point_scale, integer_weights, keys_of
from tests.jaxinfer.runtime import sampling_oracle as oracle

# Below, and above, the size from which the search starts on a short list of blocks.
WIDTHS = (384, 20480)


def some_weights(vocab: int) -> np.ndarray:
    """(8, V): peaked, wide, tied, flat, nearly flat, one token only, mostly zeros, and a peak beyond a wide tail."""
    rng = np.random.default_rng(vocab)
    rows = [
        rng.normal(size=vocab) * 4,
        rng.normal(size=vocab),
        np.round(rng.normal(size=vocab) * 4) / 2,
        np.zeros(vocab),
        rng.normal(size=vocab) * 1e-3,
        np.where(np.arange(vocab) == 7, 0.0, -np.inf),
        np.where(rng.random(vocab) < 0.01, rng.normal(size=vocab), -np.inf),
        np.where(np.arange(vocab) == vocab - 1, 12.0, rng.normal(size=vocab) * 0.1),
    ]
    logits = np.stack(rows)
    return np.exp(logits - logits.max(axis=1, keepdims=True)).astype(np.float32)


@jax.jit
def use_top_k(weights: jax.Array, k: jax.Array, on: jax.Array) -> jax.Array:
    return TopKTopP(weights, jnp.any(on)).top_k(k, on)


@jax.jit
def use_top_p(weights: jax.Array, p: jax.Array, low: jax.Array, on: jax.Array) -> jax.Array:
    return TopKTopP(weights, jnp.any(on)).top_p(p, fixed_point_scale(weights, low), low, on)


@pytest.mark.parametrize("vocab", WIDTHS)
@pytest.mark.parametrize("k", [1, 2, 50, 127, 128, 129, 300, "half", "all but one", "all"])
def test_top_k_is_the_sorted_one_to_the_last_bit(vocab: int, k: int | str) -> None:
    weights = some_weights(vocab)
    count = {"half": vocab // 2, "all but one": vocab - 1, "all": vocab}.get(k, k)
    expected = -np.sort(-weights.view(np.int32), axis=1)[:, count - 1]
    rows = len(weights)
    found = use_top_k(weights, np.full(rows, count, np.int32), np.ones(rows, bool))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("vocab", WIDTHS)
def test_top_k_differs_by_row_and_leaves_others_alone(vocab: int) -> None:
    weights = some_weights(vocab)
    k = np.array([1, 3, 100, 1000, 200, 2, 5, 300], np.int32) % vocab
    on = np.array([1, 0, 1, 1, 1, 1, 0, 1], bool)
    expected = np.where(on, -np.sort(-weights.view(np.int32), axis=1)[np.arange(8), k - 1], 0)
    np.testing.assert_array_equal(use_top_k(weights, k, on), expected)


def sorted_top_p(weights: np.ndarray, weight: np.ndarray, p: float) -> int:
    """The threshold of one row by sorting, in exact integers."""
    target = int(np.float32(p) * 2**32) * int(weight.sum()) >> 32
    keys = weights.view(np.int32)
    order = np.argsort(-keys, kind="stable")
    upto = np.cumsum(weight[order].astype(np.int64))
    return int(keys[order[np.argmax(upto >= target)]])  # the key that reaches it; ties share the key


@pytest.mark.parametrize("vocab", WIDTHS)
@pytest.mark.parametrize("p", [0.0, 1e-6, 0.1, 0.5, 0.9, 0.99, 0.9999999])
@pytest.mark.parametrize("k", [0, 40])
def test_top_p_is_the_sorted_one_to_the_last_bit(vocab: int, p: float, k: int) -> None:
    weights = some_weights(vocab)
    rows = len(weights)
    low = -np.sort(-weights.view(np.int32), axis=1)[:, k - 1] if k else np.zeros(rows, np.int32)
    scale = jax.jit(fixed_point_scale)(weights, low)
    weight = np.asarray(jax.jit(integer_weights)(weights, scale, low))
    expected = [sorted_top_p(o, w, p) for o, w in zip(weights, weight, strict=True)]
    found = use_top_p(weights, np.full(rows, p, np.float32), low, np.ones(rows, bool))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("vocab", [WIDTHS[0], pytest.param(WIDTHS[1], marks=pytest.mark.longer)])
def test_a_search_without_loops_finds_the_same(vocab: int) -> None:
    weights = some_weights(vocab)
    rows = len(weights)
    k = np.array([1, 2, 50, vocab // 2, vocab - 1, 128, 300, vocab], np.int32)
    p = np.array([0.0, 1e-6, 0.1, 0.5, 0.9, 0.99, 0.9999999, 0.7], np.float32)

    @partial(jax.jit, static_argnums=1)
    def both(on: jax.Array, loops: bool) -> tuple[jax.Array, jax.Array]:
        search = TopKTopP(weights, jnp.any(on), loops)
        low = search.top_k(k, on)
        return low, search.top_p(p, fixed_point_scale(weights, low), low, on)

    for on in (np.ones(rows, bool), np.arange(rows) % 3 > 0):
        with_loops, without = (both(on, loops) for loops in (True, False))
        np.testing.assert_array_equal(without, with_loops)


@pytest.mark.parametrize("vocab", WIDTHS)
def test_weights_are_the_probabilities(vocab: int) -> None:
    weights = some_weights(vocab)
    none = np.zeros(len(weights), np.int32)
    found = np.asarray(jax.jit(lambda o: integer_weights(o, fixed_point_scale(o, none), none))(weights))
    exact = weights.astype(np.float64) / weights.sum(axis=1, keepdims=True, dtype=np.float64)
    # Half a unit of 2^-30 from rounding, and a few parts in 10^7 from the float32 sum, quotient and product.
    np.testing.assert_allclose(found / 2**30, exact, rtol=5e-7, atol=2**-31)
    assert found.sum(axis=1, dtype=np.int64).max() < 2**31
    assert (found[weights == 1] > 0).all()


SETTINGS = [  # temperature, top_k, top_p, min_p
    (1.0, 0, 1.0, 0.0),
    (1.0, 5, 1.0, 0.0),
    (1.0, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.1),
    (0.5, 20, 0.9, 0.0),
    (2.0, 20, 0.9, 0.2),
    (1.3, 0, 0.95, 0.01),
    (0.7, 100, 0.3, 0.0),
    (0.01, 3, 0.999, 0.0),
    (50.0, 200, 0.5, 0.9),
    (1.0, 1, 0.01, 1.0),
    (1.0, 10_000, 0.97, 0.0),
]


@pytest.mark.parametrize("kind", ["random", "ties", "banned", "huge"])
def test_survivors_are_those_of_the_sorting_oracle(kind: str) -> None:
    rng = np.random.default_rng(5)
    logits = (rng.normal(size=(len(SETTINGS), 384)) * 5).astype(np.float32)
    if kind == "ties":
        logits = np.round(logits * 2) / 2
    if kind == "banned":
        logits[rng.random(logits.shape) < 0.9] = -np.inf
        logits[:, 3] = 0.0
    if kind == "huge":
        logits[:, :40] *= 1e36
    columns = np.array(SETTINGS).T
    rows = oracle.params(len(SETTINGS), temperature=columns[0], top_k=columns[1], top_p=columns[2], min_p=columns[3])
    weights, scale, threshold = jax.jit(kept_tokens)(*oracle.adjusted_on_device(logits), rows)
    weight = np.asarray(integer_weights(weights, scale, threshold))
    for row, found, (temperature, top_k, top_p, min_p) in zip(logits.astype(np.float64), weight, SETTINGS, strict=True):
        keep = oracle.kept(row, temperature, top_k, top_p, min_p)
        probs = oracle.shares(row, temperature)
        exact = np.where(keep, probs, 0) / probs[keep].sum()
        likely = exact > 2**-29  # less rounds to few units of 2^-30, or none
        np.testing.assert_array_equal(found[likely] > 0, True)
        np.testing.assert_array_equal(found[~keep], 0)
        if top_p == 1:  # the scale is made for the kept tokens, so that they share all the bits
            # 384 roundings of at most half a unit, and of the scale itself by 2^-24 or two.
            assert abs(int(found.sum(dtype=np.int64)) - 2**30) < 400
        # float32 exponentials of arguments up to 87 carry a relative error of about 87 * 2^-24 = 5e-6.
        np.testing.assert_allclose(found / found.sum(dtype=np.int64), exact, rtol=1e-5, atol=2**-30)


def test_multiply_high() -> None:
    rng = np.random.default_rng(1)
    edges = np.array([0, 1, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFF0000, 0xFFFFFFFF], np.uint64)
    a = np.concatenate([np.repeat(edges, 8), rng.integers(0, 2**32, 5000, np.uint64)])
    b = np.concatenate([np.tile(edges, 8), rng.integers(0, 2**32, 5000, np.uint64)])
    found = thresholds.multiply_high(jnp.asarray(a.astype(np.uint32)), jnp.asarray(b.astype(np.uint32)))
    np.testing.assert_array_equal(found, ((a * b) >> np.uint64(32)).astype(np.uint32))


@pytest.mark.parametrize("width", [1, 7, 8, 9, 65, 1000, 20480])
def test_pairwise_sum(width: int) -> None:
    values = np.random.default_rng(2).random((5, width)).astype(np.float32)
    found = jax.jit(thresholds.pairwise_sum)(values)
    # Rounding grows with the tree's depth, at most 3 * 5 levels of half an ulp here.
    np.testing.assert_allclose(found, values.sum(axis=1, dtype=np.float64), rtol=15 * 2**-24)


def test_first_of() -> None:
    values = np.random.default_rng(3).integers(0, 50, (6, 384)).astype(np.float32)
    values[0], values[1, :-1] = 1.0, -np.inf
    found = jax.jit(thresholds.first_of)(values, values.max(axis=1))
    np.testing.assert_array_equal(found, values.argmax(axis=1))


def test_keys_keep_the_order() -> None:
    values = np.sort(np.random.default_rng(4).random(1000).astype(np.float32))
    assert (np.diff(np.asarray(keys_of(jnp.asarray(values))).astype(np.int64)) >= 0).all()
    assert int(keys_of(jnp.float32(0))) == 0
