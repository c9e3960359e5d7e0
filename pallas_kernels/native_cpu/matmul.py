"""Products with weights, of which one call takes those of all layers of a loop.

Legend: T tokens, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.mxfp4 import BLOCK
from pallas_kernels.native_cpu.library import target_name

MOST_INT8_INPUTS = 65_536  # 255 * 127 times as many fit into the int32 that they are summed in


def dense_matmul(
    x: jax.Array, weights: Sequence[jax.Array], layer: jax.Array, count: jax.Array, *, instructions: str
) -> jax.Array:
    """x (T, I) times weights[layer] (O, I), summed in float32: (T, O) float32.

    A row has the same bits whatever stands beside it.

    Args:
        x, weights: all float32, or all bfloat16.
        layer: () int32, which of the weights.
        count: () int32: rows from here on are not computed, and zero.
        instructions: what `library.load` was called with.

    Raises:
        ValueError: types or shapes that do not fit together.
    """
    outputs, _ = weights[0].shape
    if x.dtype not in (jnp.float32, jnp.bfloat16) or any(w.dtype != x.dtype for w in weights):
        raise ValueError(f"x is {x.dtype} and a weight {weights[0].dtype}; both must be float32, or both bfloat16")
    _check(x, weights)
    call = jax.ffi.ffi_call(
        target_name("dense_matmul", instructions), jax.ShapeDtypeStruct((x.shape[0], outputs), jnp.float32)
    )
    return call(x, layer, count, *weights)


def quantized_matmul(
    x: jax.Array,
    values: Sequence[jax.Array],
    scales: Sequence[jax.Array],
    layer: jax.Array,
    count: jax.Array,
    *,
    instructions: str,
) -> jax.Array:
    """x (T, I), rounded to int8 row by row, times values[layer] * scales[layer]: (T, O) float32.

    Sums are exact, so that the result has the bits of `quantized_matmul/xla.py`.

    Args:
        x: float32 or bfloat16.
        values, scales: (O, I) int8 and (O,) float32 of each layer.
        layer, count, instructions: as in `dense_matmul`.

    Raises:
        ValueError: types or shapes that do not fit together.
    """
    outputs, inputs = values[0].shape
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"x is {x.dtype}; it must be float32 or bfloat16")
    if any(v.dtype != jnp.int8 for v in values) or any(s.shape != (outputs,) for s in scales):
        raise ValueError("values must be int8, with one float32 scale for each output")
    if inputs > MOST_INT8_INPUTS:
        raise ValueError(f"the weight has {inputs} inputs; with more than {MOST_INT8_INPUTS} a sum may overflow")
    _check(x, values)
    call = jax.ffi.ffi_call(
        target_name("quantized_matmul", instructions), jax.ShapeDtypeStruct((x.shape[0], outputs), jnp.float32)
    )
    return call(x, layer, count, *values, *scales)


def mxfp4_matmul(
    x: jax.Array,
    values: Sequence[jax.Array],
    scales: Sequence[jax.Array],
    layer: jax.Array,
    count: jax.Array,
    *,
    instructions: str,
) -> jax.Array:
    """x (T, I) times a weight in MXFP4 of each layer, summed in float32: (T, O) float32.

    The result has the bits of `dense_matmul` with the same weights in x's type, which holds them exactly.

    Args:
        x: float32 or bfloat16.
        values, scales: (O, I // 2) and (O, I // 32) uint8 of each layer, as `qtensor.QTensor` has them.
        layer, count, instructions: as in `dense_matmul`.

    Raises:
        ValueError: types or shapes that do not fit together.
    """
    outputs, half = values[0].shape
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"x is {x.dtype}; it must be float32 or bfloat16")
    check_mxfp4(values, scales)
    _check(x, values, 2 * half)
    call = jax.ffi.ffi_call(
        target_name("mxfp4_matmul", instructions), jax.ShapeDtypeStruct((x.shape[0], outputs), jnp.float32)
    )
    return call(x, layer, count, *values, *scales)


def check_mxfp4(values: Sequence[jax.Array], scales: Sequence[jax.Array]) -> None:
    """Raises ValueError unless the layers' parts are (*E, O, I // 2) and (*E, O, I // 32) uint8."""
    if any(part.dtype != jnp.uint8 for part in (*values, *scales)):
        raise ValueError("values and scales must be uint8")
    *outputs, half = values[0].shape
    if half % (BLOCK // 2) or any(s.shape != (*outputs, 2 * half // BLOCK) for s in scales):
        raise ValueError(
            f"values have shape {values[0].shape} and scales {scales[0].shape}; values must be (outputs, inputs // 2) "
            f"and scales (outputs, inputs // {BLOCK})"
        )


def _check(x: jax.Array, weights: Sequence[jax.Array], inputs: int | None = None) -> None:
    shape = weights[0].shape
    inputs = shape[1] if inputs is None else inputs
    others = [w.shape for w in weights if w.shape != shape]
    if others:
        raise ValueError(f"weights have shapes {shape} and {others[0]}; those of a loop must have one")
    if x.ndim != 2 or x.shape[1] != inputs:
        raise ValueError(f"x has shape {x.shape}; with these weights it must be (tokens, {inputs})")
