"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864) and the ways of stretching them.

Frequencies are computed on the host, once, and become constants of the step; cosines and sines are computed once a
step for each distinct embedding. Pairs are (i, i + r / 2) of the first r = rotary_dim elements of a head.
Shapes: T tokens, H head_dim, r rotary_dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.config import RopeConfig


class Rotation(NamedTuple):
    """What one rotary embedding does to the tokens of a step.

    Attributes:
        cos, sin: (T, r / 2) float32, the attention factor multiplied in.
        query_scale: (T,) float32, what rotated queries are multiplied by; None: nothing.
    """

    cos: jax.Array
    sin: jax.Array
    query_scale: jax.Array | None = None

    def of_queries(self, q: jax.Array) -> jax.Array:
        """q (T, heads, H), rotated and scaled; each is rounded to q's dtype, as in transformers."""
        rotated = rotate(q, self.cos, self.sin)
        return rotated if self.query_scale is None else rotated * self.query_scale.astype(q.dtype)[:, None, None]

    def of_keys(self, k: jax.Array) -> jax.Array:
        """k (T, heads, H), rotated."""
        return rotate(k, self.cos, self.sin)


SHORT, LONG = 0, 1  # variants of longrope


def inverse_frequencies(rope: RopeConfig, rope_variant: int = SHORT) -> np.ndarray:
    """Radians per position for each pair, (r / 2,) float32; `rope_variant` (SHORT or LONG) matters to longrope only.

    The operations, their order and their rounding to float32 are those of transformers' `modeling_rope_utils`, since a
    float32 model's logits show a difference in the seventh digit at far positions. `dynamic` is the default here: it
    differs only beyond the trained length, which is not served.
    """
    periods = _periods(rope)
    if rope.kind == "linear":
        return _one(1.0) / periods / _one(rope.factor)
    if rope.kind == "llama3":
        return _llama3(rope, _one(1.0) / periods)
    if rope.kind == "yarn":
        return _yarn(rope, periods)
    if rope.kind == "longrope":
        factors = np.asarray(rope.long_factor if rope_variant == LONG else rope.short_factor, np.float32)
        return _one(1.0) / (factors * periods)
    return _one(1.0) / periods


def rotation_tables(ropes: Sequence[RopeConfig], positions: jax.Array, rope_variant: jax.Array) -> list[Rotation]:
    """The rotation of every embedding.

    positions (T,) int32; rope_variant (T,) int32, 1 where the token's sequence is longer than the longrope border.
    """
    tables = []
    for rope in ropes:
        frequencies = jnp.asarray(inverse_frequencies(rope, SHORT))  # (r / 2,)
        if rope.kind == "longrope":
            long = jnp.asarray(inverse_frequencies(rope, LONG))
            frequencies = jnp.where((rope_variant == LONG)[:, None], long, frequencies)  # (T, r / 2)
        angles = positions.astype(jnp.float32)[:, None] * frequencies
        cos, sin = jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor
        tables.append(Rotation(cos, sin, query_scale(rope, positions)))
    return tables


def query_scale(rope: RopeConfig, positions: jax.Array) -> jax.Array | None:
    """See `RopeConfig.query_scaling`. positions (T,) int32 -> (T,) float32, or None where queries are not scaled."""
    if rope.query_scaling == 0:
        return None
    stretches = positions // rope.original_max_position_embeddings
    return 1.0 + rope.query_scaling * jnp.log(1.0 + stretches.astype(jnp.float32))


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate x (T, heads, H) by cos, sin (T, r / 2); elements from r on pass through. In float32, rounded once."""
    half = cos.shape[-1]
    wide = x[..., : 2 * half].astype(jnp.float32)
    first, second = wide[..., :half], wide[..., half:]
    cos, sin = cos[:, None, :], sin[:, None, :]  # (T, 1, r / 2)
    rotated = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(x.dtype)
    return jnp.concatenate((rotated, x[..., 2 * half :]), axis=-1) if 2 * half < x.shape[-1] else rotated


def _one(value: float) -> np.float32:
    return np.float32(value)


def _periods(rope: RopeConfig) -> np.ndarray:
    """theta ** (2 i / r), (r / 2,) float32: the exponent rounded to float32, the power then exact to half a unit.

    The power is taken in float64 because float32 `pow` differs by a unit between maths libraries.
    """
    exponents = np.arange(0, rope.rotary_dim, 2, dtype=np.float32) / _one(rope.rotary_dim)
    return np.power(np.float64(rope.theta), exponents.astype(np.float64)).astype(np.float32)


def _llama3(rope: RopeConfig, frequencies: np.ndarray) -> np.ndarray:
    """Llama 3.1: long waves slowed down by `factor`, short ones kept, a linear blend between (arXiv:2407.21783)."""
    trained = rope.original_max_position_embeddings
    low, high = rope.low_freq_factor, rope.high_freq_factor
    waves = _one(2 * math.pi) / frequencies  # tokens per turn
    slowed = np.where(waves > _one(trained / low), frequencies / _one(rope.factor), frequencies)
    share = (_one(trained) / waves - _one(low)) / _one(high - low)
    blended = (_one(1.0) - share) * slowed / _one(rope.factor) + share * slowed
    between = ~(waves < _one(trained / high)) & ~(waves > _one(trained / low))
    return np.where(between, blended, slowed).astype(np.float32)


def _yarn(rope: RopeConfig, periods: np.ndarray) -> np.ndarray:
    """YaRN (Peng et al. 2023, arXiv:2309.00071): kept above `beta_fast` turns of the trained length, divided by
    `factor` below `beta_slow`, a linear ramp over the pairs between."""
    size = rope.rotary_dim

    def pair(turns: float) -> float:
        """The (fractional) pair that makes so many turns within the trained length."""
        ratio = rope.original_max_position_embeddings / (turns * 2 * math.pi)
        return size * math.log(ratio) / (2 * math.log(rope.theta))

    first, last = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    if first == last:
        last += 0.001  # a step instead of a division by zero
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - _one(first)) / _one(last - first), _one(0), _one(1))
    kept = _one(1.0) - ramp
    slow = _one(1.0) / (_one(rope.factor) * periods)
    return slow * (_one(1.0) - kept) + (_one(1.0) / periods) * kept
