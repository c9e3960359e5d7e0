"""What the kernels for Hopper of all ops share: how shared memory lies, and how it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

# Of products: registers of a thread that computes and of one that copies, by the warpgroups that compute: together no
# more than those that the block starts with.
REGISTERS = {4: (112, 24), 2: (232, 40)}


def tiled(shape: tuple[int, ...], dtype: np.dtype, columns: int) -> Any:
    """Shared memory of `shape` whose rows are read without conflicts `columns` at a time, which divide the last axis;
    in bfloat16 the last two axes lie as `wgmma` wants them."""
    swizzle = math.gcd(columns * dtype.itemsize, 128)
    if swizzle < 32:
        return plgpu.SMEM(shape, dtype)
    # Protocols that these two implement keep mypy from believing that they can be made.
    tiling: Any = plgpu.TilingTransform
    swizzling: Any = plgpu.SwizzleTransform
    return plgpu.SMEM(shape, dtype, transforms=(tiling((8, swizzle // dtype.itemsize)), swizzling(swizzle)))


def load(reference: Any, layout: Any) -> jax.Array:
    """All of a reference to shared memory. JAX 0.10 wants an index, and 0.11 wants none."""
    index = ((),) if jax.__version_info__ < (0, 11) else ()
    return plgpu.load(reference, *index, layout=layout, optimized=False)


def store(reference: Any, value: jax.Array) -> None:
    """Overwrites a reference to shared memory that is not tiled, where threads may wait for each other's banks.

    From JAX 0.12 on an assignment refuses such a store, and `plgpu.store` is there for it; earlier an assignment takes
    it as it is.
    """
    if hasattr(plgpu, "store"):
        plgpu.store(reference, value, optimized=False)
    else:
        reference[...] = value


def divide_warpgroups(
    computing: int,
    counter: Sequence[Any],
    compute: Callable[[jax.Array, jax.Array], jax.Array],
    copy: Callable[[jax.Array], jax.Array],
) -> None:
    """A block of a product's kernel: `computing` warpgroups compute, the one behind them copies.

    compute, copy: given the number of the warpgroup (compute alone) and that of the processor; they return the bytes
    that they brought, which go to each reference of `counter` (processors, warpgroups).
    """
    warpgroup, processor = lax.axis_index("warpgroup"), lax.axis_index("processor")
    compute_registers, copy_registers = REGISTERS.get(computing, (0, 0))

    def tell(moved: jax.Array) -> None:
        for reference in counter:
            reference[processor, warpgroup] = moved

    @pl.when(warpgroup < computing)
    def _() -> None:
        if compute_registers:
            plgpu.set_max_registers(compute_registers, action="increase")
        tell(compute(warpgroup, processor))

    @pl.when(warpgroup == computing)
    def _() -> None:
        if copy_registers:
            plgpu.set_max_registers(copy_registers, action="decrease")
        tell(copy(processor))
