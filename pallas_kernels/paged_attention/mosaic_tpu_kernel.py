"""The TPU attention kernel itself: a piece of work walks its blocks of pages. `mosaic_tpu.py` says how it is used.

Legend: W pieces of work, S rows, T tokens, K kv heads, G query heads of one, H head_dim, L keys of a block, M query
vectors of a piece per kv head.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.paged_attention import layout
from pallas_kernels.paged_attention.mosaic_tpu_stream import PageStream, StreamPlan
from pallas_kernels.paged_attention.options import AttentionOptions

SUBLANES = 8
_LANES = 128
_LOWEST = float(np.finfo(np.float32).min)
_UNROLLED_HEADS = 8


@dataclasses.dataclass(frozen=True)
class TpuPlan:
    """Everything static about a launch."""

    tile: int  # tokens a tile; 1 where rows decode
    rows: int  # M
    group: int  # query heads of a kv head that M holds, padding included
    turn: int  # pieces of a turn of the grid; 1 for tiles
    stream: StreamPlan
    quantized: bool
    options: AttentionOptions
    sinks: bool
    factor: Any  # dtype of the products' factors

    @property
    def keys(self) -> int:
        return self.stream.keys

    @property
    def sublanes(self) -> int:
        """Rows of a tile of factors."""
        return SUBLANES * 4 // self.factor.itemsize


def launch(
    plan: TpuPlan,
    pieces: tuple[jax.Array, ...],
    base: jax.Array,
    tables: jax.Array,
    q: jax.Array,
    sinks: jax.Array,
    pages: tuple[layout.Pages, layout.Pages],
    interpret: Any,
) -> tuple[jax.Array, jax.Array]:
    """Runs the kernel over a list of work; the outputs, float32, lie as the queries do. Second: pages copied, ().

    Args:
        pieces: count (), then row, tile, begin, end (W,) as `work.Tiles` has them.
        base: (W,).
        tables: (S, MP) int32, whole tiles.
        q: (S, K, M, H) for rows that decode, work w at place w; (K, G, T, H) for tiles.
        sinks: (K, M) float32, or -inf.
    """
    count, row, *others = pieces
    num_kv_heads, head_dim = pages[0].shape[1], q.shape[-1]
    decodes = plan.tile == 1
    block = _query_block(plan, num_kv_heads, head_dim)
    sources = [array for page in pages for array in jax.tree.leaves(page)]
    hbm = pl.BlockSpec(memory_space=pltpu.HBM)
    state = (num_kv_heads, plan.rows, _LANES)
    out, copies = pl.pallas_call(
        functools.partial(_kernel, plan=plan, num_sources=len(sources)),
        out_shape=(jax.ShapeDtypeStruct(q.shape, jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=6,
            grid=(pl.cdiv(row.shape[0], plan.turn),),
            in_specs=[block, pl.BlockSpec(memory_space=pltpu.VMEM), *[hbm] * (1 + len(sources))],
            out_specs=(block, pl.BlockSpec(memory_space=pltpu.SMEM)),
            scratch_shapes=[
                pltpu.VMEM(state, jnp.float32),
                pltpu.VMEM(state, jnp.float32),
                pltpu.VMEM((num_kv_heads, plan.rows, head_dim), jnp.float32),
                pltpu.VMEM((plan.rows, plan.keys), jnp.float32),
                *plan.stream.scratch(sources),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="paged_attention_decode" if decodes else "paged_attention_tiles",
    )(
        count.reshape(1),
        row,
        *others,
        base,
        q,
        jnp.broadcast_to(sinks.astype(jnp.float32)[..., None], state),
        *[in_hbm(array) for array in (tables, *sources)],
    )
    return out, copies[0] // (2 if plan.quantized else 1)  # a page and its scales are one


def _query_block(plan: TpuPlan, num_kv_heads: int, head_dim: int) -> pl.BlockSpec:
    """What a turn of the grid has of the queries, and of the outputs."""
    if plan.tile == 1:
        return pl.BlockSpec(
            (plan.turn, num_kv_heads, plan.rows, head_dim), lambda w, count, *_: (_inside(w, count, plan.turn), 0, 0, 0)
        )
    return pl.BlockSpec(
        (num_kv_heads, plan.group, plan.tile, head_dim),
        lambda w, count, row, tile, *_: (0, 0, tile[_inside(w, count, 1)], 0),
    )


def in_hbm(array: jax.Array) -> jax.Array:
    """Keeps what a kernel reads from HBM there: otherwise the compiler copies whole pools into VMEM if they fit."""
    return pltpu.with_memory_space_constraint(array, pltpu.HBM)


def _inside(index: jax.Array, count: Any, turn: int) -> jax.Array:
    """Turns behind the last piece look at its blocks again, which costs no copy."""
    return jnp.minimum(index, jnp.maximum(count[0] - 1, 0) // turn)


def _kernel(
    count: Any,
    row: Any,
    tile: Any,
    begin: Any,
    end: Any,
    base: Any,
    q_ref: Any,
    sinks_ref: Any,
    tables: Any,
    *refs: Any,
    plan: TpuPlan,
    num_sources: int,
) -> None:
    """Some pieces of work: a program of the grid."""
    sources, refs = refs[:num_sources], refs[num_sources:]
    out_ref, copies_ref, highest_ref, total_ref, acc_ref, scores_ref, *scratch = refs
    stream = PageStream(plan.stream, (count, row, begin, end, base), tables, sources, scratch, copies_ref)
    turn = pl.program_id(0)

    @pl.when(turn == 0)
    def _() -> None:
        copies_ref[0] = 0

    @pl.when((turn == 0) & (count[0] > 0))
    def _() -> None:
        stream.open()

    def one_piece(place: Any, carry: None) -> None:
        index = turn * plan.turn + place
        first, last = stream.keys_of(index)
        highest_ref[...] = jnp.maximum(sinks_ref[...], _LOWEST)
        total_ref[...] = (sinks_ref[...] > -jnp.inf).astype(jnp.float32)
        acc_ref[...] = jnp.zeros_like(acc_ref)

        def one_block(block: jax.Array, carry: None) -> None:
            stream.start_next()
            slot = stream.take(first, last, block)
            piece = _Piece(base[index], begin[index], end[index], first, last, block, slot, place)
            _fold_heads(plan, piece, q_ref, stream.buffers, (highest_ref, total_ref, acc_ref, scores_ref))

        lax.fori_loop(first // plan.keys, last // plan.keys + 1, one_block, None)
        is_first = (index == 0) | (tile[index] != tile[jnp.maximum(index - 1, 0)])
        _store(plan, is_first, place, begin[index], end[index], out_ref, total_ref, acc_ref)

    lax.fori_loop(0, jnp.minimum(count[0] - turn * plan.turn, plan.turn), one_piece, None)


@dataclasses.dataclass(frozen=True)
class _Piece:
    """The scalars of a piece of work and of the block that is folded into it."""

    base: jax.Array
    begin: jax.Array
    end: jax.Array
    first: jax.Array
    last: jax.Array
    block: jax.Array
    slot: jax.Array
    place: jax.Array  # in the turn


def _fold_heads(plan: TpuPlan, piece: _Piece, q_ref: Any, buffers: list[Any], state: tuple[Any, ...]) -> None:
    """Folds a block of keys into every kv head's softmax."""
    num_kv_heads = state[0].shape[0]
    in_tile = lax.broadcasted_iota(jnp.int32, (plan.rows, plan.keys), 0) % plan.tile
    position = piece.base + in_tile
    key = piece.block * plan.keys + lax.broadcasted_iota(jnp.int32, (plan.rows, plan.keys), 1)
    seen = (key <= position) & (in_tile >= piece.begin) & (in_tile < piece.end)
    if plan.options.sliding_window:
        seen &= key > position - plan.options.sliding_window
    column = piece.block * plan.keys + lax.broadcasted_iota(jnp.int32, (plan.keys, 1), 0)
    known = (column >= piece.first) & (column <= piece.last)
    k_scales, v_scales = (buffers[1], buffers[3]) if plan.quantized else (None, None)
    k_buffer, v_buffer = buffers[0], buffers[2] if plan.quantized else buffers[1]
    highest_ref, total_ref, acc_ref, scores_ref = state

    def one_head(head: Any, carry: None) -> None:
        queries = q_ref[piece.place, head] if plan.tile == 1 else q_ref[head].reshape(plan.rows, -1)
        scores = _dot(queries, _keys_of_head(plan, k_buffer, piece.slot, head), contract=1) * plan.options.scale
        scores = _scaled(plan, scores, k_scales, piece.slot, head, scores_ref)
        if plan.options.soft_cap is not None:
            scores = plan.options.soft_cap * jnp.tanh(scores / plan.options.soft_cap)
        scores = jnp.where(seen, scores, -jnp.inf)
        highest = highest_ref[head]  # (M, 128), every lane the same
        new_highest = jnp.maximum(highest, jnp.max(scores, axis=1, keepdims=True))
        keep = jnp.exp(highest - new_highest)
        weights = jnp.exp(scores - new_highest[:, :1])
        highest_ref[head] = new_highest
        total_ref[head] = total_ref[head] * keep + jnp.sum(weights, axis=1, keepdims=True)
        values = _keys_of_head(plan, v_buffer, piece.slot, head)
        # What no query sees may be NaN, and 0 * NaN is NaN. The same for a scale that was not copied.
        values = jnp.where(known, values, jnp.zeros_like(values))
        weights = jnp.where(seen, _scaled(plan, weights, v_scales, piece.slot, head, scores_ref), 0.0)
        acc_ref[head] = acc_ref[head] * keep[:, :1] + _dot(weights.astype(plan.factor), values, contract=0)

    lax.fori_loop(0, num_kv_heads, one_head, None, unroll=num_kv_heads <= _UNROLLED_HEADS)


