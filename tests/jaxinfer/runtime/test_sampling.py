"""One sampling step as a whole: greedy choice, penalties, biases, bans, bad input, memory."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.runtime import logits as changes
from jaxinfer.runtime.sampling import (
    MAX_BIAS,
    MAX_STOP_IDS,
    NO_TOKEN,
    TokenTables,
    adjusted_logits,
    count_inputs,
    sample,
)
from tests.jaxinfer.runtime import sampling_oracle as oracle

VOCAB, REAL = 131, 127  # odd, with padding


def some_logits(rows: int, vocab: int = VOCAB, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, vocab)) * 4).astype(np.float32)


def empty_tables(rows: int, vocab: int = VOCAB) -> TokenTables:
    return jax.tree.map(lambda a: np.array(a), TokenTables.zeros(rows, vocab))


def test_greedy_takes_the_largest_logit_and_the_lowest_id_among_equals() -> None:
    logits = some_logits(8)
    logits[1] = np.round(logits[1])
    logits[2] = 0.0
    logits[3, [9, 4]] = 50.0
    found = oracle.sample_rows(logits, oracle.params(8), REAL)
    np.testing.assert_array_equal(found.tokens, logits[:, :REAL].argmax(axis=1))
    assert found.tokens[3] == 4


def test_padding_of_the_vocabulary_never_wins() -> None:
    logits = np.full((8, VOCAB), -5.0, np.float32)
    logits[:, REAL:] = 100.0
    logits[4:, :REAL] = -np.inf  # nothing real is possible
    for temperature in (0.0, 1.0, 100.0):
        tokens = oracle.sample_rows(logits, oracle.params(8, temperature=temperature), REAL).tokens
        assert (tokens < REAL).all()
        assert (tokens[4:] == NO_TOKEN).all()


def test_strange_numbers() -> None:
    largest = np.finfo(np.float32).max
    logits = np.zeros((8, VOCAB), np.float32)
    logits[0, 5] = np.nan
    logits[0, 6] = 50.0
    logits[1, [7, 8]] = np.inf, 3.0
    logits[2] = -np.inf
    logits[2, 9] = -largest
    logits[3] = largest
    logits[4] = np.nan
    logits[5, 11] = largest
    logits[6, :] = -largest
    logits[6, 12] = largest
    for temperature, penalties in itertools.product((0.0, 1e-6, 1.0), (False, True)):
        settings = oracle.params(8, temperature=temperature, top_k=3, top_p=0.5, has_penalties=penalties)
        settings = dataclasses.replace(settings, repetition_penalty=np.full(8, 0.5, np.float32))
        tables = empty_tables(8)
        tables.prompt_seen[5] = True  # doubling the largest float would overflow
        tokens = oracle.sample_rows(logits, settings, REAL, tables=tables).tokens
        np.testing.assert_array_equal(tokens[[0, 1, 2, 4, 5, 6]], [6, 7, 9, NO_TOKEN, 11, 12])
        assert 0 <= tokens[3] < REAL


def test_greedy_and_random_rows_mix() -> None:
    logits = some_logits(16)
    settings = oracle.params(16, temperature=[0, 1] * 8, seed_low=np.arange(16))
    tokens = oracle.sample_rows(logits, settings, REAL).tokens
    np.testing.assert_array_equal(tokens[::2], logits[::2, :REAL].argmax(axis=1))
    assert (tokens[1::2] != logits[1::2, :REAL].argmax(axis=1)).any()


ADJUSTMENTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "repetition": {"repetition_penalty": 1.7, "has_penalties": True},
    "repetition below one": {"repetition_penalty": 0.4, "has_penalties": True},
    "presence": {"presence_penalty": 1.5, "has_penalties": True},
    "frequency": {"frequency_penalty": -0.8, "has_penalties": True},
    "all penalties": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.6,
        "frequency_penalty": 0.9,
        "has_penalties": True,
    },
    "penalties by some rows": {"repetition_penalty": 2.0, "has_penalties": [True, False, False, True] * 2},
    "bias": {"has_bias": True},
    "bias by some rows": {"has_bias": [False, True] * 4},
    "min_tokens": {"min_tokens": [0, 3, 4, 100] * 2},
    "everything": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.6,
        "frequency_penalty": 0.9,
        "has_penalties": True,
        "has_bias": True,
        "min_tokens": 5,
    },
}


@pytest.mark.parametrize("name", ADJUSTMENTS)
def test_adjusted_logits(name: str) -> None:
    settings = oracle.params(8, **ADJUSTMENTS[name])
    rng = np.random.default_rng(3)
    tables = oracle.random_tables(rng, 8, VOCAB)
    tables.output_counts[0, :20] = 5  # several of them certainly positive and negative
    tables.allow_only[2:4] = True  # in effect only where has_bias is set
    logits = some_logits(8)
    logits[0, :3] = 0.0, -np.inf, 7.0
    output_len = np.full(8, 3, np.int32)
    slots = np.arange(8, dtype=np.int32)
    found = jax.jit(adjusted_logits, static_argnums=5)(logits, settings, tables, slots, output_len, REAL)
    expected = oracle.adjusted(logits, settings, tables, output_len, REAL)
    assert found.shape == (8, 256)
    assert np.isneginf(found[:, VOCAB:]).all()
    # A product, a quotient and three sums in float32, on values up to 30.
    np.testing.assert_allclose(found[:, :VOCAB], expected, rtol=1e-6, atol=1e-5)
    changed = (np.asarray(found)[:, :REAL] != logits[:, :REAL]).any()
    assert changed == (name != "nothing")


@pytest.mark.parametrize(
    ("logit", "bias", "right"), [(2.0, 3.0, 2.5), (1.2, 3.0, 2.1), (-1.5, 3.0, 0.75), (2.0, -3.0, -2.0)]
)
@pytest.mark.parametrize("of", ["prompt", "output"])
def test_a_repetition_penalty_takes_the_biased_logit(logit: float, bias: float, right: float, of: str) -> None:
    """The values of vLLM 0.32 and transformers 5.24 with a repetition penalty of 2."""
    logits, tables = np.zeros((8, VOCAB), np.float32), empty_tables(8)
    logits[:, 5] = logit
    tables.bias_ids[:, 0], tables.bias_values[:, 0] = 5, bias
    if of == "prompt":
        tables.prompt_seen[:, 5] = True
    else:
        tables.output_counts[:, 5] = 1
    settings = oracle.params(8, repetition_penalty=2.0, has_penalties=True, has_bias=True)
    found = adjusted_on(logits, settings, tables)
    np.testing.assert_allclose(found[:, 5], right, rtol=1e-6)
    np.testing.assert_allclose(oracle.adjusted(logits, settings, tables, np.zeros(8), REAL)[:, 5], right, rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-45, 1e-30, 0.5, 1.0, 2.0])
def test_no_penalty_lifts_a_ban(factor: float) -> None:
    """Not even a factor that float32 rounds to nothing, which would make -inf * 0 not a number."""
    logits, tables = np.full((8, VOCAB), 3.0, np.float32), empty_tables(8)
    tables.output_counts[:, :20] = 2
    tables.bias_ids[:, :2], tables.bias_values[:, 0], tables.bias_values[:, 1] = [5, 6], -np.inf, 100.0
    tables.stop_ids[:, 0] = 7
    logits[:, 8] = -np.inf
    settings = oracle.params(
        8,
        repetition_penalty=factor,
        presence_penalty=-2.0,
        frequency_penalty=-2.0,
        has_penalties=True,
        has_bias=True,
        min_tokens=1,
    )
    found = adjusted_on(logits, settings, tables)
    assert np.isneginf(found[:, [5, 7, 8]]).all()
    assert np.isfinite(found[:, [4, 6, 9]]).all()


def adjusted_on(logits: np.ndarray, settings: Any, tables: TokenTables) -> np.ndarray:
    """Stage 1 for rows without outputs, row i in slot i."""
    zeros, slots = np.zeros(len(logits), np.int32), np.arange(len(logits), dtype=np.int32)
    return np.asarray(jax.jit(adjusted_logits, static_argnums=5)(logits, settings, tables, slots, zeros, REAL))


def test_allowed_and_bad_ids() -> None:
    rng = np.random.default_rng(9)
    logits = some_logits(8)
    tables = empty_tables(8)
    allowed, bad = rng.choice(REAL, 20, replace=False), rng.choice(REAL, 20, replace=False)
    tables.bias_ids[:4, :20], tables.allow_only[:4] = allowed, True
    tables.bias_values[:4, 10:20] = -np.inf  # listed but banned
    tables.bias_ids[4:, :20], tables.bias_values[4:, :20] = bad, -np.inf
    for call in range(30):
        position = np.full(8, call, np.int32)
        settings = oracle.params(8, temperature=3.0, has_bias=True, seed_low=np.arange(8))
        tokens = oracle.sample_rows(logits, settings, REAL, tables=tables, position=position).tokens
        assert np.isin(tokens[:4], allowed[:10]).all()
        assert not np.isin(tokens[4:], bad).any()


def test_a_full_bias_table_and_a_single_allowed_token() -> None:
    vocab = MAX_BIAS + 40
    logits = some_logits(8, vocab)
    tables = empty_tables(8, vocab)
    tables.bias_ids[:], tables.bias_values[:4] = np.arange(MAX_BIAS), -np.inf
    tables.bias_values[4:] = 100.0
    tables.bias_ids[7], tables.bias_values[7], tables.allow_only[7] = vocab, 0.0, True
    tables.bias_ids[7, 0] = 33
    tokens = oracle.sample_rows(logits, oracle.params(8, has_bias=True), tables=tables).tokens
    assert (tokens[:4] >= MAX_BIAS).all()
    np.testing.assert_array_equal(tokens[4:7], logits[4:7, :MAX_BIAS].argmax(axis=1))
    assert tokens[7] == 33


def test_stop_ids_are_banned_until_min_tokens_outputs_exist() -> None:
    logits = some_logits(8)
    best = logits[:, :REAL].argmax(axis=1)
    tables = empty_tables(8)
    tables.stop_ids[:8, MAX_STOP_IDS - 1] = best
    for output_len, banned in ((0, True), (4, True), (5, False), (6, False)):
        lengths = np.full(8, output_len, np.int32)
        settings = oracle.params(8, min_tokens=5)
        tokens = oracle.sample_rows(logits, settings, REAL, tables=tables, output_len=lengths).tokens
        np.testing.assert_array_equal(tokens != best, banned)


def test_rows_find_their_tables_by_slot() -> None:
    logits = np.tile(some_logits(1), (8, 1))
    tables = empty_tables(12)
    slots = np.array([11, 3, 0, 7, 12, 12, 5, 1], np.int32)
    for slot in range(12):
        tables.bias_ids[slot, 0], tables.bias_values[slot, 0] = slot + 30, 200.0
    settings = oracle.params(8, has_bias=[True] * 4 + [False] * 2 + [True] * 2)
    tokens = oracle.sample_rows(logits, settings, REAL, tables=tables, slots=slots).tokens
    np.testing.assert_array_equal(tokens[[0, 1, 2, 3, 6, 7]], slots[[0, 1, 2, 3, 6, 7]] + 30)
    assert (tokens[4:6] == logits[0, :REAL].argmax()).all()


def test_frequency_follows_the_counted_inputs() -> None:
    """Penalties see what count_inputs entered, prompt and outputs apart."""
    logits = np.zeros((8, VOCAB), np.float32)
    logits[:, 10:13] = 5.0, 4.9, 4.8
    tables = TokenTables.zeros(8, VOCAB)
    settings = oracle.params(8, frequency_penalty=0.04, has_penalties=True)
    texts = []
    row = np.arange(8, dtype=np.int32)
    last = np.full(8, 10, np.int32)  # a prompt of one token: no frequency penalty for it
    for position in range(12):
        place = np.full(8, position, np.int32)
        ones = np.ones(8, np.int32)
        tables = count_inputs(tables, row, last, row, place, ones, np.ones(8, bool))
        last = oracle.sample_rows(logits, settings, REAL, tables=tables, position=place + 1, output_len=place).tokens
        texts.append(int(last[0]))
    counts, expected = np.zeros(3), []
    for _ in range(12):
        token = int(np.argmax(np.array([5.0, 4.9, 4.8]) - 0.04 * counts))
        counts[token] += 1
        expected.append(token + 10)
    assert texts == expected
    assert len(set(texts)) == 3


def test_no_loop_is_left_where_none_is_wanted() -> None:
    """A loop would not fit a GPU's command buffer. The results are the same: tests of the parts that differ."""
    arguments = jnp.zeros((2, 32_768)), oracle.params(2), TokenTables.zeros(2, 32_768), *[jnp.zeros(2, jnp.int32)] * 3

    def loops(**how: bool) -> int:
        text = str(jax.make_jaxpr(lambda *args: sample(*args, vocab_size=32_768, **how))(*arguments))
        return sum(f"= {loop}[" in text for loop in ("while", "scan"))

    assert loops(loops=False) == 0
    assert loops() > 0


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"logits: got bfloat16\(8, 131\), allowed is float32 of two dimensions"):
        oracle.sample_rows(jnp.zeros((8, VOCAB), jnp.bfloat16), oracle.params(8))
    with pytest.raises(TypeError, match=r"logits: got float32\(131,\)"):
        sample(jnp.zeros(VOCAB), oracle.params(8), TokenTables.zeros(8, VOCAB), *[jnp.zeros(8, jnp.int32)] * 3, VOCAB)
    with pytest.raises(ValueError, match="vocab_size: got 132, allowed is 1 to 131"):
        oracle.sample_rows(some_logits(8), oracle.params(8), VOCAB + 1)


