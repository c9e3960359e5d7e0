"""The kernel of `mosaic_gpu.py`: blocks of threads that take one item at a time, rows of an expert by some outputs.

Legend: R rows, E experts, N outputs and I inputs of an expert, A groups of inputs, C warpgroups that compute, W the
most tiles that rows can be cut into.

How many items there are is known on the device only (`Tiles`). A block of threads takes every `plan.processors`-th of
them; there are no more blocks than multiprocessors, and none waits for the host. The tiles of rows of an expert follow
each other on the same outputs, so that its weights leave memory once and the others find them in the level 2 cache.
Padding behind the last expert's rows is one more expert without inputs: its sums stay zero, and are stored as such.

One warpgroup of a block copies: weights and rows, by the tensor memory accelerator, into a ring of buffers in shared
memory that does not run dry between two items. The others have 64 outputs each, which are the first factor of `wgmma`;
the rows are the second one, whose size may be any multiple of 8, so that an expert with few rows costs few products.
There is a loop for each width of a product, and each takes all inputs in the same order: a row's sums do not depend on
its width, nor on its place. Numbers in 4 bits are widened in registers (`mosaic_gpu_int4.py`, `mosaic_gpu_mxfp4.py`).

The rows of an item begin anywhere, and what is copied of them ends within x: near its end the window begins earlier,
with rows of other experts in front, whose sums are not stored. Sums leave through shared memory, turned so that an
output row lies together, in pieces of 1, 2, 4, ... rows: the item's own and no others.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import mosaic_gpu_int4, mosaic_gpu_mxfp4
from pallas_kernels.grouped_matmul.mosaic_gpu_plan import HopperGroupedPlan, HopperGroupedScratch, scratch_types
from pallas_kernels.mosaic_gpu_int4 import M_ROWS, load_factors
from pallas_kernels.mosaic_gpu_support import divide_warpgroups, store


class Tiles(NamedTuple):
    """How rows are cut into tiles, on the device: int32, (W + 1,). The last entry lies behind all tiles.

    Attributes:
        expert: whose rows a tile has; E for padding, and behind all tiles.
        begin: the first row of that expert.
        size: the rows of that expert; 0 for padding.
        first: that expert's first tile.
    """

    expert: Any
    begin: Any
    size: Any
    first: Any


def launch(
    plan: HopperGroupedPlan, tiles: Tiles, x: jax.Array, weights: tuple[jax.Array, ...], interpret: Any
) -> tuple[jax.Array, ...]:
    """Runs the kernel.

    Args:
        x: (R, I) bfloat16; permuted for weights in 4 bits.
        weights: (E, N, I) bfloat16; or values (E, N, I // 2) uint8, scales (E, N, A), and zero points if there are any.

    Returns:
        Sums (R, output_tiles * 64) float32, the last 64 of which are those of the last 64 outputs. If
        `plan.count_copies`, also the bytes of weights that each warpgroup brought, (blocks of threads, C + 1) int32.
    """
    out_types = [jax.ShapeDtypeStruct((plan.num_rows, plan.output_tiles * M_ROWS), jnp.float32)]
    if plan.count_copies:
        out_types.append(jax.ShapeDtypeStruct((plan.processors, plan.warpgroups + 1), jnp.int32))
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
        kernel_name=f"grouped_matmul_{plan.kind or 'bfloat16'}",
    )(*tiles, x, *weights)


def _kernel(*refs: Any, plan: HopperGroupedPlan) -> None:
    """One block of threads."""
    tiles, refs = Tiles(*refs[:4]), refs[4:]
    count = 1 if plan.kind is None else 2 + plan.zeros
    x, (values, *sources), refs = refs[0], refs[1 : 1 + count], refs[1 + count :]
    out, refs = refs[0], refs[1:]
    counter, scratch = refs[: plan.count_copies], HopperGroupedScratch(*refs[plan.count_copies :])

    def compute(warpgroup: jax.Array, processor: jax.Array) -> jax.Array:
        for stage in range(plan.stages):  # all of them may be filled
            plgpu.barrier_arrive(scratch.read.at[stage])
        run = _compute if plan.kind is None else _compute_packed
        moved = run(plan, tiles, tuple(sources), out, scratch, warpgroup, processor)
        plgpu.wait_smem_to_gmem(0)
        return moved

    divide_warpgroups(
        plan.warpgroups, counter, compute, lambda processor: _copy(plan, tiles, x, values, scratch, processor)
    )


class _Item(NamedTuple):
    """A piece of work."""

    expert: jax.Array
    wide_tile: jax.Array  # of outputs
    row: jax.Array  # the first one
    rows: jax.Array  # how many
    width: jax.Array  # index of the narrowest of `plan.widths` that holds them
    window: jax.Array  # the first row that is copied
    blocks: jax.Array  # of inputs; 0 for padding


def _item(plan: HopperGroupedPlan, tiles: Tiles, number: jax.Array) -> _Item:
    wide_tiles = jnp.int32(plan.wide_tiles)
    tile = lax.div(number, wide_tiles)
    expert, begin = tiles.expert[tile], tiles.begin[tile]
    is_padding = expert == plan.num_experts
    end = jnp.where(is_padding, plan.num_rows, begin + tiles.size[tile])
    # Tiles of an expert's rows, within tiles of its outputs.
    inside = number - tiles.first[tile] * wide_tiles
    row_tiles = _tiles_of(plan, end - begin)
    row = begin + lax.rem(inside, row_tiles) * plan.tile
    count = jnp.minimum(end - row, plan.tile)
    width, window = jnp.int32(0), jnp.minimum(row, plan.num_rows - plan.widths[0])
    for index, (narrower, size) in enumerate(zip(plan.widths, plan.widths[1:], strict=False)):
        width = jnp.where(count > narrower, index + 1, width)
        window = jnp.where(count > narrower, jnp.minimum(row, plan.num_rows - size), window)
    return _Item(
        expert=jnp.minimum(expert, plan.num_experts - 1),
        wide_tile=lax.div(inside, row_tiles),
        row=row,
        rows=count,
        width=width,
        window=window,
        blocks=jnp.where(is_padding, jnp.int32(0), jnp.int32(plan.blocks)),
    )


def _tiles_of(plan: HopperGroupedPlan, rows: jax.Array) -> jax.Array:
    return lax.div(rows + (plan.tile - 1), jnp.int32(plan.tile))


def _tile_of(plan: HopperGroupedPlan, item: _Item, warpgroup: Any) -> jax.Array:
    """A warpgroup's tile of 64 outputs; from `plan.output_tiles` on it has none."""
    return item.wide_tile * plan.warpgroups + warpgroup


def _first_output(plan: HopperGroupedPlan, item: _Item, warpgroup: Any) -> jax.Array:
    """The first of a warpgroup's outputs; some other one where it has none."""
    return jnp.minimum(_tile_of(plan, item, warpgroup) * M_ROWS, plan.num_outputs - M_ROWS)


def _turns(plan: HopperGroupedPlan, tiles: Tiles, processor: jax.Array) -> jax.Array:
    """How many items a block of threads takes: number `processor`, and every `plan.processors`-th from it."""
    padding = plan.num_rows - tiles.begin[plan.row_tiles]
    items = (tiles.first[plan.row_tiles] + _tiles_of(plan, padding)) * plan.wide_tiles
    return lax.div(items - processor + (plan.processors - 1), jnp.int32(plan.processors))


def _copy(
    plan: HopperGroupedPlan, tiles: Tiles, x: Any, values: Any, scratch: HopperGroupedScratch, processor: jax.Array
) -> jax.Array:
    """The warpgroup that copies: fills every stage of the ring that the others have read. Returns bytes of weights."""
    columns = plan.block if plan.kind is None else plan.block // 2

    def of_item(turn: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        item = _item(plan, tiles, processor + turn * plan.processors)
        tiles_left = jnp.minimum(plan.output_tiles - item.wide_tile * plan.warpgroups, plan.warpgroups)

        def of_block(block: jax.Array, step: jax.Array) -> jax.Array:
            stage = lax.rem(step, jnp.int32(plan.stages))
            filled = scratch.filled.at[stage]
            plgpu.barrier_wait(scratch.read.at[stage])
            for warpgroup in range(plan.warpgroups):
                rows = pl.ds(_first_output(plan, item, warpgroup), M_ROWS)
                source = values.at[item.expert, rows, pl.ds(block * columns, columns)]
                _copy_if(warpgroup < tiles_left, source, scratch.values.at[stage, warpgroup], filled)
            inputs = pl.ds(block * plan.block, plan.block)

            def rows_of(width: int) -> None:
                source = x.at[pl.ds(item.window, width), inputs]
                plgpu.copy_gmem_to_smem(source, scratch.x.at[stage, pl.ds(0, width)], filled)

            _switch(item.width, [functools.partial(rows_of, width) for width in plan.widths])
            return step + 1

        step, moved = carry
        return lax.fori_loop(jnp.int32(0), item.blocks, of_block, step), moved + item.blocks * tiles_left

    turns = _turns(plan, tiles, processor)
    _, moved = lax.fori_loop(jnp.int32(0), turns, of_item, (jnp.int32(0), jnp.int32(0)))
    for stage in range(plan.stages):  # nobody arrives at a barrier that is gone
        plgpu.barrier_wait(scratch.read.at[stage])
    return moved * (M_ROWS * plan.block_bytes)


def _copy_if(condition: Any, source: Any, target: Any, barrier: Any) -> None:
    """Starts a copy, or arrives in its place."""

    @pl.when(condition)
    def _() -> None:
        plgpu.copy_gmem_to_smem(source, target, barrier)

    @pl.when(jnp.logical_not(condition))
    def _() -> None:
        plgpu.barrier_arrive(barrier)


def _switch(index: jax.Array, branches: list[Any]) -> None:
    """Runs one of several functions for what it does."""
    for number, branch in enumerate(branches):
        pl.when(index == number)(branch)


def _compute(
    plan: HopperGroupedPlan,
    tiles: Tiles,
    sources: tuple[Any, ...],
    out: Any,
    scratch: HopperGroupedScratch,
    warpgroup: jax.Array,
    processor: jax.Array,
) -> jax.Array:
    """A warpgroup that computes with weights in bfloat16. Returns bytes of scales: there are none."""
    del sources

    def of_item(turn: jax.Array, step: jax.Array) -> jax.Array:
        item = _item(plan, tiles, processor + turn * plan.processors)
        busy = _tile_of(plan, item, warpgroup) < plan.output_tiles

        def of_width(width: int) -> None:
            total = pl.run_scoped(
                functools.partial(_sums, plan, scratch, warpgroup, item.blocks, step, width),
                plgpu.ACC((M_ROWS, width), jnp.float32),
            )
            _store(plan, out, item, scratch.results.at[warpgroup], warpgroup, total)

        branches = [functools.partial(of_width, width) for width in plan.widths]
        _switch(jnp.where(busy, item.width, len(branches)), branches)
        pl.when(jnp.logical_not(busy))(functools.partial(_pass, plan, scratch, item.blocks, step))
        return step + item.blocks

    lax.fori_loop(jnp.int32(0), _turns(plan, tiles, processor), of_item, jnp.int32(0))
    return jnp.int32(0)


def _sums(
    plan: HopperGroupedPlan,
    scratch: HopperGroupedScratch,
    warpgroup: jax.Array,
    blocks: jax.Array,
    step: jax.Array,
    width: int,
    acc: Any,
) -> jax.Array:
    """Sums over blocks of inputs, the first of which lies in stage `step` of the ring: (64, width) float32.

    A block's products run while the next one's are waited for, so a stage is given back a block later.
    """

    def give_back(step: jax.Array) -> None:
        plgpu.barrier_arrive(scratch.read.at[lax.rem(step, jnp.int32(plan.stages))])

    def of_block(block: jax.Array, _: None) -> None:
        stage = lax.rem(step + block, jnp.int32(plan.stages))
        plgpu.barrier_wait(scratch.filled.at[stage])
        _start_products(plan, scratch, stage, warpgroup, width, acc)
        plgpu.wgmma_wait(plan.block // plan.unit)
        pl.when(block > 0)(lambda: give_back(step + block - 1))

    lax.fori_loop(jnp.int32(0), blocks, of_block, None)
    total = acc[...]
    pl.when(blocks > 0)(lambda: give_back(step + blocks - 1))
    return total


def _start_products(
    plan: HopperGroupedPlan,
    scratch: HopperGroupedScratch,
    stage: jax.Array,
    warpgroup: jax.Array,
    width: int,
    acc: Any,
) -> None:
    """acc (64, width) += products of a block's inputs, in bfloat16."""
    for begin in range(0, plan.block, plan.unit):
        inputs = pl.ds(begin, plan.unit)
        factor = scratch.values.at[stage, warpgroup, :, inputs]
        if scratch.factors:  # the interpreter looks for races where a reference is loaded, not where `wgmma` reads it
            loaded, factor = factor[...], scratch.factors[0].at[warpgroup]
            factor[...] = loaded
            plgpu.commit_smem()
        plgpu.wgmma(acc, factor, scratch.x.at[stage, pl.ds(0, width), inputs].transpose((1, 0)))


def _pass(plan: HopperGroupedPlan, scratch: HopperGroupedScratch, blocks: jax.Array, step: jax.Array) -> None:
    """What a warpgroup without outputs does with an item."""

    def of_block(block: jax.Array, _: None) -> None:
        stage = lax.rem(step + block, jnp.int32(plan.stages))
        plgpu.barrier_wait(scratch.filled.at[stage])
        plgpu.barrier_arrive(scratch.read.at[stage])

    lax.fori_loop(jnp.int32(0), blocks, of_block, None)


def _compute_packed(
    plan: HopperGroupedPlan,
    tiles: Tiles,
    sources: tuple[Any, ...],
    out: Any,
    scratch: HopperGroupedScratch,
    warpgroup: jax.Array,
    processor: jax.Array,
) -> jax.Array:
    """A warpgroup that computes with weights in 4 bits. Returns bytes of scales and zero points."""
    turns = _turns(plan, tiles, processor)
    widened = scratch.factors[0].at[warpgroup] if scratch.factors else None
    add_block = mosaic_gpu_mxfp4.add_block if plan.kind == "mxfp4" else mosaic_gpu_int4.add_block

    def of_item(turn: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        step, moved = carry
        item = _item(plan, tiles, processor + turn * plan.processors)
        busy = _tile_of(plan, item, warpgroup) < plan.output_tiles
        row, of_expert = _first_output(plan, item, warpgroup), tuple(source.at[item.expert] for source in sources)

        def of_block(block: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            total, factors = carry
            # A block ahead of their use; the last one looks at itself, which brings nothing new.
            ahead = load_factors(plan.cut, of_expert, row, jnp.minimum(block + 1, plan.blocks - 1))
            stage = lax.rem(step + block, jnp.int32(plan.stages))
            plgpu.barrier_wait(scratch.filled.at[stage])
            rows = scratch.x.at[stage, pl.ds(0, total.shape[1])]
            total = add_block(plan.cut, total, factors, scratch.values.at[stage, warpgroup], rows, widened)
            plgpu.barrier_arrive(scratch.read.at[stage])
            return total, ahead

        def of_width(width: int) -> None:
            nothing = plgpu.layout_cast(jnp.zeros((M_ROWS, width), jnp.float32), plgpu.Layout.WGMMA)
            factors = load_factors(plan.cut, of_expert, row, jnp.int32(0))
            total, _ = lax.fori_loop(jnp.int32(0), item.blocks, of_block, (nothing, factors))
            _store(plan, out, item, scratch.results.at[warpgroup], warpgroup, total)

        branches = [functools.partial(of_width, width) for width in plan.widths]
        _switch(jnp.where(busy, item.width, len(branches)), branches)
        pl.when(jnp.logical_not(busy))(functools.partial(_pass, plan, scratch, item.blocks, step))
        return step + item.blocks, moved + jnp.where(busy, item.blocks, 0)

    _, moved = lax.fori_loop(jnp.int32(0), turns, of_item, (jnp.int32(0), jnp.int32(0)))
    return moved * (plan.cut.scales * M_ROWS * sum(source.dtype.itemsize for source in sources))


def _store(
    plan: HopperGroupedPlan, out: Any, item: _Item, staging: Any, warpgroup: jax.Array, total: jax.Array
) -> None:
    """Writes an item's rows of total (64, width), through shared memory, which rows before may still be leaving."""
    width, outputs = total.shape[1], pl.ds(_tile_of(plan, item, warpgroup) * M_ROWS, M_ROWS)
    begin = item.row - item.window
    for first in range(0, width, plan.stored):
        size = min(plan.stored, width - first)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        turned = plgpu.layout_cast(total[:, first : first + size], plgpu.Layout.WGMMA_TRANSPOSED)
        store(staging.at[pl.ds(0, size)].transpose((1, 0)), turned)
        plgpu.commit_smem()
        place = jnp.clip(begin - first, 0, size)
        left = jnp.clip(begin + item.rows - first, 0, size) - place
        for bit in reversed(range(size.bit_length())):

            def copy(rows: int = 1 << bit, place: jax.Array = place, first: int = first) -> None:
                target = out.at[pl.ds(item.window + first + place, rows), outputs]
                plgpu.copy_smem_to_gmem(staging.at[pl.ds(place, rows)], target)

            pl.when((left & (1 << bit)) != 0)(copy)
            place += left & (1 << bit)
