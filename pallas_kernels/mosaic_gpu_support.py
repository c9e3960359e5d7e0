"""What the kernels for Hopper of all ops share: how shared memory lies, and how it is read."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu


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
