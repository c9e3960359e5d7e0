"""The grouped product in plain XLA.

On a GPU arrays go through `lax.ragged_dot_general`, which XLA has products of its own for. Elsewhere, and for quantized
weights, blocks of rows run in a loop, each with one expert: what is widened or copied of the weights is one expert at a
time, and experts without rows are not read. (Of a ragged dot XLA:CPU makes products with every expert; on a TPU it is a
kernel that wants the outputs last, so all experts are copied before every product.)

Legend: R rows, E experts, *O output axes of an expert, I its inputs, B rows of a block.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.qtensor import QTensor
from pallas_kernels.quantized_matmul import xla as quantized

# Fewer rows than 8 are summed in another order by XLA:CPU; more than 64 bring nothing.
_FEWEST_ROWS, _MOST_ROWS = 8, 64


def grouped_matmul(
    x: jax.Array, weight: jax.Array | QTensor, group_sizes: jax.Array, *, target: DeviceTarget
) -> jax.Array:
    """See `api.grouped_matmul`."""
    if isinstance(weight, QTensor) or target.platform != "gpu":
        return _in_blocks(x, weight, group_sizes, target)
    return _ragged(x, weight, group_sizes)


def _ragged(x: jax.Array, weight: jax.Array, group_sizes: jax.Array) -> jax.Array:
    experts, *outputs, inputs = weight.shape
    numbers = lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
    )
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    y = lax.ragged_dot_general(
        x,
        weight.reshape(experts, -1, inputs),
        group_sizes,
        numbers,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    # What a ragged dot leaves in rows of no group is not said.
    real = jnp.arange(x.shape[0]) < jnp.sum(group_sizes)
    return jnp.where(real[:, None], y, 0.0).reshape(x.shape[0], *outputs)


def _in_blocks(x: jax.Array, weight: jax.Array | QTensor, group_sizes: jax.Array, target: DeviceTarget) -> jax.Array:
    """Each group is cut into blocks of B rows, the last of which is filled up with rows that are thrown away."""
    rows, outputs = x.shape[0], weight.shape[1:-1]
    block = _rows_of_a_block(rows, weight.shape[0])
    ends = jnp.cumsum(group_sizes)
    last_block = jnp.cumsum((group_sizes + block - 1) // block)  # of each expert, one past it

    def add(number: jax.Array, y: jax.Array) -> jax.Array:
        expert = jnp.searchsorted(last_block, number, side="right", method="compare_all")
        # Counted from the expert's end: its last block is the one that is not full.
        size, begin = group_sizes[expert], ends[expert] - group_sizes[expert]
        done = block * (number - (last_block[expert] - (size + block - 1) // block))
        places = begin + done + jnp.arange(block)
        places = jnp.where(places < ends[expert], places, rows)  # beyond the last: not written
        part = x.at[places].get(mode="clip")
        return y.at[places].set(_of_one(part, _expert(weight, expert), target), mode="drop")

    empty = jnp.zeros((rows, *outputs), jnp.float32)
    return lax.fori_loop(0, last_block[-1], add, empty)


def _rows_of_a_block(rows: int, experts: int) -> int:
    """A power of two near what an expert has if all have the same."""
    block = _FEWEST_ROWS
    while block < _MOST_ROWS and block * experts < rows:
        block *= 2
    return block


def _expert(weight: jax.Array | QTensor, index: jax.Array) -> jax.Array | QTensor:
    def pick(part: jax.Array) -> jax.Array:
        return lax.dynamic_index_in_dim(part, index, keepdims=False)

    if not isinstance(weight, QTensor):
        return pick(weight)
    zeros = None if weight.zeros is None else pick(weight.zeros)
    return dataclasses.replace(weight, values=pick(weight.values), scales=pick(weight.scales), zeros=zeros)


def _of_one(x: jax.Array, weight: jax.Array | QTensor, target: DeviceTarget) -> jax.Array:
    """x (B, I) times (*O, I): (B, *O) float32."""
    if isinstance(weight, QTensor):
        return quantized.quantized_matmul(x, weight, target=target, merge=True)
    *outputs, inputs = weight.shape
    matrix = weight.reshape(-1, inputs)
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    contract = (((1,), (1,)), ((), ()))
    y = lax.dot_general(x, matrix, contract, precision=precision, preferred_element_type=jnp.float32)
    return y.reshape(x.shape[0], *outputs)
