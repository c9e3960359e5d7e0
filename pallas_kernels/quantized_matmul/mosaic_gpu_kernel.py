"""The kernel of `mosaic_gpu.py`: blocks of threads that take one tile of outputs and one part of the inputs at a time.

Legend: T tokens, N outputs, I inputs, A groups, C warpgroups that compute, Z parts of the inputs.

One warpgroup of a block copies: packed weights and activations, by the tensor memory accelerator, into a ring of
buffers in shared memory that does not run dry between two pieces of work. The others have 64 outputs each, whose
numbers they widen in registers (`mosaic_gpu_int4.py`). Sums of one group are multiplied by their scales in float32, so
no weight is ever rounded.

Scales and zero points are read from memory straight into registers, a block ahead of their use. Rows of outputs that
would lie behind the last one are moved in front of it; they are computed twice.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic_gpu_int4 import M_ROWS, add_block, load_factors
from pallas_kernels.mosaic_gpu_support import divide_warpgroups, store
from pallas_kernels.quantized_matmul.mosaic_gpu_plan import HopperMatmulPlan, HopperMatmulScratch, scratch_types


def launch(
    plan: HopperMatmulPlan, x: jax.Array, values: jax.Array, scales: jax.Array, zeros: jax.Array | None, interpret: Any
) -> tuple[jax.Array, ...]:
    """Runs the kernel.

    Args:
        x: (token_tiles * tile, I) bfloat16, permuted.
        values: (N, I // 2) uint8.
        scales, zeros: (N, A).

    Returns:
        Sums (Z, row_tiles * rows, token_tiles * tile) float32; rows behind N repeat others, see `mosaic_gpu.py`. If
        `plan.count_copies`, also the bytes of the weight that each warpgroup brought, (blocks of threads, C + 1) int32.
    """
    sums = (plan.parts, plan.row_tiles * plan.rows, plan.token_tiles * plan.tile)
    out_types = [jax.ShapeDtypeStruct(sums, jnp.float32)]
    if plan.count_copies:
        out_types.append(jax.ShapeDtypeStruct((plan.processors, plan.warpgroups + 1), jnp.int32))
    sources = [scales] if zeros is None else [scales, zeros]
    return plgpu.kernel(
        functools.partial(_kernel, plan=plan),
        out_type=tuple(out_types),
        grid=(plan.processors,),
        grid_names=("processor",),
        scratch_types=scratch_types(plan, bool(interpret)),
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, approx_math=True, reduction_scratch_bytes=0
        ),
        num_threads=plan.warpgroups + 1,
        thread_name="warpgroup",
        interpret=interpret,
        kernel_name="quantized_matmul_int4",
    )(x, values, *sources)


def _kernel(x: Any, values: Any, *refs: Any, plan: HopperMatmulPlan) -> None:
    """One block of threads."""
    sources, refs = refs[: 1 + plan.zeros], refs[1 + plan.zeros :]
    out, refs = refs[0], refs[1:]
    counter, scratch = refs[: plan.count_copies], HopperMatmulScratch(*refs[plan.count_copies :])
    divide_warpgroups(
        plan.warpgroups,
        counter,
        lambda warpgroup, processor: _compute(plan, sources, out, scratch, warpgroup, processor),
        lambda processor: _copy(plan, x, values, scratch, processor),
    )


class _Item(NamedTuple):
    """A piece of work."""

    part: jax.Array
    row_tile: jax.Array
    token_tile: jax.Array
    begin: jax.Array  # blocks of inputs, begin <= block < end
    end: jax.Array


def _item(plan: HopperMatmulPlan, number: jax.Array) -> _Item:
    tiles = jnp.int32(plan.token_tiles)
    outer = lax.div(number, tiles)
    part = lax.div(outer, jnp.int32(plan.row_tiles))
    begin = part * plan.blocks_of_part
    end = jnp.minimum(begin + plan.blocks_of_part, plan.blocks)
    return _Item(part, lax.rem(outer, jnp.int32(plan.row_tiles)), lax.rem(number, tiles), begin, end)


def _first_row(plan: HopperMatmulPlan, item: _Item, warpgroup: Any) -> jax.Array:
    """The first of a warpgroup's outputs."""
    return jnp.minimum(item.row_tile * plan.rows, plan.num_outputs - plan.rows) + warpgroup * M_ROWS


def _turns(plan: HopperMatmulPlan, processor: jax.Array) -> jax.Array:
    """How many pieces of work a block of threads takes: number `processor`, and every `plan.processors`-th from it."""
    return lax.div(plan.items - 1 - processor, jnp.int32(plan.processors)) + 1


def _copy(plan: HopperMatmulPlan, x: Any, values: Any, scratch: HopperMatmulScratch, processor: jax.Array) -> jax.Array:
    """The warpgroup that copies: fills every stage of the ring that the others have read. Returns bytes of weights."""
    width = plan.block // 2

    def of_item(turn: jax.Array, step: jax.Array) -> jax.Array:
        item = _item(plan, processor + turn * plan.processors)
        tokens = pl.ds(item.token_tile * plan.tile, plan.tile)

        def of_block(block: jax.Array, step: jax.Array) -> jax.Array:
            stage = lax.rem(step, jnp.int32(plan.stages))
            filled = scratch.filled.at[stage]
            plgpu.barrier_wait(scratch.read.at[stage])
            for warpgroup in range(plan.warpgroups):
                rows = pl.ds(_first_row(plan, item, warpgroup), M_ROWS)
                source = values.at[rows, pl.ds(block * width, width)]
                plgpu.copy_gmem_to_smem(source, scratch.values.at[stage, warpgroup], filled)
            source = x.at[tokens, pl.ds(block * plan.block, plan.block)]
            plgpu.copy_gmem_to_smem(source, scratch.x.at[stage], filled)
            return step + 1

        return lax.fori_loop(item.begin, item.end, of_block, step)

    steps = lax.fori_loop(jnp.int32(0), _turns(plan, processor), of_item, jnp.int32(0))
    for stage in range(plan.stages):  # nobody arrives at a barrier that is gone
        plgpu.barrier_wait(scratch.read.at[stage])
    return steps * (plan.rows * width)


def _compute(
    plan: HopperMatmulPlan,
    sources: tuple[Any, ...],
    out: Any,
    scratch: HopperMatmulScratch,
    warpgroup: jax.Array,
    processor: jax.Array,
) -> jax.Array:
    """A warpgroup that computes 64 outputs of every piece. Returns bytes of scales and zero points."""
    for stage in range(plan.stages):  # all of them may be filled
        plgpu.barrier_arrive(scratch.read.at[stage])
    turns = _turns(plan, processor)

    def of_item(turn: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        item = _item(plan, processor + turn * plan.processors)
        # The last piece looks ahead at itself, which brings nothing new.
        following = _item(plan, processor + jnp.minimum(turn + 1, turns - 1) * plan.processors)

        def of_block(block: jax.Array, carry: tuple[Any, Any, jax.Array]) -> tuple[Any, Any, jax.Array]:
            total, factors, step = carry
            inside = block + 1 < item.end
            row = jnp.where(inside, _first_row(plan, item, warpgroup), _first_row(plan, following, warpgroup))
            ahead = load_factors(plan.cut, sources, row, jnp.where(inside, block + 1, following.begin))
            stage = lax.rem(step, jnp.int32(plan.stages))
            plgpu.barrier_wait(scratch.filled.at[stage])
            total = _add_block(plan, total, factors, scratch, stage, warpgroup)
            plgpu.barrier_arrive(scratch.read.at[stage])
            return total, ahead, step + 1

        factors, step = carry
        nothing = plgpu.layout_cast(jnp.zeros((M_ROWS, plan.tile), jnp.float32), plgpu.Layout.WGMMA)
        total, factors, step = lax.fori_loop(item.begin, item.end, of_block, (nothing, factors, step))
        _store(plan, out, item, scratch.results.at[warpgroup], warpgroup, total)
        return factors, step

    first = _item(plan, processor)
    factors = load_factors(plan.cut, sources, _first_row(plan, first, warpgroup), first.begin)
    _, steps = lax.fori_loop(jnp.int32(0), turns, of_item, (factors, jnp.int32(0)))
    plgpu.wait_smem_to_gmem(0)
    return steps * (plan.cut.scales * M_ROWS * sum(source.dtype.itemsize for source in sources))


def _add_block(
    plan: HopperMatmulPlan,
    total: jax.Array,
    factors: Any,
    scratch: HopperMatmulScratch,
    stage: jax.Array,
    warpgroup: jax.Array,
) -> jax.Array:
    """total (64, tile) and the products of a block's inputs."""
    widened = scratch.widened[0].at[warpgroup] if scratch.widened else None
    return add_block(plan.cut, total, factors, scratch.values.at[stage, warpgroup], scratch.x.at[stage], widened)


def _store(plan: HopperMatmulPlan, out: Any, item: _Item, staging: Any, warpgroup: jax.Array, total: jax.Array) -> None:
    """Writes the sums of a piece through shared memory, which the piece before may still be leaving."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    store(staging, total)
    plgpu.commit_smem()
    rows = pl.ds(item.row_tile * plan.rows + warpgroup * M_ROWS, M_ROWS)
    tokens = pl.ds(item.token_tile * plan.tile, plan.tile)
    plgpu.copy_smem_to_gmem(staging, out.at[item.part, rows, tokens])
