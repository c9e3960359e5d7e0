"""The per-slot tables: counting inputs, admission, the trash row. With and without jit."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.runtime.sampling import MAX_BIAS, MAX_STOP_IDS, TokenTables, admit, count_inputs

SLOTS, VOCAB = 5, 37


def as_jax(tables: TokenTables) -> TokenTables:
    return jax.tree.map(jnp.asarray, tables)


def as_numpy(tables: TokenTables) -> TokenTables:
    return jax.tree.map(lambda a: np.array(a), tables)


def lists(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "bias_ids": rng.integers(0, VOCAB, MAX_BIAS).astype(np.int32),
        "bias_values": rng.normal(size=MAX_BIAS).astype(np.float32),
        "allow_only": np.array(True),
        "stop_ids": rng.integers(0, VOCAB, MAX_STOP_IDS).astype(np.int32),
    }


def admission(tokens: list[int], **given: object) -> dict[str, object]:
    """Arguments of ``admit`` with room for six tokens."""
    values = {
        "slot": np.int32(2),
        "token_ids": np.array(tokens + [9] * (6 - len(tokens)), np.int32),
        "count": np.int32(len(tokens)),
        "offset": np.int32(0),
        "prompt_len": np.int32(100),
        "clear": np.array(True),
        **lists(np.random.default_rng(0)),
    }
    return values | given


class TablesTest(chex.TestCase):
    def test_empty_tables(self) -> None:
        tables = TokenTables.zeros(SLOTS, VOCAB)
        chex.assert_shape([tables.output_counts, tables.prompt_seen], (SLOTS + 1, VOCAB))
        chex.assert_type([tables.output_counts, tables.prompt_seen, tables.bias_values], [np.int32, bool, np.float32])
        assert tables.trash == SLOTS
        assert not np.asarray(tables.output_counts).any()
        assert not np.asarray(tables.prompt_seen).any()
        assert (np.asarray(tables.bias_ids) == VOCAB).all()
        assert (np.asarray(tables.stop_ids) == VOCAB).all()

    @chex.variants(with_jit=True, without_jit=True)
    def test_inputs_are_counted(self) -> None:
        rng = np.random.default_rng(1)
        slots = np.array([4, 0, 2, SLOTS], np.int32)
        prompt_len = np.array([3, 0, 50, 0], np.int32)
        rows = np.sort(rng.integers(0, 4, 40)).astype(np.int32)
        tokens = rng.integers(0, 6, 40).astype(np.int32)  # few, so that many repeat
        positions = rng.integers(0, 60, 40).astype(np.int32)
        active = (rng.random(40) < 0.8) & (rows < 3)
        before = as_numpy(TokenTables.zeros(SLOTS, VOCAB))
        before.output_counts[4, 1] = 7
        after = as_numpy(self.variant(count_inputs)(as_jax(before), slots, tokens, rows, positions, prompt_len, active))
        counts, seen = before.output_counts.copy(), before.prompt_seen.copy()
        for token, row, position in zip(tokens[active], rows[active], positions[active], strict=True):
            if position < prompt_len[row]:
                seen[slots[row], token] = True
            else:
                counts[slots[row], token] += 1
        np.testing.assert_array_equal(after.output_counts[:SLOTS], counts[:SLOTS])
        np.testing.assert_array_equal(after.prompt_seen[:SLOTS], seen[:SLOTS])
        assert counts.max() > 7  # repeats within one call add up
        assert after.output_counts[SLOTS].sum() > 0  # padding went to the trash row
        for name in ("bias_ids", "bias_values", "allow_only", "stop_ids"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))

    @chex.variants(with_jit=True, without_jit=True)
    def test_admission_clears_the_slot_and_enters_the_prefix(self) -> None:
        dirty = as_numpy(TokenTables.zeros(SLOTS, VOCAB))
        dirty.output_counts[:], dirty.prompt_seen[:] = 3, True
        call = self.variant(admit)
        given = admission([7, 8, 7], prompt_len=np.int32(2), slot=np.int32(1))
        after = as_numpy(call(as_jax(dirty), **given))
        assert set(np.flatnonzero(after.prompt_seen[1])) == {7, 8}
        assert {int(t): int(after.output_counts[1, t]) for t in np.flatnonzero(after.output_counts[1])} == {7: 1}
        for name in ("bias_ids", "bias_values", "allow_only", "stop_ids"):
            np.testing.assert_array_equal(getattr(after, name)[1], given[name])
        others = [0, 2, 3, 4]
        assert (after.output_counts[others] == 3).all()
        assert after.prompt_seen[others].all()
        assert (after.bias_ids[others] == VOCAB).all()


def test_a_long_prefix_takes_several_calls() -> None:
    history = [1, 2, 3, 4, 5, 1, 2, 2, 2, 6, 2, 30, 31]
    prompt_len = 7
    tables = TokenTables.zeros(SLOTS, VOCAB)
    for offset in range(0, len(history), 6):
        part = history[offset : offset + 6]
        given = admission(part, offset=np.int32(offset), prompt_len=np.int32(prompt_len), clear=np.array(offset == 0))
        tables = jax.jit(admit)(tables, **given)
    after = as_numpy(tables)
    assert set(np.flatnonzero(after.prompt_seen[2])) == set(history[:prompt_len])
    np.testing.assert_array_equal(after.output_counts[2], np.bincount(history[prompt_len:], minlength=VOCAB))


@pytest.mark.parametrize("cut", [0, 2, 5, 9])
def test_admitted_and_computed_tokens_count_alike(cut: int) -> None:
    """A prefix hit of any length leaves the tables as if every token had been computed."""
    history = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5], np.int32)
    prompt_len = np.int32(4)
    start = admission([], token_ids=np.resize(history[:cut], 9) if cut else history, count=np.int32(cut))
    tables = admit(TokenTables.zeros(SLOTS, VOCAB), **(start | {"prompt_len": prompt_len}))
    rest = history[cut:]
    if len(rest):
        zeros = np.zeros(len(rest), np.int32)
        positions = np.arange(cut, len(history), dtype=np.int32)
        active = np.ones(len(rest), bool)
        tables = count_inputs(tables, np.array([2], np.int32), rest, zeros, positions, np.array([prompt_len]), active)
    after = as_numpy(tables)
    np.testing.assert_array_equal(after.output_counts[2], np.bincount(history[4:], minlength=VOCAB))
    assert set(np.flatnonzero(after.prompt_seen[2])) == set(history[:4].tolist())


def test_both_updates_happen_in_place() -> None:
    tables = jax.eval_shape(lambda: TokenTables.zeros(300, 4096))
    big = 301 * 4096 * 5
    ints = jax.ShapeDtypeStruct((64,), np.int32)
    flags = jax.ShapeDtypeStruct((64,), bool)
    counting = jax.jit(count_inputs, donate_argnums=0).lower(tables, ints, ints, ints, ints, ints, flags).compile()
    given = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), np.asarray(a).dtype), admission([1]))
    admitting = jax.jit(admit, donate_argnums=0).lower(tables, **given).compile()
    for executable in (counting, admitting):
        memory = executable.memory_analysis()
        assert memory.alias_size_in_bytes >= big
        assert memory.temp_size_in_bytes < big / 20


def test_tables_are_a_pytree_of_arrays() -> None:
    tables = TokenTables.zeros(SLOTS, VOCAB)
    assert len(jax.tree.leaves(tables)) == len(dataclasses.fields(TokenTables))