def test_penalize_divides_positive_and_multiplies_negative_logits() -> None:
    tables = empty_tables(1, 4)
    tables.prompt_seen[0, :2] = True
    row = np.array([[2.0, -2.0, 2.0, -2.0]], np.float32)
    one, zero, on = np.full(1, 4.0, np.float32), np.zeros(1, np.float32), np.ones(1, bool)
    found = changes.penalize(row, tables, np.zeros(1, np.int32), one, zero, zero, on)
    np.testing.assert_array_equal(found, [[0.5, -8.0, 2.0, -2.0]])


def step_memory(num_slots: int, rows: int, vocab: int) -> Any:
    """Memory of a step that counts its inputs into donated tables and samples; nothing is allocated or run."""

    def step(tables: TokenTables, logits: jax.Array, settings: Any, ints: jax.Array) -> Any:
        active = jnp.ones((rows,), bool)
        tables = count_inputs(tables, ints, ints, ints, ints, ints, active)
        return tables, sample(logits, settings, tables, ints, ints, ints, vocab)

    tables = jax.eval_shape(lambda: TokenTables.zeros(num_slots, vocab))
    arguments = jnp.zeros((rows, vocab), jnp.float32), oracle.params(rows), jnp.zeros((rows,), jnp.int32)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
    return jax.jit(step, donate_argnums=0).lower(tables, *shapes).compile().memory_analysis()


def test_tables_are_neither_copied_nor_a_reason_for_more_temporaries() -> None:
    rows, vocab = 8, 2048
    few, many = step_memory(16, rows, vocab), step_memory(512, rows, vocab)
    assert many.temp_size_in_bytes == few.temp_size_in_bytes
    assert many.alias_size_in_bytes >= 513 * vocab * 5  # both big tables are updated in place
    assert few.temp_size_in_bytes < 6 * rows * vocab * 4
