"""MXFP4: numbers of 4 bits (E2M1) in blocks of 32, each block with a power of two (E8M0) as its scale.

From "OCP Microscaling Formats (MX) Specification", version 1.0. A number's highest bit is its sign, then two bits of
exponent (bias 1), then one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6. A scale's byte e stands for 2^(e - 127), and 255
for NaN.

Every product of a number and a scale has two significant bits and an exponent of bfloat16's range: bfloat16 holds it
exactly, also where it is below that type's smallest normal number, unless it is 2^128 or more, which becomes infinity.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 32
NAN_SCALE = 255
_LARGEST_EXPONENT = 2  # of a number: 4 = 2^2
# Between two neighbours, half way: to the even mantissa, which is the lower neighbour (False) or the upper one.
_BORDERS = ((0.25, False), (0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False))


@partial(jax.jit, inline=True)
def decode(codes: jax.Array, scales: jax.Array) -> jax.Array:
    """Numbers 0..15 (...) times scales, uint8 of a shape that broadcasts to theirs: (...) bfloat16, exact.

    Bits are put together as integers: devices flush products that are below the smallest normal number.
    """
    codes, exponents = codes.astype(jnp.int32), scales.astype(jnp.int32)
    magnitudes = codes & 7
    # 0.5 is the one number without a leading bit; as 1.0 * 2^-1 it has the same form as the others.
    mantissas = jnp.where(magnitudes > 1, magnitudes & 1, 0) << 6
    biased = exponents + (magnitudes >> 1) - 1
    normal = (biased << 7) | mantissas
    below = (128 | mantissas) >> jnp.clip(1 - biased, 0, 2)
    bits = jnp.where(biased >= 1, jnp.minimum(normal, 0x7F80), below)
    bits = jnp.where(magnitudes == 0, 0, bits) | ((codes & 8) << 12)
    bits = jnp.where(exponents == NAN_SCALE, 0x7FC0, bits)
    return lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.bfloat16)


@partial(jax.jit, inline=True)
def encode(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blocks (..., 32) float32 as numbers 0..15 (..., 32) uint8 and scales (...) uint8.

    The specification's rule: a block's scale is the power of two that brings its largest magnitude to at least 4 and
    below 8; numbers are rounded to nearest, ties to even, and what is above 6 becomes 6. A block that is not finite has
    the scale NaN.
    """
    exponents = lax.bitcast_convert_type(jnp.max(jnp.abs(weight), axis=-1), jnp.int32) >> 23
    scales = jnp.where(exponents == 255, NAN_SCALE, jnp.maximum(exponents - _LARGEST_EXPONENT, 0))
    # 2^(127 - scale) by its bits; a scale that is not NaN is at most 252.
    inverse = lax.bitcast_convert_type(jnp.clip(254 - scales, 1, 254) << 23, jnp.float32)
    scaled = weight * inverse[..., None]
    magnitudes = jnp.abs(scaled)
    codes = sum((magnitudes >= at if up else magnitudes > at).astype(jnp.uint8) for at, up in _BORDERS)
    signs = (lax.bitcast_convert_type(weight, jnp.uint32) >> 28).astype(jnp.uint8) & 8
    return codes | signs, scales.astype(jnp.uint8)
