"""MXFP4 weights on Hopper: numbers widened in registers, and their products with activations.

They lie as int4 does (`mosaic_gpu_int4.py`): two numbers to a byte, blocks of 32 with one scale, so the order of the
widened inputs is the same, too. A number's bits s, ee, m (E2M1) become those of a bfloat16: its sign, the lowest two of
its exponent, the highest of its mantissa. That is the number times 2^-126, zero and 0.5 included, since one half is
below the smallest normal number in both types. Multiplied by 2^126 and by its block's scale, 2^(e - 127), it is the
weight, exactly: a weight has two significant bits and bfloat16 the exponent's range. So products are summed over blocks
without a look at scales, two blocks at a time, whose factors wait in registers.

For two numbers of a thread that is two shifts, two operations on bits and two multiplications.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic_gpu_int4 import M_ROWS, Int4Blocks, unpacked, widen
from pallas_kernels.mosaic_gpu_support import load

GROUP = 32  # inputs of a block of the format
_AT_ONCE = 2  # blocks of the format whose products run at the same time
_SIGNS, _MAGNITUDES = 0x80008000, 0x01C001C0
_NAN_SCALE = 255


def blocks_of(num_inputs: int) -> Int4Blocks:
    """How the inputs of a weight are cut, 32 of which divide them. 192 inputs are rows of 96 bytes, whose scales still
    have room in registers, and divide 2,880, the width of gpt-oss."""
    return Int4Blocks(next(size for size in (192, 128, 64, 32) if num_inputs % size == 0), GROUP)


def add_block(
    cut: Int4Blocks, total: jax.Array, factors: list[list[jax.Array]], values: Any, x: Any, widened: Any
) -> jax.Array:
    """total (64, T) and the products of a block's inputs.

    Args:
        factors: of `mosaic_gpu_int4.load_factors`: exponents, each (64,) uint8.
        values: (64, block // 2) uint8, in shared memory.
        x: (T, block) bfloat16, permuted, in shared memory.
        widened: (64, 32) bfloat16 in the interpreter, which takes both factors of a product from references; or None.
    """
    packed = load(values, plgpu.Layout.WGMMA_8BIT)

    def weight(number: int) -> jax.Array:
        wide = _widened(packed[:, number * GROUP // 2 : (number + 1) * GROUP // 2], widened is not None)
        return wide * lax.broadcast_in_dim(_power(factors[0][number]), wide.shape, [0])

    for first in range(0, cut.scales, _AT_ONCE):
        numbers = range(first, min(first + _AT_ONCE, cut.scales))
        if widened is not None:  # nor does the interpreter take sums to begin with
            for number in numbers:
                widened[...] = weight(number)
                plgpu.commit_smem()
                total += pl.run_scoped(
                    _products([(widened, _inputs(x, number))]), plgpu.ACC((M_ROWS, total.shape[1]), jnp.float32)
                )
            continue
        products = _products([(weight(number), _inputs(x, number)) for number in numbers], read=False)
        total = pl.run_state(products)(plgpu.ACC.init(total))
    return total


def _inputs(x: Any, number: int) -> Any:
    """A block of the format's inputs of x (T, I): (32, T)."""
    return x.at[:, pl.ds(number * GROUP, GROUP)].transpose((1, 0))


def _products(factors: list[tuple[Any, Any]], read: bool = True) -> Callable[[Any], Any]:
    """What adds products of factors (64, 32) and (32, T) to an accumulator, and reads it."""

    def accumulate(acc: Any) -> Any:
        for weight, x in factors:
            plgpu.wgmma(acc, weight, x)
        return acc[...] if read else None

    return accumulate


def _power(exponents: jax.Array) -> jax.Array:
    """Exponents (64,) uint8 as 2^(e - 127) bfloat16, and 255 as NaN."""
    numbers = exponents.astype(jnp.int32)
    # 2^-127 is below the smallest normal number: half of it.
    power = lax.bitcast_convert_type(jnp.where(numbers == 0, 1 << 22, numbers << 23), jnp.float32)
    return jnp.where(numbers == _NAN_SCALE, jnp.nan, power).astype(jnp.bfloat16)


def _widened(packed: jax.Array, interpreted: bool) -> jax.Array:
    """Bytes (64, 16) as numbers (64, 32) bfloat16, in the order of `permuted`."""
    if not interpreted:
        return widen(packed, _pair_of_bits) * jnp.bfloat16(2.0**126)
    numbers = unpacked(packed).astype(jnp.int32)
    exponent, mantissa = (numbers >> 1) & 3, (numbers & 1).astype(jnp.float32) * 0.5
    leading = jnp.where(exponent == 0, 0.0, 1.0)
    size = (leading + mantissa) * jnp.where(exponent == 3, 4.0, jnp.where(exponent == 2, 2.0, 1.0))
    return jnp.where(numbers > 7, -size, size).astype(jnp.bfloat16)


def _pair_of_bits(bits: Any, place: int) -> Any:
    """Two numbers of a word, 16 bits apart, as bfloat16 less 126 in the exponent."""
    from jax._src.lib.mlir import ir
    from jax._src.lib.mlir.dialects import arith
    from jax.experimental.mosaic.gpu import utils

    word = ir.IntegerType.get_signless(32)
    # The sign comes to the highest bit of 16; what crosses their border is masked.
    high = arith.shli(bits, utils.c(12 - 4 * place, word)) if place < 3 else bits
    signs = arith.andi(high, utils.c(_SIGNS, word))
    return arith.ori(signs, arith.andi(arith.shrui(high, utils.c(6, word)), utils.c(_MAGNITUDES, word)))
