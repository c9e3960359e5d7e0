"""Products with weights, of which one call takes those of all layers of a loop.

Legend: T tokens, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    check_dense(x, weights)
    _check(x, weights)
    call = product_call("dense_matmul", x, outputs, instructions)
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
    outputs, _ = values[0].shape
    check_int8(x, values, scales)
    _check(x, values)
    call = product_call("quantized_matmul", x, outputs, instructions)
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
    check_mxfp4(x, values, scales)
    _check(x, values, 2 * half)
    call = product_call("mxfp4_matmul", x, outputs, instructions)
    return call(x, layer, count, *values, *scales)


def product_call(name: str, x: jax.Array, outputs: int, instructions: str) -> Callable[..., jax.Array]:
    """The kernel `name`, which makes (rows of x, outputs) float32."""
    return jax.ffi.ffi_call(target_name(name, instructions), jax.ShapeDtypeStruct((x.shape[0], outputs), jnp.float32))


def check_dense(x: jax.Array, weights: Sequence[jax.Array]) -> None:
    """Raises ValueError unless x and all weights are float32, or all bfloat16."""
    if x.dtype not in (jnp.float32, jnp.bfloat16) or any(w.dtype != x.dtype for w in weights):
        raise ValueError(f"x is {x.dtype} and a weight {weights[0].dtype}; both must be float32, or both bfloat16")


def check_int8(x: jax.Array, values: Sequence[jax.Array], scales: Sequence[jax.Array]) -> None:
    """Raises ValueError unless x is of floating point and the layers' parts are (*E, O, I) int8 and (*E, O)."""
    _check_floating(x)
    *outputs, inputs = values[0].shape
    if any(v.dtype != jnp.int8 for v in values) or any(s.shape != tuple(outputs) for s in scales):
        raise ValueError("values must be int8, with one float32 scale for each output")
    if inputs > MOST_INT8_INPUTS:
        raise ValueError(f"the weight has {inputs} inputs; with more than {MOST_INT8_INPUTS} a sum may overflow")


def check_mxfp4(x: jax.Array, values: Sequence[jax.Array], scales: Sequence[jax.Array]) -> None:
    """Raises ValueError unless x is of floating point and the layers' parts are (*E, O, I // 2) and (*E, O, I // 32)
    uint8."""
    _check_floating(x)
    if any(part.dtype != jnp.uint8 for part in (*values, *scales)):
        raise ValueError("values and scales must be uint8")
    *outputs, half = values[0].shape
    if half % (BLOCK // 2) or any(s.shape != (*outputs, 2 * half // BLOCK) for s in scales):
        raise ValueError(
            f"values have shape {values[0].shape} and scales {scales[0].shape}; values must be (outputs, inputs // 2) "
            f"and scales (outputs, inputs // {BLOCK})"
        )


def check_alike(weights: Sequence[jax.Array]) -> tuple[int, ...]:
    """The shape that the weights of all layers have. Raises ValueError where they have two."""
    shape = weights[0].shape
    others = [w.shape for w in weights if w.shape != shape]
    if others:
        raise ValueError(f"weights have shapes {shape} and {others[0]}; those of a loop must have one")
    return shape


def _check_floating(x: jax.Array) -> None:
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"x is {x.dtype}; it must be float32 or bfloat16")


def _check(x: jax.Array, weights: Sequence[jax.Array], inputs: int | None = None) -> None:
    shape = check_alike(weights)
    inputs = shape[1] if inputs is None else inputs
    if x.ndim != 2 or x.shape[1] != inputs:
        raise ValueError(f"x has shape {x.shape}; with these weights it must be (tokens, {inputs})")
