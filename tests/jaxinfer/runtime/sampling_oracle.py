"""What sampling should do, said with numpy, float64 and a sort; and builders for its inputs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.runtime.sampling import Sampled, SamplingParamsRows, TokenTables, sample

NEUTRAL: dict[str, tuple[type, Any]] = {
    "temperature": (np.float32, 0.0),
    "top_k": (np.int32, 0),
    "top_p": (np.float32, 1.0),
    "min_p": (np.float32, 0.0),
    "repetition_penalty": (np.float32, 1.0),
    "presence_penalty": (np.float32, 0.0),
    "frequency_penalty": (np.float32, 0.0),
    "seed_low": (np.uint32, 0),
    "seed_high": (np.uint32, 0),
    "sequence_index": (np.int32, 0),
    "min_tokens": (np.int32, 0),
    "num_logprobs": (np.int32, -1),
    "has_penalties": (np.bool_, False),
    "has_bias": (np.bool_, False),
}

run = jax.jit(sample, static_argnames="vocab_size")


def params(rows: int, **values: Any) -> SamplingParamsRows:
    """Neutral parameters but for ``values``, each one for all rows or a sequence of one per row."""
    unknown = values.keys() - NEUTRAL.keys()
    assert not unknown, unknown
    return SamplingParamsRows(
        **{
            name: np.broadcast_to(np.asarray(values.get(name, neutral), dtype), (rows,)).copy()
            for name, (dtype, neutral) in NEUTRAL.items()
        }
    )


def random_params(rng: np.random.Generator, rows: int) -> SamplingParamsRows:
    """A different mixture of settings in every row, greedy rows and rows without any among them."""

    def some(values: np.ndarray, neutral: float) -> np.ndarray:
        return np.where(rng.random(rows) < 0.6, values, neutral)

    factors = some(rng.uniform(0.6, 1.8, rows), 1.0)
    return params(
        rows,
        temperature=some(rng.uniform(0.3, 2.0, rows), 0.0),
        top_k=some(rng.integers(1, 300, rows), 0),
        top_p=some(rng.uniform(0.05, 0.99, rows), 1.0),
        min_p=some(rng.uniform(0.0, 0.3, rows), 0.0),
        repetition_penalty=factors,
        presence_penalty=some(rng.uniform(-1, 1, rows), 0.0),
        frequency_penalty=some(rng.uniform(-1, 1, rows), 0.0),
        seed_low=rng.integers(0, 2**32, rows),
        seed_high=rng.integers(0, 2**32, rows),
        sequence_index=rng.integers(0, 4, rows),
        min_tokens=rng.integers(0, 4, rows),
        num_logprobs=rng.integers(-1, 21, rows),
        has_penalties=rng.random(rows) < 0.7,
        has_bias=rng.random(rows) < 0.5,
    )


def random_tables(rng: np.random.Generator, slots: int, vocab: int) -> TokenTables:
    """Tables of ``slots`` used slots and an untouched trash row."""
    tables = jax.tree.map(lambda a: np.array(a), TokenTables.zeros(slots, vocab))
    for slot in range(slots):
        tables.output_counts[slot, rng.integers(0, vocab, 30)] += 1
        tables.output_counts[slot, rng.integers(0, vocab, 5)] += 3
        tables.prompt_seen[slot, rng.integers(0, vocab, 40)] = True
        length = int(rng.integers(1, min(40, vocab)))
        tables.bias_ids[slot, :length] = rng.choice(vocab, length, replace=False)
        tables.bias_values[slot, :length] = rng.normal(size=length) * 3
        tables.bias_values[slot, 1:length:4] = -np.inf
        tables.allow_only[slot] = rng.random() < 0.3
        tables.stop_ids[slot, :3] = rng.integers(0, vocab, 3)
    return tables


def sample_rows(logits: np.ndarray, rows: SamplingParamsRows, vocab_size: int | None = None, **given: Any) -> Sampled:
    """``sample`` under jit, with fresh tables, one slot a row, position 9 and 3 outputs unless given; as numpy."""
    count, vocab = logits.shape
    tables = given.get("tables")
    result = run(
        logits,
        rows,
        TokenTables.zeros(count, vocab) if tables is None else tables,
        given.get("slots", np.arange(count, dtype=np.int32)),
        given.get("position", np.full(count, 9, np.int32)),
        given.get("output_len", np.full(count, 3, np.int32)),
        vocab_size=vocab if vocab_size is None else vocab_size,
    )
    return jax.tree.map(np.asarray, result)


def adjusted(
    logits: np.ndarray, rows: SamplingParamsRows, tables: TokenTables, output_len: np.ndarray, vocab_size: int
) -> np.ndarray:
    """What vLLM 0.32 makes of logits before it samples, by loops in float64; row i uses slot i.

    Step by step as `Sampler.apply_logits_processors` says it: allowed ids, bad ids, min_tokens, logit bias, and then
    `apply_penalties`: repetition over prompt and outputs, frequency by the outputs' counts, presence by their mask.
    """
    out = np.asarray(logits, np.float64).copy()
    out[:, vocab_size:] = -np.inf
    for i, row in enumerate(out):
        pairs = zip(tables.bias_ids[i].tolist(), tables.bias_values[i].tolist(), strict=True)
        listed = {token: value for token, value in pairs if rows.has_bias[i] and token < vocab_size}
        if rows.has_bias[i] and tables.allow_only[i]:
            row[[token for token in range(len(row)) if token not in listed]] = -np.inf
        row[[token for token, value in listed.items() if value == -np.inf]] = -np.inf
        if output_len[i] < rows.min_tokens[i]:
            row[[token for token in tables.stop_ids[i] if token < vocab_size]] = -np.inf
        for token, value in listed.items():
            row[token] += value
        if rows.has_penalties[i]:
            counts = np.asarray(tables.output_counts[i], np.int64)
            repeated, factor = tables.prompt_seen[i] | (counts > 0), float(rows.repetition_penalty[i])
            for token in np.flatnonzero(repeated):
                row[token] = row[token] / factor if row[token] > 0 else row[token] * factor
            row -= float(rows.frequency_penalty[i]) * counts
            row -= float(rows.presence_penalty[i]) * (counts > 0)
    return out


def shares(row: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax in float64 of one row of adjusted logits."""
    weights = np.exp((row - row.max()) / temperature)
    return weights / weights.sum()


def kept(row: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """(V,) bool: which tokens survive, by sorting; ties at a threshold all stay."""
    probs = shares(row, temperature)
    keep = probs >= min_p * probs.max()
    descending = np.sort(row)[::-1]
    if 0 < top_k < row.size:
        keep &= row >= descending[top_k - 1]
    if top_p < 1:
        values = np.unique(row[keep])[::-1]  # ties are one entry
        mass = np.array([probs[keep & (row == value)].sum() for value in values])
        enough = np.cumsum(mass) >= top_p * probs[keep].sum()
        keep &= row >= values[np.argmax(enough)] if enough.any() else True
    return keep


def adjusted_on_device(logits: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Logits of a width that is a multiple of 128, and their maxima, as ``survivors`` takes them."""
    values = jnp.asarray(logits, jnp.float32)
    return values, values.max(axis=1)
