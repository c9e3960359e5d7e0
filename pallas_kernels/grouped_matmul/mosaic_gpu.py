"""The grouped product for Hopper GPUs, weights in bfloat16 or int4: the launch of the kernel in `mosaic_gpu_kernel.py`.

Legend: R rows, E experts, N outputs and I inputs of an expert.

What a step with few rows costs is the bytes of the experts that have any. XLA makes a dense product with all experts of
a ragged dot there: with 128 experts of 1,536 x 2,048 it reads 805 MB for 8 rows, and writes each row out 128 times,
though at most 8 experts, 50 MB, are touched. The kernel reads those.

- Up to 64 rows no expert has more than one tile of rows, so each weight is read once. An item is 64 outputs for each of
  two warpgroups, or of four with int4: many small items keep 132 multiprocessors busy with few experts.
- Beyond, tiles have up to 128 rows; four warpgroups share each with 256 outputs (two with int4, for its registers). An
  expert's tiles follow each other on the same outputs and find them in the level 2 cache.
- Inputs are never cut into parts whose sums would be added later: a row's bits are the same in every plan.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.grouped_matmul.mosaic_gpu_kernel import Tiles, launch
from pallas_kernels.grouped_matmul.mosaic_gpu_plan import HopperGroupedPlan, plan_of
from pallas_kernels.mosaic_gpu_int4 import M_ROWS, permuted
from pallas_kernels.qtensor import QTensor


@functools.partial(jax.jit, static_argnames=("target", "interpret", "count_copies"))
def grouped_matmul(
    x: jax.Array,
    weight: jax.Array | QTensor,
    group_sizes: jax.Array,
    *,
    target: DeviceTarget,
    interpret: Any = False,
    count_copies: bool = False,
) -> Any:
    """See `api.grouped_matmul`. Jitted so that a model's equal layers are traced and lowered once.

    Args:
        interpret: an `InterpretGPUParams` of Pallas runs the kernel on the CPU.
        count_copies: for debugging: a second result, () int32, says how many bytes of weights, scales and zero points
            left memory, or the level 2 cache.
    """
    del target
    num_rows, (num_experts, *outputs, num_inputs) = x.shape[0], weight.shape
    padding = -num_rows % 8
    make_plan = functools.partial(
        plan_of, num_rows + padding, num_experts, math.prod(outputs), num_inputs, count_copies=count_copies
    )
    arrays: tuple[jax.Array | None, ...]
    if isinstance(weight, QTensor):
        plan = make_plan(kind=weight.kind, group=weight.group, zeros=weight.zeros is not None)
        arrays, x = (weight.values, weight.scales, weight.zeros), permuted(x)
    else:
        plan, arrays = make_plan(), (weight,)
    flat = tuple(array.reshape(num_experts, -1, array.shape[-1]) for array in arrays if array is not None)
    x = jnp.pad(x, ((0, padding), (0, 0)))
    out = launch(plan, tiles_of(plan, group_sizes), x, flat, interpret)
    y = _in_place(plan, out[0])[:num_rows].reshape(num_rows, *outputs)
    return (y, jnp.sum(out[1], dtype=jnp.int32)) if count_copies else y


def tiles_of(plan: HopperGroupedPlan, group_sizes: jax.Array) -> Tiles:
    """How rows in groups of `group_sizes` (E,) are cut into tiles.

    Written as sums over experts, of which XLA makes two small kernels: `cumsum`, `searchsorted` and lookups would be
    five, and at decode sizes the whole product takes little longer than ten.
    """
    tiles = -(-group_sizes // plan.tile)
    expert, place = (jnp.arange(size, dtype=jnp.int32) for size in (plan.num_experts, plan.row_tiles + 1))
    ends = jnp.sum(jnp.where(expert[:, None] >= expert, tiles, 0), axis=1, dtype=jnp.int32)
    before = ends <= place[:, None]
    inside = (ends - tiles <= place[:, None]) & ~before

    def over_experts(values: jax.Array | int, chosen: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(chosen, values, 0), axis=1, dtype=jnp.int32)

    return Tiles(
        expert=over_experts(1, before),
        begin=over_experts(group_sizes, before),
        size=over_experts(group_sizes, inside),
        first=over_experts(tiles, before),
    )


def _in_place(plan: HopperGroupedPlan, sums: jax.Array) -> jax.Array:
    """Sums (R, output_tiles * 64) as (R, N), without outputs that the last tile has in common with the one before."""
    whole = (plan.output_tiles - 1) * M_ROWS
    if whole + M_ROWS == plan.num_outputs:
        return sums
    return jnp.concatenate([sums[:, :whole], sums[:, whole + M_ROWS - (plan.num_outputs - whole) :]], axis=1)
