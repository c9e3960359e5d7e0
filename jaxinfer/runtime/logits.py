"""Changes that a request asks for on the logits themselves: grammars' masks, penalties, biases and bans.

Shapes: S rows, V vocabulary entries (padding included).
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.runtime.thresholds import pad_to_block
from jaxinfer.runtime.token_tables import TokenTables

_LARGEST = float(jnp.finfo(jnp.float32).max)


def mask_vocabulary(logits: jax.Array, vocab_size: int) -> jax.Array:
    """-inf for the entries from ``vocab_size`` on, and more of them up to a multiple of ``BLOCK``."""
    if vocab_size < logits.shape[1]:
        logits = jnp.where(lax.broadcasted_iota(jnp.int32, logits.shape, 1) < vocab_size, logits, -jnp.inf)
    return pad_to_block(logits, -jnp.inf)


def let_through(logits: jax.Array, masks: jax.Array) -> jax.Array:
    """-inf for each token whose bit is not set in ``masks``, (S, ceil(V / 32)) uint32: bit i of word w is token
    32 w + i. Unconditional: it reads a bit for each logit, which is less than asking whether any row wants it."""
    bits = (masks[:, :, None] >> lax.broadcasted_iota(jnp.uint32, (1, 1, 32), 2)) & 1
    return jnp.where(bits.reshape(masks.shape[0], -1)[:, : logits.shape[1]] != 0, logits, -jnp.inf)


def make_orderable(logits: jax.Array) -> jax.Array:
    """NaN becomes -inf and +inf the largest float32, so that a row has a well-defined maximum to subtract."""
    return jnp.where(jnp.isnan(logits), -jnp.inf, jnp.minimum(logits, _LARGEST))


def penalize(
    logits: jax.Array,
    tables: TokenTables,
    slots: jax.Array,
    repetition: jax.Array,
    presence: jax.Array,
    frequency: jax.Array,
    on: jax.Array,
) -> jax.Array:
    """Repetition, frequency and presence penalties, as vLLM and the OpenAI interface define them.

    A token of prompt or output has its logit divided by ``repetition`` when positive and multiplied when not (Keskar
    et al. 2019, CTRL, section 4.1, in the form that spares negative logits). Then each output token loses
    ``frequency`` for every occurrence and ``presence`` once. All of (S,) float32; rows whose ``on`` (S,) bool is False
    stay as they are.
    """
    counts = tables.output_counts[slots]  # (S, V)
    in_output = counts > 0
    seen = tables.prompt_seen[slots] | in_output
    factor = repetition[:, None]
    changed = jnp.where(seen, jnp.where(logits > 0, logits / factor, logits * factor), logits)
    changed -= frequency[:, None] * counts.astype(jnp.float32)
    changed -= jnp.where(in_output, presence[:, None], 0.0)
    return jnp.where(on[:, None], changed, logits)


def bias(logits: jax.Array, tables: TokenTables, slots: jax.Array, on: jax.Array) -> jax.Array:
    """Adds the values listed for the row's slot and, where it allows its list only, bans everything else."""
    vocab = logits.shape[1]
    ids = jnp.where(on[:, None], tables.bias_ids[slots], vocab)  # (S, MAX_BIAS)
    listed = jnp.take_along_axis(logits, ids, axis=1, mode="fill", fill_value=0.0) + tables.bias_values[slots]
    base = jnp.where((tables.allow_only[slots] & on)[:, None], -jnp.inf, logits)
    return _set(base, ids, listed)


def ban_stops(logits: jax.Array, tables: TokenTables, slots: jax.Array, on: jax.Array) -> jax.Array:
    """Bans the slot's ``stop_ids`` in the rows whose ``on`` (S,) bool is set, but for a row that has nothing else: its
    mask lets nothing but an end through, and what a grammar says goes before min_tokens."""
    ids = jnp.where(on[:, None], tables.stop_ids[slots], logits.shape[1])  # (S, MAX_STOP_IDS)
    banned = _set(logits, ids, jnp.full(ids.shape, -jnp.inf, logits.dtype))
    return jnp.where(jnp.max(banned, axis=1, keepdims=True) > -jnp.inf, banned, logits)


def _set(logits: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """Row by row, logits[ids] = values; ids outside the vocabulary are dropped."""
    rows = lax.broadcasted_iota(jnp.int32, ids.shape, 0)
    return logits.at[rows, ids].set(values, mode="drop")