def _keys_of_head(plan: TpuPlan, buffer: Any, slot: jax.Array, head: Any) -> jax.Array:
    """The keys, or values, of a block for one head: (L, H) as a product's factor."""
    pages = buffer[slot, :, head]  # (pages, page_size, H)
    if plan.quantized:
        # int8 and float8 numbers are exact in bfloat16. Mosaic widens them to 32 bits first.
        pages = pages.astype(jnp.float32)
    return pages.astype(plan.factor).reshape(plan.keys, -1)


def _scaled(plan: TpuPlan, scores: jax.Array, scales: Any, slot: jax.Array, head: Any, scratch: Any) -> jax.Array:
    """Scores (M, L) times the scales of their keys, page by page: a page's scales are a row vector."""
    if scales is None:
        return scores
    page_size = plan.stream.page_size
    for place in range(plan.stream.pages_per_block):
        keys = slice(place * page_size, (place + 1) * page_size)
        scratch[:, keys] = scores[:, keys] * scales[slot, place, pl.ds(head, 1), :page_size]
    return scratch[...]


def _store(
    plan: TpuPlan, is_first: jax.Array, place: Any, begin: Any, end: Any, out_ref: Any, total_ref: Any, acc_ref: Any
) -> None:
    """Writes a piece's outputs; tokens of other rows in the same tile keep what they have."""
    total = total_ref[...][..., :1]
    done = acc_ref[...] / jnp.where(total > 0, total, 1.0)  # (K, M, H)
    if plan.tile == 1:
        out_ref[place] = done
        return
    done = done.reshape(out_ref.shape)
    token = lax.broadcasted_iota(jnp.int32, out_ref.shape, 2)
    others = jnp.where(is_first, 0.0, out_ref[...])
    out_ref[...] = jnp.where((token >= begin) & (token < end), done, others)


def _dot(a: jax.Array, b: jax.Array, contract: int) -> jax.Array:
    """(M, C) times the axis `contract` of b, summed in float32; float32 factors are not rounded."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        a, b, (((1,), (contract,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )
