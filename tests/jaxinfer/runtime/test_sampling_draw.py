"""The random choice: its key, its distribution, and that nobody else in the batch has a say in it."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxinfer.runtime.sampling import SamplingParamsRows, TokenTables, kept_tokens, pick, random_bits
from jaxinfer.runtime.thresholds import integer_weights
from tests.jaxinfer.runtime import sampling_oracle as oracle


def bits(rows: SamplingParamsRows, position: int | np.ndarray = 5) -> np.ndarray:
    count = len(rows.temperature)
    return np.asarray(random_bits(rows, jnp.broadcast_to(jnp.asarray(position, jnp.int32), (count,))))


def test_random_bits_are_the_folded_key() -> None:
    rows = oracle.params(3, seed_low=[1, 2**32 - 1, 7], seed_high=[0, 5, 2**31], sequence_index=[0, 3, 63])
    position = np.array([0, 17, 131071], np.int32)
    expected = []
    for i in range(3):
        key = jax.random.key(0, impl="threefry2x32")
        for word in (rows.seed_low[i], rows.seed_high[i], rows.sequence_index[i], position[i], 0):
            key = jax.random.fold_in(key, np.uint32(word))
        expected.append(int(jax.random.key_data(key)[0]))
    np.testing.assert_array_equal(bits(rows, position), expected)
    np.testing.assert_array_equal(random_bits(rows, jnp.asarray(position), loops=False), expected)


@pytest.mark.parametrize("name", ["seed_low", "seed_high", "sequence_index", "position"])
def test_every_part_of_the_key_counts(name: str) -> None:
    words = np.arange(64)
    found = bits(oracle.params(64), words) if name == "position" else bits(oracle.params(64, **{name: words}))
    assert len(set(found.tolist())) == 64


def test_the_upper_half_of_the_seed_matters() -> None:
    logits = np.zeros((2, 1000), np.float32)
    seeds = 1, 2**32 + 1
    texts = []
    for seed in seeds:
        rows = oracle.params(
            2, temperature=1.0, seed_low=seed & 0xFFFFFFFF, seed_high=seed >> 32, sequence_index=[0, 1]
        )
        texts.append(
            [oracle.sample_rows(logits, rows, position=np.full(2, at, np.int32)).tokens.tolist() for at in range(8)]
        )
    assert texts[0] != texts[1]
    for text in texts:
        first, second = np.array(text).T
        assert (first != second).any()  # n = 2: the two sequences of a request differ


@pytest.mark.parametrize("vocab", [128, pytest.param(20001, marks=pytest.mark.longer)])
def test_the_draw_inverts_the_distribution_in_id_order(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    rows = 32
    settings = dataclasses.replace(
        oracle.random_params(rng, rows),
        temperature=rng.uniform(0.3, 3.0, rows).astype(np.float32),
        has_penalties=np.zeros(rows, bool),
        has_bias=np.zeros(rows, bool),
        min_tokens=np.zeros(rows, np.int32),
    )
    logits = (rng.normal(size=(rows, vocab)) * 3).astype(np.float32)
    padded = np.pad(logits, ((0, 0), (0, -vocab % 128)), constant_values=-np.inf)
    weight = np.asarray(integer_weights(*jax.jit(kept_tokens)(*oracle.adjusted_on_device(padded), settings))).astype(
        np.int64
    )
    drawn = (bits(settings, 9).astype(np.int64) * weight.sum(axis=1)) >> 32
    expected = [np.searchsorted(np.cumsum(w), d, side="right") for w, d in zip(weight, drawn, strict=True)]
    np.testing.assert_array_equal(oracle.sample_rows(logits, settings).tokens, expected)


def test_the_ends_of_the_unit_interval_hit_tokens_with_weight() -> None:
    weights = np.zeros((4, 256), np.float32)
    weights[0, [5, 200]] = 1, 1e-9  # the second one's weight rounds to 1
    weights[1, [0, 255]] = 0.5, 1
    weights[2, 130] = 1
    weights[3, [126, 127, 128]] = 1, 0.3, 0.7
    scale = 2.0**30 / weights.sum(axis=1)
    threshold = np.zeros(4, np.int32)
    low = pick(weights, scale, threshold, np.zeros(4, np.uint32))
    high = pick(weights, scale, threshold, np.full(4, 2**32 - 1, np.uint32))
    np.testing.assert_array_equal(low, [5, 0, 130, 126])
    np.testing.assert_array_equal(high, [200, 255, 130, 128])


def test_only_tokens_with_weight_are_ever_drawn() -> None:
    rng = np.random.default_rng(11)
    weight = np.where(rng.random((64, 384)) < 0.02, rng.integers(1, 3, (64, 384)), 0).astype(np.float32)
    weight[:, 100] = 2
    for word in rng.integers(0, 2**32, 20, np.uint64).astype(np.uint32):
        tokens = np.asarray(
            pick(weight / 2, np.full(64, 2.0, np.float32), np.zeros(64, np.int32), np.full(64, word, np.uint32))
        )
        assert (weight[np.arange(64), tokens] > 0).all()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"), [(1.0, 0, 1.0, 0.0), (0.7, 12, 0.9, 0.0), (1.5, 0, 0.8, 0.1)]
)
def test_the_distribution_by_chi_square(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    vocab, rows, calls = 40, 256, 60
    row = np.random.default_rng(21).normal(size=vocab).astype(np.float32) * 1.5
    logits = np.tile(row, (rows, 1))
    exact = row.astype(np.float64)
    keep = oracle.kept(exact, temperature, top_k, top_p, min_p)
    expected = np.where(keep, oracle.shares(exact, temperature), 0)
    expected *= rows * calls / expected.sum()
    settings = oracle.params(
        rows, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed_low=np.arange(rows)
    )
    counts = np.zeros(vocab, int)
    for call in range(calls):
        tokens = oracle.sample_rows(logits, settings, position=np.full(rows, call, np.int32)).tokens
        counts += np.bincount(tokens, minlength=vocab)
    assert counts[~keep].sum() == 0
    usual = expected >= 5  # the test's own condition; the few rarer tokens are taken together
    observed = np.append(counts[usual], counts[keep & ~usual].sum())
    wanted = np.append(expected[usual], expected[keep & ~usual].sum())
    filled = wanted > 0
    # The seeds are fixed, so this either always holds or never: a fair sampler misses it once in a thousand choices.
    assert stats.chisquare(observed[filled], wanted[filled]).pvalue > 1e-3


def shape_case(rng: np.random.Generator, rows: int, vocab: int) -> tuple[np.ndarray, SamplingParamsRows, TokenTables]:
    """Rows whose logits range from flat to peaked, with all kinds of settings."""
    logits = rng.normal(size=(rows, vocab)) * rng.uniform(0.01, 8, (rows, 1))
    return logits.astype(np.float32), oracle.random_params(rng, rows), oracle.random_tables(rng, rows, vocab)


def select(values: object, rows: np.ndarray) -> object:
    return jax.tree.map(lambda a: np.asarray(a)[rows], values)


# 1001: odd, padded to 1024 inside. 20480: the search starts on its short list and often has to leave it.
@pytest.mark.parametrize("vocab", [1001, pytest.param(20480, marks=pytest.mark.longer)])
def test_a_row_does_not_know_its_neighbours(vocab: int) -> None:
    rng = np.random.default_rng(vocab + 1)
    rows = 64 if vocab < 2000 else 32
    logits, settings, tables = shape_case(rng, rows, vocab)
    position = rng.integers(0, 500, rows).astype(np.int32)
    output_len = rng.integers(0, 6, rows).astype(np.int32)
    slots = np.arange(rows, dtype=np.int32)
    together = oracle.sample_rows(
        logits, settings, vocab - 3, tables=tables, slots=slots, position=position, output_len=output_len
    )
    for some in (rng.permutation(rows)[:8], np.full(8, 3)):
        apart = oracle.sample_rows(
            logits[some],
            select(settings, some),
            vocab - 3,
            tables=tables,
            slots=slots[some],
            position=position[some],
            output_len=output_len[some],
        )
        np.testing.assert_array_equal(apart.tokens, together.tokens[some])
        assert_same_scores(apart, together, some, settings.num_logprobs[some])


def assert_same_scores(apart: object, together: object, some: np.ndarray, wanted: np.ndarray) -> None:
    """Bytes of the scores of rows that asked for them are equal."""
    for name in ("logprobs", "ranks", "top_ids", "top_logprobs"):
        asked = wanted >= (1 if name.startswith("top") else 0)
        ours = getattr(apart.scores, name)[asked]
        theirs = getattr(together.scores, name)[some][asked]
        assert ours.tobytes() == theirs.tobytes(), name


def test_one_row_alone_and_in_every_batch_size() -> None:
    vocab = 1001
    rng = np.random.default_rng(77)
    logits, settings, tables = shape_case(rng, 8, vocab)
    settings = dataclasses.replace(
        settings,
        temperature=np.full(8, 0.9, np.float32),
        top_k=np.full(8, 100, np.int32),
        top_p=np.full(8, 0.9, np.float32),
        num_logprobs=np.full(8, 20, np.int32),
        has_penalties=np.ones(8, bool),
    )
    expected = None
    for rows in (1, 3, 8, 256):
        repeat = np.arange(rows) % 8
        found = oracle.sample_rows(
            logits[repeat], select(settings, repeat), tables=tables, slots=repeat.astype(np.int32)
        )
        first = [np.asarray(leaf)[0].tobytes() for leaf in jax.tree.leaves(found)]
        expected = expected or first
        assert first == expected, rows


def test_a_spread_vocabulary_uses_all_of_the_interval() -> None:
    """Uniform logits over 4096 tokens: 2,048 draws must look uniform (Kolmogorov-Smirnov, fixed seeds)."""
    rows, calls, vocab = 256, 8, 4096
    tokens = [
        oracle.sample_rows(
            np.zeros((rows, vocab), np.float32),
            oracle.params(rows, temperature=1.0, seed_high=np.arange(rows)),
            position=np.full(rows, call, np.int32),
        ).tokens
        for call in range(calls)
    ]
    assert stats.kstest((np.concatenate(tokens) + 0.5) / vocab, "uniform").pvalue > 1e-3
    assert math.isclose(np.concatenate(tokens).mean() / vocab, 0.5, abs_tol=0.03)  # 4.7 standard errors of 0.0064
