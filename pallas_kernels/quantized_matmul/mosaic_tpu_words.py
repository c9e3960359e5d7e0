"""Products with int4 weights that lie in words, inside of a TPU kernel: what several kernels share.

Legend: T tokens, N outputs that lie in the lanes, I inputs, A groups of g inputs.

The weight is kept as words (`qtensor.pack_int4_along_inputs`): (*L, I / 8, N) int32, outputs in the lanes, so that it
is the right factor of a product as it lies and nothing is transposed. A word holds 8 inputs of one output, of which
numbers s and s + 4 sit 16 bits apart. Shifted to the upper bits of a mantissa, masked, and filled up with the bits of
16.0, its two halves are the bfloat16 numbers 16 + q: three operations make two weights, without a conversion to float
and without packing, which the other ways need and generations before v6e do in float32 only. The halves of 8 rows of
words are 16 rows of bfloat16 in place, so a block of 64 inputs comes out in order.

Scales and zero points multiply the sums of a group in float32, not the weights: for T tokens that is 3 T / g operations
a weight. Scaling a weight would take at least 5 (widened to float32, shifted, scaled, rounded, packed), which pays from
some hundreds of tokens on, where the product takes longer than both. The same subtraction of the activations' sum times
the zero point takes the 16 away. A group of fewer than 128 inputs shares its lanes with others: the activations enter
once for each of them with the others set to zero, as more rows of one product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.qtensor import INT4_MIDDLE, NUMBERS_OF_A_WORD

ROWS_OF_A_TILE = 16  # of bfloat16
_LANES = 128
_MANTISSA = 3  # where a number starts in bfloat16: the upper four of seven bits
_HALVES = 0x00780078
_SIXTEEN = 0x41804180  # twice 16.0 in bfloat16: that bit is worth 1
_OFFSET = 16.0


@dataclasses.dataclass(frozen=True)
class WordsForm:
    """Static sizes of what is multiplied: T of a tile, I, g, and whether there are zero points."""

    tokens: int
    inputs: int
    group: int
    zeros: bool

    @property
    def unit(self) -> int:
        """Inputs of one product: of one group, or lanes that several share."""
        return next((size for size in (512, 256) if self.group % size == 0), _LANES)

    @property
    def groups(self) -> int:
        """A."""
        return self.inputs // self.group

    @property
    def groups_of_unit(self) -> int:
        return max(1, _LANES // self.group)


def three_bfloat16(x: jax.Array) -> list[jax.Array]:
    """x (T, I) float32 as three of (T, I) bfloat16, which add up to it: 24 bits of a mantissa are three times 8."""
    parts = []
    for _ in range(3):
        # By its bits: XLA may drop a conversion to bfloat16 that meets one back.
        high = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        parts.append(high.astype(jnp.bfloat16))
        x = x - high
    return parts


def shifts_of(zeros_ref: Any) -> jax.Array:
    """Zero points (A, N) uint8 as what `add_products` takes off the widened numbers: (A, N) float32."""
    return zeros_ref[...].astype(jnp.int32).astype(jnp.float32) + _OFFSET


def add_products(
    form: WordsForm,
    x_ref: Any,
    weight: tuple[Any, Callable[[Any], jax.Array], Any],
    sums_ref: Any,
    *,
    units: int,
    first: Any = 0,
    place: Any = 0,
) -> None:
    """Adds the products of a block of words, in the order of its inputs, to the sums.

    Args:
        x_ref: (T, at least place + units * unit) bfloat16, 0 behind the last input.
        weight: reference of words (units * unit / 8, N); a group's scales (1, N), by its number; reference of shifts
            (A, N), not looked at without zero points.
        sums_ref: (T, N) float32.
        units: of the block.
        first: the block's first input.
        place: where in x_ref that is.
    """
    words_ref, scales_of, shifts_ref = weight

    def one_unit(unit: Any, carry: None) -> None:
        begin = unit * form.unit
        x = x_ref[:, pl.ds(pl.multiple_of(place + begin, form.unit), form.unit)]
        rows = form.unit // NUMBERS_OF_A_WORD
        weights = widened(words_ref[pl.ds(pl.multiple_of(unit * rows, rows), rows), :])
        first_group = (first + begin) // form.group
        stacked = _for_each_group(form, x)
        sums = jnp.dot(stacked, weights, precision=lax.Precision.DEFAULT, preferred_element_type=jnp.float32)
        totals = jnp.sum(stacked.astype(jnp.float32), axis=1, keepdims=True)
        for number in range(form.groups_of_unit):
            # Behind the last group there are activations of 0 only.
            group = jnp.minimum(first_group + number, form.groups - 1)
            part = slice(number * form.tokens, (number + 1) * form.tokens)
            shift = shifts_ref[pl.ds(group, 1), :] if form.zeros else _OFFSET + INT4_MIDDLE
            sums_ref[...] += (sums[part] - totals[part] * shift) * scales_of(group)

    lax.fori_loop(0, units, one_unit, None)


def widened(words: jax.Array) -> jax.Array:
    """Words (R, N) int32 as bfloat16 (8 R, N): 16 more than the numbers that they hold, in order."""
    shifted = [words << _MANTISSA, *(words >> (4 * s - _MANTISSA) for s in range(1, 4))]
    halves = [pltpu.bitcast((part & _HALVES) | _SIXTEEN, jnp.bfloat16) for part in shifted]  # (2 R, N)
    rows = range(0, 2 * words.shape[0], ROWS_OF_A_TILE)
    return jnp.concatenate([half[row : row + ROWS_OF_A_TILE] for row in rows for half in halves])


def _for_each_group(form: WordsForm, x: jax.Array) -> jax.Array:
    """x (T, unit) once for each group that has inputs in it, those of the others 0: (groups * T, unit)."""
    if form.groups_of_unit == 1:
        return x
    group = lax.broadcasted_iota(jnp.int32, x.shape, 1) // form.group
    wide = x.astype(jnp.float32)  # not every generation selects in bfloat16
    return jnp.concatenate(
        [jnp.where(group == number, wide, 0.0).astype(x.dtype) for number in range(form.groups_of_unit)]
    )
