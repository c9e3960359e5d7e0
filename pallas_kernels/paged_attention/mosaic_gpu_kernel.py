"""The kernel of `mosaic_gpu.py`: a block of threads attends with 64 or 128 query vectors to one part of a row's keys.

Legend: S rows, MP page-table width, K kv heads, H head_dim, P pages, L keys of a block, W pieces of work, M query
vectors of a piece per kv head, Z parts.

A warpgroup (128 threads) walks the blocks of L = 64 keys that its piece sees. Pages are copied by the tensor memory
accelerator into a ring of buffers in shared memory, several blocks ahead; a page larger than a block is copied in
slices, and pages that the piece does not see are not copied. Their barrier counts an arrival for each page, so a page
that is left out arrives without bytes.

Where rows decode, memory is the limit: one warpgroup copies and computes, and two such blocks of threads share a
multiprocessor. Tiles of a prompt are limited by copies and products alike: two warpgroups compute on the same keys, and
a third one, with few registers, copies for them.

Scores and weighted values are `wgmma` products of bfloat16 with sums in float32. The softmax is the online one (Milakov
and Gimelshein, 2018), in float32 and to base 2. Blocks that every query sees whole take a path without masks; the
others mask the scores, and replace the values that nobody sees by zeros, as those may be NaN and 0 * NaN is NaN: in
place, or in a buffer of its own where two warpgroups read them.

Quantized pages are widened to bfloat16 exactly, through registers into a buffer of their own, as the second factor of
`wgmma` comes from shared memory. Their scales multiply scores and weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic_gpu_support import load, store
from pallas_kernels.paged_attention import layout
from pallas_kernels.paged_attention.mosaic_gpu_plan import BLOCK_KEYS, M_ROWS, HopperPlan, HopperScratch, scratch_types
from pallas_kernels.paged_attention.mosaic_gpu_view import View, view_of
from pallas_kernels.paged_attention.work import Pieces

# Registers of a thread where 384 threads share the 65,536 of a multiprocessor.
_COMPUTE_REGISTERS, _COPY_REGISTERS = 232, 40
_LOWEST = float(np.finfo(np.float32).min)
_LOG2E = math.log2(math.e)


def launch(
    plan: HopperPlan,
    pieces: Pieces,
    tables: jax.Array,
    q: jax.Array,
    k_pages: layout.Pages,
    v_pages: layout.Pages,
    interpret: Any,
) -> tuple[jax.Array, ...]:
    """Runs the kernel over a list of work.

    Args:
        tables: (S, MP) int32.
        q: (W, K, M, H) bfloat16.

    Returns:
        out (W, K, M, H) bfloat16; or, if `plan.partial`, out (Z, W, K, M, H), and the highest score and the sum of
        weights (Z, W, K, M), all float32. Unspecified behind `pieces.total`. If `plan.count_copies`, also how many
        copies of K and V together each block of threads started, (Z, W, K) int32.
    """
    num_pieces, num_kv_heads, rows, head_dim = q.shape
    sources: list[jax.Array] = []
    for page in (k_pages, v_pages):
        sources += [page.values, page.scales] if isinstance(page, layout.QuantizedPages) else [page]
    shape = (plan.parts, num_pieces, num_kv_heads, rows)
    out_types = [jax.ShapeDtypeStruct((*shape, head_dim), jnp.float32 if plan.partial else q.dtype)]
    if plan.partial:
        out_types += [jax.ShapeDtypeStruct(shape, jnp.float32)] * 2
    if plan.count_copies:
        out_types.append(jax.ShapeDtypeStruct(shape[:-1], jnp.int32))
    out = plgpu.kernel(
        functools.partial(_kernel, plan=plan, num_sources=len(sources)),
        out_type=tuple(out_types),
        grid=(plan.parts, num_pieces, num_kv_heads),
        grid_names=("part", "piece", "head"),
        scratch_types=scratch_types(plan, bool(interpret)),
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, approx_math=True, reduction_scratch_bytes=0
        ),
        num_threads=plan.warpgroups + 1 if plan.warpgroups > 1 else None,
        thread_name="warpgroup" if plan.warpgroups > 1 else None,
        interpret=interpret,
        kernel_name="paged_attention_decode" if plan.decoding else "paged_attention_tiles",
    )(pieces.total.reshape(1), pieces.row, pieces.base, pieces.length, tables, q, *sources)
    return tuple(out) if plan.partial else (out[0][0], *out[1:])


def _kernel(
    total: Any, row: Any, base: Any, length: Any, tables: Any, q: Any, *refs: Any, plan: HopperPlan, num_sources: int
) -> None:
    """One block of threads: one warpgroup that also copies, or two and a third that copies for them."""
    sources, refs = refs[:num_sources], refs[num_sources:]
    num_outs = 3 if plan.partial else 1
    outs, refs = refs[:num_outs], refs[num_outs:]
    counter, scratch = refs[: plan.count_copies], HopperScratch(*refs[plan.count_copies :])
    part, piece, head = (lax.axis_index(name) for name in ("part", "piece", "head"))
    if not plan.decoding:  # the last tile of a prompt sees most keys: it begins first
        piece = total[0] - 1 - piece

    @pl.when((piece >= 0) & (piece < total[0]))
    def _() -> None:
        view = view_of(plan, base[piece], length[piece], part)
        start = functools.partial(_start, plan, view, tables.at[row[piece]], sources, head, scratch)

        def tell(copies: jax.Array) -> None:
            for reference in counter:
                reference[part, piece, head] = copies

        if plan.warpgroups == 1:
            target = [out.at[part, piece, head] for out in outs]
            single = length[piece] == 1 if plan.decoding and plan.tile > 1 else None
            queries = q.at[piece, head]
            tell(_compute(plan, view, scratch.of(0), queries, target, base[piece], start, single=single))
            return
        warpgroup = lax.axis_index("warpgroup")

        @pl.when(warpgroup < plan.warpgroups)
        def _() -> None:
            plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
            rows = pl.ds(warpgroup * M_ROWS, M_ROWS)
            target = [out.at[part, piece, head, rows] for out in outs]
            source = q.at[piece, head, rows]
            _compute(plan, view, scratch.of(warpgroup), source, target, base[piece], None, warpgroup * M_ROWS)

        @pl.when(warpgroup == plan.warpgroups)
        def _() -> None:
            plgpu.set_max_registers(_COPY_REGISTERS, action="decrease")
            tell(_copy_all(plan, view, scratch, start))


def _copy_all(plan: HopperPlan, view: View, scratch: HopperScratch, start: Any) -> jax.Array:
    """The warpgroup that copies: fills the ring, and then every stage of it that the others have read.

    Returns how many copies it started, ().
    """

    def refill(block: jax.Array, copies: jax.Array) -> jax.Array:
        stage = lax.rem(block - view.begin, jnp.int32(plan.stages))
        plgpu.barrier_wait(scratch.read_barriers[0].at[stage])
        return copies + start(block, stage)

    copies = _fill(plan, view, start)
    return lax.fori_loop(jnp.minimum(view.begin + plan.stages, view.end), view.end, refill, copies)


def _fill(plan: HopperPlan, view: View, start: Any) -> jax.Array:
    return sum(
        (_start_if(view.begin + stage < view.end, start, view.begin + stage, stage) for stage in range(plan.stages)),
        jnp.int32(0),
    )


def _start_if(condition: jax.Array, start: Any, block: jax.Array, stage: Any) -> jax.Array:
    return lax.cond(condition, lambda: start(block, stage), lambda: jnp.int32(0))


def _compute(
    plan: HopperPlan,
    view: View,
    scratch: HopperScratch,
    q: Any,
    outs: list[Any],
    base: jax.Array,
    start: Any,
    first_row: Any = 0,
    single: jax.Array | None = None,
) -> jax.Array:
    """A warpgroup that computes. It copies for itself if it is given `start`, and else says what it has read.

    `single` says whether the piece has one token only; None: nothing depends on that.

    Returns how many copies it started, ().
    """

    def fetch(rows: int) -> None:
        plgpu.copy_gmem_to_smem(q.at[pl.ds(0, rows)], scratch.q.at[pl.ds(0, rows)], scratch.q_barriers)

    _by_rows(plan, single, fetch)
    copies = jnp.int32(0) if start is None else _fill(plan, view, start)
    plgpu.barrier_wait(scratch.q_barriers)
    vector = plgpu.broadcasted_iota(jnp.int32, (M_ROWS,), 0, layout=plgpu.Layout.WGMMA.reduce(1)) + first_row
    position = base + lax.div(vector, jnp.int32(plan.group))

    def step(block: jax.Array, carry: tuple[Any, jax.Array], *, border: bool) -> tuple[Any, jax.Array]:
        state, copies = carry
        stage = lax.rem(block - view.begin, jnp.int32(plan.stages))
        state = _fold(plan, view, scratch, block, stage, position if border else None, state)
        if start is None:
            plgpu.barrier_arrive(scratch.read_barriers[0].at[stage])
        else:
            copies += _start_if(block + plan.stages < view.end, start, block + plan.stages, stage)
        return state, copies

    state = _nothing(plan), copies
    state = lax.fori_loop(view.begin, view.whole_begin, functools.partial(step, border=True), state)
    state = lax.fori_loop(view.whole_begin, view.whole_end, functools.partial(step, border=False), state)
    state = lax.fori_loop(view.whole_end, view.end, functools.partial(step, border=True), state)
    _store(plan, scratch, outs, state[0], single)
    return state[1]


def _by_rows(plan: HopperPlan, single: jax.Array | None, move: Callable[[int], None]) -> None:
    """Moves so many rows of queries or outputs: all that a piece may have, or those of one token."""
    if single is None or plan.moved_of_one == plan.moved:
        move(plan.moved)
    else:
        pl.when(single)(functools.partial(move, plan.moved_of_one))
        pl.when(jnp.logical_not(single))(functools.partial(move, plan.moved))


def _start(
    plan: HopperPlan,
    view: View,
    table: Any,
    sources: tuple[Any, ...],
    head: jax.Array,
    scratch: HopperScratch,
    block: jax.Array,
    stage: Any,
) -> jax.Array:
    """Starts the copies of a block's pages, as far as the piece sees them. Returns how many of K and V, ()."""
    copies = jnp.int32(0)
    buffers = (scratch.k, *scratch.scales[:1], scratch.v, *scratch.scales[1:])
    barriers = [scratch.k_barriers, scratch.v_barriers]
    for place in range(plan.units):
        token = block * BLOCK_KEYS + place * plan.unit
        seen = (token + (plan.unit - 1) >= view.first) & (token <= view.last)

        def copy(place: int = place, token: jax.Array = token) -> jax.Array:
            page = table[lax.div(token, jnp.int32(plan.page_size))]
            tokens = pl.ds(lax.rem(token, jnp.int32(plan.page_size)), plan.unit)
            for number, (source, buffer) in enumerate(zip(sources, buffers, strict=True)):
                barrier = barriers[number * 2 // len(sources)].at[stage]
                target = buffer.at[stage, pl.ds(place * plan.unit, plan.unit)]
                plgpu.copy_gmem_to_smem(source.at[page, head, tokens], target, barrier)
            return jnp.int32(2)

        def arrive() -> jax.Array:
            for number in range(len(sources)):
                plgpu.barrier_arrive(barriers[number * 2 // len(sources)].at[stage])
            return jnp.int32(0)

        copies += lax.cond(seen, copy, arrive)
    return copies


def _nothing(plan: HopperPlan) -> tuple[jax.Array, ...]:
    """The softmax of no keys: the highest score, the sum of weights, and the weighted values."""
    vector = functools.partial(plgpu.layout_cast, new_layout=plgpu.Layout.WGMMA.reduce(1))
    return (
        vector(jnp.full((M_ROWS,), _LOWEST, jnp.float32)),
        vector(jnp.zeros((M_ROWS,), jnp.float32)),
        plgpu.layout_cast(jnp.zeros((M_ROWS, plan.head_dim), jnp.float32), plgpu.Layout.WGMMA),
    )


def _fold(
    plan: HopperPlan,
    view: View,
    scratch: HopperScratch,
    block: jax.Array,
    stage: jax.Array,
    position: jax.Array | None,
    state: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:
    """Folds a block of keys into the softmax. `position` (64,) of the query vectors, None where they see all keys."""
    highest, total, acc = state
    shape = (M_ROWS, BLOCK_KEYS)
    plgpu.barrier_wait(scratch.k_barriers.at[stage])
    if plan.quantized:
        _rewrite(plan, scratch.k.at[stage], scratch.rewritten[0], None)
    keys = scratch.rewritten[0] if plan.quantized else scratch.k.at[stage]
    scores = _product(shape, scratch.q, keys.transpose((1, 0)))
    scores = _to_log2(plan, scores, scratch, stage)
    seen = None
    if position is not None:
        key = block * BLOCK_KEYS + plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=plgpu.Layout.WGMMA)
        rows = lax.broadcast_in_dim(position, shape, [0])
        seen = key <= rows
        if plan.options.sliding_window is not None:
            seen &= key > rows - plan.options.sliding_window
        scores = jnp.where(seen, scores, -jnp.inf)
    # `highest` starts finite, so that what a query does not see weighs 0 and never NaN.
    new_highest = jnp.maximum(highest, jnp.max(scores, axis=1))
    keep = jnp.exp2(highest - new_highest)
    weights = jnp.exp2(scores - lax.broadcast_in_dim(new_highest, shape, [0]))
    total = total * keep + jnp.sum(weights, axis=1)
    plgpu.barrier_wait(scratch.v_barriers.at[stage])
    if plan.quantized:
        weights *= _columns(scratch.scales[1].at[stage], shape)
        if seen is not None:  # a scale that was not copied may be NaN
            weights = jnp.where(seen, weights, 0.0)
    factor = weights.astype(jnp.bfloat16)
    known = None if position is None else (view.first - block * BLOCK_KEYS, view.last - block * BLOCK_KEYS)
    values = scratch.v.at[stage]
    if plan.quantized or known is not None:
        values = scratch.rewritten[0] if plan.rewrites else values
        _rewrite(plan, scratch.v.at[stage], values, known)
    acc *= lax.broadcast_in_dim(keep, acc.shape, [0])
    return new_highest, total, _add_product(acc, scratch, factor, values)


def _product(shape: tuple[int, int], a: Any, b: Any) -> jax.Array:
    """a (M, C) times b (C, N), both in shared memory: (M, N) float32."""

    def accumulate(acc: Any) -> jax.Array:
        plgpu.wgmma(acc, a, b)
        return acc[...]

    return pl.run_scoped(accumulate, plgpu.ACC(shape, jnp.float32))


def _add_product(acc: jax.Array, scratch: HopperScratch, factor: jax.Array, values: Any) -> jax.Array:
    """acc (64, H) + factor (64, L) times values (L, H) in shared memory. In place, or H = 256 would not fit."""
    if scratch.weights:  # the interpreter takes both factors from references, and no sum to begin with
        scratch.weights[0][...] = factor
        plgpu.commit_smem()
        return acc + _product((M_ROWS, acc.shape[1]), scratch.weights[0], values)

    def accumulate(reference: Any) -> None:
        plgpu.wgmma(reference, factor, values)

    return pl.run_state(accumulate)(plgpu.ACC.init(acc))


def _to_log2(plan: HopperPlan, scores: jax.Array, scratch: HopperScratch, stage: jax.Array) -> jax.Array:
    """Products of queries and keys as scores in units of log2."""
    if plan.quantized:
        scores *= _columns(scratch.scales[0].at[stage], scores.shape)
    if plan.options.soft_cap is None:
        return scores * (plan.options.scale * _LOG2E)
    # tanh(x) = 1 - 2 / (1 + e^2x): the hardware's own tanh is too coarse to be multiplied by a cap.
    power = jnp.exp2(scores * (2 * _LOG2E * plan.options.scale / plan.options.soft_cap))
    return (plan.options.soft_cap * _LOG2E) * (1.0 - 2.0 / (1.0 + power))


def _columns(scales: Any, shape: tuple[int, ...]) -> jax.Array:
    """Scales (L,) in shared memory, one for each column of `shape`."""
    return lax.broadcast_in_dim(load(scales, plgpu.Layout.WGMMA.reduce(0)), shape, [1])


def _rewrite(plan: HopperPlan, source: Any, target: Any, known: tuple[jax.Array, jax.Array] | None) -> None:
    """Rewrites keys or values (L, H) in shared memory as bfloat16, zeros outside the rows known[0] .. known[1]."""
    size = plan.columns
    for begin in range(0, plan.head_dim, size):
        columns = (slice(None), pl.ds(begin, size))
        part = load(source.at[columns], plgpu.Layout.WGMMA)
        if part.dtype == jnp.float8_e4m3fn:  # there is no way from it to bfloat16 but this
            part = part.astype(jnp.float32)
        part = part.astype(jnp.bfloat16)
        if known is not None:
            place = plgpu.broadcasted_iota(jnp.int32, part.shape, 0, layout=plgpu.Layout.WGMMA)
            inside = (place >= known[0]) & (place <= known[1])
            part = jnp.where(inside, part, jnp.bfloat16(0))
        target.at[columns][...] = part
    plgpu.commit_smem()


def _store(
    plan: HopperPlan,
    scratch: HopperScratch,
    outs: list[Any],
    state: tuple[jax.Array, ...],
    single: jax.Array | None,
) -> None:
    """Writes a part's outputs through shared memory."""

    def give(source: Any, target: Any, *columns: Any) -> None:
        def move(rows: int) -> None:
            plgpu.copy_smem_to_gmem(source.at[pl.ds(0, rows)], target.at[pl.ds(0, rows), *columns])

        plgpu.commit_smem()
        _by_rows(plan, single, move)

    highest, total, acc = state
    done = acc * lax.broadcast_in_dim(1.0 / jnp.where(total > 0, total, 1.0), acc.shape, [0])
    if not plan.partial:
        scratch.q[...] = done.astype(scratch.q.dtype)
        give(scratch.q, outs[0])
        plgpu.wait_smem_to_gmem(0)
        return
    staging, *vectors = scratch.results
    for buffer, value, out in zip(vectors, (highest, total), outs[1:], strict=True):
        buffer[...] = value
        give(buffer, out)
    for begin in range(0, plan.head_dim, plan.columns):
        store(staging, done[:, begin : begin + plan.columns])
        give(staging, outs[0], pl.ds(begin, plan.columns))
        plgpu.wait_smem_to_gmem(0)
