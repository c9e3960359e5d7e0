"""Products with experts, of which one call takes those of all layers of a loop.

Legend: R rows, E experts, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.native_cpu.matmul import check_alike, check_dense, check_int8, check_mxfp4, product_call


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
    check_dense(x, weights)
    outputs = _outputs(x, weights, group_sizes)
    call = product_call("grouped_dense_matmul", x, outputs, instructions)
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
    check_int8(x, values, scales)
    outputs = _outputs(x, values, group_sizes)
    call = product_call("grouped_quantized_matmul", x, outputs, instructions)
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
    check_mxfp4(x, values, scales)
    outputs = _outputs(x, values, group_sizes, 2 * values[0].shape[-1])
    call = product_call("grouped_mxfp4_matmul", x, outputs, instructions)
    return call(x, layer, group_sizes, *values, *scales)


def _outputs(x: jax.Array, weights: Sequence[jax.Array], group_sizes: jax.Array, inputs: int | None = None) -> int:
    """O, once shapes have been checked. inputs: I, if it is not the last axis of a weight."""
    shape = check_alike(weights)
    inputs = shape[-1] if inputs is None else inputs
    if len(shape) != 3 or x.ndim != 2 or x.shape[1] != inputs:
        raise ValueError(f"x has shape {x.shape}; with weights {shape} it must be (rows, {inputs})")
    if group_sizes.shape != shape[:1] or group_sizes.dtype != jnp.int32:
        found = f"{group_sizes.shape} {group_sizes.dtype}"
        raise ValueError(f"group_sizes is {found}; for {shape[0]} experts it must be ({shape[0]},) int32")
    return int(shape[1])
