"""Root mean square norm in one pass over the rows that are real. Legend: R rows, D columns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.native_cpu.library import target_name

COLUMNS_MULTIPLE = 16  # lanes of the widest vector


def normalize(
    x: jax.Array,
    weight: jax.Array,
    count: jax.Array,
    *,
    eps: float,
    offset: float,
    scale_float32: bool,
    instructions: str,
) -> jax.Array:
    """x / rms(x) * (weight + offset), computed in float32: (R, D) in x's type.

    A row has the same bits whatever stands beside it.

    Args:
        x, weight: (R, D) and (D,), both float32 or both bfloat16, D a multiple of `COLUMNS_MULTIPLE`.
        count: () int32: rows from here on are not computed, and zero.
        scale_float32: round once, after the scale; else before it as well.
        instructions: what `library.load` was called with.

    Raises:
        ValueError: types or shapes that do not fit.
    """
    if x.dtype not in (jnp.float32, jnp.bfloat16) or weight.dtype != x.dtype:
        raise ValueError(f"x is {x.dtype} and the weight {weight.dtype}; both must be float32, or both bfloat16")
    if x.ndim != 2 or weight.shape != x.shape[1:] or x.shape[1] % COLUMNS_MULTIPLE:
        raise ValueError(
            f"x has shape {x.shape} and the weight {weight.shape}; they must be (rows, columns) and (columns,), a "
            f"multiple of {COLUMNS_MULTIPLE}"
        )
    call = jax.ffi.ffi_call(target_name("norm", instructions), jax.ShapeDtypeStruct(x.shape, x.dtype))
    return call(x, weight, count, eps=np.float32(eps), offset=np.float32(offset), scale_float32=np.int64(scale_float32))
