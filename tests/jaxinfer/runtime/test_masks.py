"""Masks of tokens in sampling: what is outside is impossible whatever else is asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.runtime.draw import mask_words
from jaxinfer.runtime.logits import let_through
from jaxinfer.runtime.sampling import NO_TOKEN, sample
from tests.jaxinfer.runtime import sampling_oracle as oracle

VOCAB, REAL, ROWS = 131, 127, 8
run = jax.jit(sample, static_argnames="vocab_size")


def packed(allowed: np.ndarray) -> np.ndarray:
    """(rows, vocabulary) bool -> (rows, words) uint32."""
    rows, vocab = allowed.shape
    bits = np.zeros((rows, mask_words(vocab) * 32), np.uint8)
    bits[:, :vocab] = allowed
    return np.packbits(bits, axis=1, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 131])
def test_bits_are_tokens_in_order(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    allowed = rng.random((3, vocab)) < 0.5
    logits = rng.normal(size=(3, vocab)).astype(np.float32)
    found = jax.jit(let_through)(logits, packed(allowed))
    np.testing.assert_array_equal(found, np.where(allowed, logits, -np.inf))


def test_no_setting_gets_past_a_mask() -> None:
    rng = np.random.default_rng(1)
    drawn = 0
    for call in range(60):
        settings = oracle.random_params(rng, ROWS)
        tables = oracle.random_tables(rng, ROWS, VOCAB)
        tables.bias_values[:] = np.abs(tables.bias_values) * 20  # bias alone would choose others
        logits = (rng.normal(size=(ROWS, VOCAB)) * 4).astype(np.float32)
        allowed = rng.random((ROWS, VOCAB)) < rng.choice([0.02, 0.3])
        slots, position = np.arange(ROWS, dtype=np.int32), np.full(ROWS, call, np.int32)
        output_len = rng.integers(0, 5, ROWS).astype(np.int32)
        tokens = np.asarray(
            run(logits, settings, tables, slots, position, output_len, vocab_size=REAL, masks=packed(allowed)).tokens
        )
        for row, token in enumerate(tokens):
            assert token == NO_TOKEN or (token < REAL and allowed[row, token]), (call, row, token)
        drawn += int((tokens >= 0).sum())
    assert drawn > 300


def test_a_mask_of_everything_changes_no_bit() -> None:
    rng = np.random.default_rng(2)
    settings, tables = oracle.random_params(rng, ROWS), oracle.random_tables(rng, ROWS, VOCAB)
    logits = (rng.normal(size=(ROWS, VOCAB)) * 4).astype(np.float32)
    logits[0, :3] = np.nan, np.inf, -np.inf
    ints = np.arange(ROWS, dtype=np.int32)
    masks = np.full((ROWS, mask_words(VOCAB)), 0xFFFFFFFF, np.uint32)
    plain, masked = (
        run(logits, settings, tables, ints, ints, ints, vocab_size=REAL, masks=given) for given in (None, masks)
    )
    jax.tree.map(np.testing.assert_array_equal, plain, masked)


def test_scores_are_of_all_tokens() -> None:
    logits = np.random.default_rng(3).normal(size=(ROWS, VOCAB)).astype(np.float32)
    settings = oracle.params(ROWS, num_logprobs=0)
    tables = oracle.random_tables(np.random.default_rng(3), ROWS, VOCAB)
    ints = np.arange(ROWS, dtype=np.int32)
    allowed = np.zeros((ROWS, VOCAB), bool)
    allowed[ints, ints + 5] = True
    found = run(logits, settings, tables, ints, ints, ints, vocab_size=REAL, masks=packed(allowed))
    np.testing.assert_array_equal(found.tokens, ints + 5)
    expected = jax.nn.log_softmax(jnp.asarray(logits[:, :REAL]), axis=1)[ints, ints + 5]
    np.testing.assert_allclose(found.scores.logprobs, expected, rtol=1e-5, atol=1e-5)


def test_min_tokens_gives_way_where_nothing_but_an_end_is_left() -> None:
    logits = np.random.default_rng(4).normal(size=(ROWS, VOCAB)).astype(np.float32)
    settings = oracle.params(ROWS, min_tokens=9)
    tables = oracle.random_tables(np.random.default_rng(4), ROWS, VOCAB)
    tables.stop_ids[:] = VOCAB
    tables.stop_ids[:, :2] = 3, 4
    ints = np.arange(ROWS, dtype=np.int32)
    allowed = np.zeros((ROWS, VOCAB), bool)
    allowed[:, 3] = True
    allowed[4:, 60] = True
    found = run(logits, settings, tables, ints, ints, np.zeros(ROWS, np.int32), vocab_size=REAL, masks=packed(allowed))
    np.testing.assert_array_equal(found.tokens, [3] * 4 + [60] * 4)
