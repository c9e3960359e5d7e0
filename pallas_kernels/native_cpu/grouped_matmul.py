"""Products with experts, of which one call takes those of all layers of a loop.

Legend: R rows, E experts, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.native_cpu.library import target_name
from pallas_kernels.native_cpu.matmul import MOST_INT8_INPUTS, check_mxfp4


def grouped_dense_matmul(
    x: jax.Array, weights: Sequence[jax.Array], layer: jax.Array, group_sizes: jax.Array, *, instructions: str
) -> jax.Array:
    """x (R, I), sorted by expert, times each row's expert of weights[layer] (E, O, I): (R, O) float32.

    A row has the bits that `matmul.dense_matmul` gives it, whatever stands beside it. Experts without rows are not
    read.

    Args:
        x, weights: all float32, or all bfloat16.
        layer: () int32, which of the weights.
        group_sizes: (E,) int32, rows of each expert; rows behind them are zero. What is negative or too much is cut.
        instructions: what `library.load` was called with.

    Raises:
        ValueError: types or shapes that do not fit together.
    """
    if x.dtype not in (jnp.float32, jnp.bfloat16) or any(w.dtype != x.dtype for w in weights):
        raise ValueError(f"x is {x.dtype} and a weight {weights[0].dtype}; both must be float32, or both bfloat16")
    outputs = _outputs(x, weights, group_sizes)
    call = _call("grouped_dense_matmul", x, outputs, instructions)
    return call(x, layer, group_sizes, *weights)


def grouped_quantized_matmul(
    x: jax.Array,
    values: Sequence[jax.Array],
    scales: Sequence[jax.Array],
    layer: jax.Array,
    group_sizes: jax.Array,
    *,
    instructions: str,
) -> jax.Array:
    """x (R, I), sorted by expert and rounded to int8 row by row, times its rows' experts: (R, O) float32.

    A row has the bits that `matmul.quantized_matmul` gives it.

    Args:
        x: float32 or bfloat16.
        values, scales: (E, O, I) int8 and (E, O) float32 of each layer.
        layer, group_sizes, instructions: as in `grouped_dense_matmul`.

    Raises:
        ValueError: types or shapes that do not fit together.
    """
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"x is {x.dtype}; it must be float32 or bfloat16")
    if any(v.dtype != jnp.int8 for v in values) or any(s.shape != values[0].shape[:2] for s in scales):
        raise ValueError("values must be int8, with one float32 scale for each output")
    if values[0].shape[-1] > MOST_INT8_INPUTS:
        raise ValueError(
            f"the weight has {values[0].shape[-1]} inputs; with more than {MOST_INT8_INPUTS} a sum may overflow"
        )
    outputs = _outputs(x, values, group_sizes)
    call = _call("grouped_quantized_matmul", x, outputs, instructions)
    return call(x, layer, group_sizes, *values, *scales)


def grouped_mxfp4_matmul(
    x: jax.Array,
    values: Sequence[jax.Array],
    scales: Sequence[jax.Array],
    layer: jax.Array,
    group_sizes: jax.Array,
    *,
    instructions: str,
) -> jax.Array:
    """x (R, I), sorted by expert, times its rows' experts in MXFP4: (R, O) float32.

    A row has the bits that `matmul.mxfp4_matmul` gives it.

    Args:
        x: float32 or bfloat16.
        values, scales: (E, O, I // 2) and (E, O, I // 32) uint8 of each layer.
        layer, group_sizes, instructions: as in `grouped_dense_matmul`.

    Raises:
        ValueError: types or shapes that do not fit together.
    """
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"x is {x.dtype}; it must be float32 or bfloat16")
    check_mxfp4(values, scales)
    outputs = _outputs(x, values, group_sizes, 2 * values[0].shape[-1])
    call = _call("grouped_mxfp4_matmul", x, outputs, instructions)
    return call(x, layer, group_sizes, *values, *scales)


def _call(name: str, x: jax.Array, outputs: int, instructions: str) -> jax.ffi.ffi_call:
    return jax.ffi.ffi_call(target_name(name, instructions), jax.ShapeDtypeStruct((x.shape[0], outputs), jnp.float32))


def _outputs(x: jax.Array, weights: Sequence[jax.Array], group_sizes: jax.Array, inputs: int | None = None) -> int:
    """O, once shapes have been checked. inputs: I, if it is not the last axis of a weight."""
    shape = weights[0].shape
    inputs = shape[-1] if inputs is None else inputs
    others = [w.shape for w in weights if w.shape != shape]
    if others:
        raise ValueError(f"weights have shapes {shape} and {others[0]}; those of a loop must have one")
    if len(shape) != 3 or x.ndim != 2 or x.shape[1] != inputs:
        raise ValueError(f"x has shape {x.shape}; with weights {shape} it must be (rows, {inputs})")
    if group_sizes.shape != shape[:1] or group_sizes.dtype != jnp.int32:
        found = f"{group_sizes.shape} {group_sizes.dtype}"
        raise ValueError(f"group_sizes is {found}; for {shape[0]} experts it must be ({shape[0]},) int32")
    return int(shape[1])
