"""What Hopper's kernels for int4 weights share: numbers widened in registers, and their products with activations.

A warpgroup has 64 outputs. It reads packed bytes into registers, 8 numbers of 4 bits to a register, and widens them
there: a number q becomes the bfloat16 128 + q, whose bits are 0x4300 | q, two of them by one shift and one mask.
Subtracting 128 and the zero point is exact. What comes out is the first factor of `wgmma` without leaving the
registers; the second one, the activations, comes from shared memory. Sums of one group are multiplied by their scales
in float32, so no weight is ever rounded.

For 128 numbers of a thread that is, in PTX, 48 shifts, and 64 masks, offsets and subtractions each.

Widening puts every 32 inputs in another order, that in which a thread finds them: input 8j + 4h + p comes to place
8p + 2j + h. `permuted` does the same with activations.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic_gpu_support import load
from pallas_kernels.qtensor import INT4_MIDDLE

M_ROWS = 64  # outputs of a warpgroup's matrix product
PERMUTED = 32  # inputs that are put into another order among themselves
_MOST_GROUPS = 2  # of a block: their scales and zero points wait in registers, and so do the next block's
_OFFSET = 128  # a bfloat16 has seven bits behind its leading one: 128 + q has q in the lowest four
_PAIR_MASK, _PAIR_OFFSET = 0x000F000F, 0x43004300


@dataclasses.dataclass(frozen=True)
class Int4Blocks:
    """How the inputs of a weight are cut: blocks that are copied at once, of groups that share a scale."""

    block: int
    group: int

    @classmethod
    def of(cls, num_inputs: int, group: int, largest: int = 256) -> Int4Blocks:
        """256 inputs are rows of 128 bytes; fewer where they do not divide I, or hold too many groups. 32 divides
        `num_inputs` and `group`."""
        for size in (256, 128, 64):
            fits = size % group == 0 or group % size == 0
            if size <= largest and num_inputs % size == 0 and fits and size // group <= _MOST_GROUPS:
                return cls(size, group)
        return cls(32, group)

    @property
    def unit(self) -> int:
        """Inputs of one product: they share a scale, and lie in one block."""
        return math.gcd(self.group, self.block, 128)

    @property
    def scales(self) -> int:
        """Scales that an output has in a block."""
        return max(1, self.block // self.group)


def permuted(x: jax.Array) -> jax.Array:
    """Activations (T, I) with their inputs in the order in which a kernel widens weights."""
    parts = x.reshape(x.shape[0], x.shape[1] // PERMUTED, 4, 2, 4)  # j, h, p
    return parts.transpose(0, 1, 4, 2, 3).reshape(x.shape)


def load_factors(cut: Int4Blocks, sources: tuple[Any, ...], row: Any, block: Any) -> list[list[jax.Array]]:
    """The scales of 64 outputs from `row` on in a block, and then their zero points if there are any: each (64,).

    Args:
        sources: in memory, (N, A).
    """
    rows = pl.ds(row, M_ROWS)
    first = block * cut.scales if cut.block >= cut.group else lax.div(block, jnp.int32(cut.group // cut.block))
    layout = plgpu.Layout.WGMMA.reduce(1)
    return [[load(source.at[rows, first + number], layout) for number in range(cut.scales)] for source in sources]


def add_block(
    cut: Int4Blocks, total: jax.Array, factors: list[list[jax.Array]], values: Any, x: Any, widened: Any
) -> jax.Array:
    """total (64, T) and the products of a block's inputs.

    Args:
        factors: of `load_factors`.
        values: (64, block // 2) uint8, in shared memory.
        x: (T, block) bfloat16, permuted, in shared memory.
        widened: (64, unit) bfloat16 in the interpreter, which takes both factors of a product from references; or None.
    """
    packed = load(values, plgpu.Layout.WGMMA_8BIT)
    for begin in range(0, cut.block, cut.unit):
        number = begin // cut.group if cut.block >= cut.group else 0
        wide = _widened(packed[:, begin // 2 : (begin + cut.unit) // 2], widened is not None)
        if len(factors) > 1:
            zero = (factors[1][number].astype(jnp.float32) + float(_OFFSET)).astype(jnp.bfloat16)
            wide -= lax.broadcast_in_dim(zero, wide.shape, [0])
        else:
            wide -= jnp.bfloat16(_OFFSET + INT4_MIDDLE)
        columns = x.at[:, pl.ds(begin, cut.unit)].transpose((1, 0))
        scales = lax.broadcast_in_dim(factors[0][number].astype(jnp.float32), total.shape, [0])
        total += _product((M_ROWS, total.shape[1]), wide, columns, widened) * scales
    return total


def _widened(packed: jax.Array, interpreted: bool) -> jax.Array:
    """Bytes (64, n) as bfloat16 (64, 2n): 128 and the number, in the order of `permuted`."""
    if interpreted:  # the same in operations on whole arrays
        return unpacked(packed).astype(jnp.bfloat16) + jnp.bfloat16(_OFFSET)
    return widen(packed, _pair_of_bits)


def unpacked(packed: jax.Array) -> jax.Array:
    """Bytes (64, n) as numbers 0..15 (64, 2n), in the order of `permuted`: for the interpreter."""
    rows, width = packed.shape
    halves = jnp.stack([packed & 15, packed >> 4], axis=-1)
    numbers = halves.reshape(rows, 2 * width // PERMUTED, 4, 2, 4).transpose(0, 1, 4, 2, 3)
    return numbers.reshape(rows, 2 * width)


def widen(packed: jax.Array, pair_of_bits: Callable[[Any, int], Any]) -> jax.Array:
    """Bytes (64, n) in registers as bfloat16 (64, 2n), in the order of `permuted`.

    Args:
        pair_of_bits: makes a word of two bfloat16 of a word of eight numbers, from those at bit 4 * place and 16 bits
            higher, with MLIR's operations.
    """
    rows, width = packed.shape
    layout = plgpu.Layout.WGMMA
    result = plgpu.ShapeDtypeStruct((rows, 2 * width), jnp.dtype(jnp.bfloat16), layout=layout)
    run = functools.partial(_widen_registers, pair_of_bits=pair_of_bits)
    return plgpu.inline_mgpu(arg_types=(plgpu.Layout.WGMMA_8BIT,), return_type=result)(run)(packed)


def _pair_of_bits(bits: Any, place: int) -> Any:
    from jax._src.lib.mlir import ir
    from jax._src.lib.mlir.dialects import arith
    from jax.experimental.mosaic.gpu import utils

    word = ir.IntegerType.get_signless(32)
    shifted = arith.shrui(bits, utils.c(4 * place, word)) if place else bits
    return arith.ori(arith.andi(shifted, utils.c(_PAIR_MASK, word)), utils.c(_PAIR_OFFSET, word))


def _widen_registers(context: Any, packed: Any, pair_of_bits: Callable[[Any, int], Any] = _pair_of_bits) -> Any:
    """Registers of four bytes, two for each 16 columns (rows 8 apart), as four times as many of two bfloat16."""
    import numpy as np
    from jax._src.lib.mlir import ir
    from jax.experimental.mosaic.gpu import fragmented_array, utils

    del context
    pair = ir.VectorType.get((2,), ir.BF16Type.get())
    word = ir.IntegerType.get_signless(32)
    rows, width = packed.shape
    shape = fragmented_array.WGMMA_LAYOUT.registers_shape((rows, 2 * width))
    bytes_of = packed.registers.reshape(width // 16, 2)
    wide = np.empty((width // 16, 4, 2), dtype=object)
    for (column, half), register in np.ndenumerate(bytes_of):
        bits = utils.bitcast(register, word)
        for place in range(4):
            wide[column, place, half] = utils.bitcast(pair_of_bits(bits, place), pair)
    return fragmented_array.FragmentedArray(
        _registers=wide.reshape(shape), _layout=fragmented_array.WGMMA_LAYOUT, _is_signed=None
    )


def _product(shape: tuple[int, int], wide: jax.Array, x: Any, widened: Any) -> jax.Array:
    """wide (64, unit) in registers times x (unit, T) in shared memory: (64, T) float32."""
    factor: Any = wide
    if widened is not None:
        factor = widened
        factor[...] = wide
        plgpu.commit_smem()

    def accumulate(acc: Any) -> jax.Array:
        plgpu.wgmma(acc, factor, x)
        return acc[...]

    return pl.run_scoped(accumulate, plgpu.ACC(shape, jnp.float32))
