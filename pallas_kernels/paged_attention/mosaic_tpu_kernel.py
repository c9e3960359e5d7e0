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
    pages_per_block: int
    page_size: int
    quantized: bool
    options: AttentionOptions
    sinks: bool
    factor: Any  # dtype of the products' factors
    count_copies: bool

    @property
    def keys(self) -> int:
        return self.pages_per_block * self.page_size

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
        q: (S, K, M, H) for rows that decode, work w at place w; (K, G, T, H) for tiles.
        sinks: (K, M) float32, or -inf.
    """
    count, row, *others = pieces
    num_kv_heads, head_dim = pages[0].shape[1], q.shape[-1]
    decodes = plan.tile == 1
    if decodes:
        block = pl.BlockSpec((1, num_kv_heads, plan.rows, head_dim), lambda w, count, *_: (_inside(w, count), 0, 0, 0))
    else:
        block = pl.BlockSpec(
            (num_kv_heads, plan.group, plan.tile, head_dim),
            lambda w, count, row, tile, *_: (0, 0, tile[_inside(w, count)], 0),
        )
    hbm = pl.BlockSpec(memory_space=pl.ANY)
    sources: list[jax.Array] = []
    buffers: list[Any] = []
    for page in pages:
        for array in (page.values, page.scales) if isinstance(page, layout.QuantizedPages) else (page,):
            sources.append(array)
            buffers.append(pltpu.VMEM((2, plan.pages_per_block, *array.shape[1:]), array.dtype))
    state = (num_kv_heads, plan.rows, _LANES)
    out, copies = pl.pallas_call(
        functools.partial(_kernel, plan=plan, num_sources=len(sources)),
        out_shape=(jax.ShapeDtypeStruct(q.shape, jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=7,
            grid=(row.shape[0],),
            in_specs=[block, pl.BlockSpec(memory_space=pltpu.VMEM), *[hbm] * len(sources)],
            out_specs=(block, pl.BlockSpec(memory_space=pltpu.SMEM)),
            scratch_shapes=[
                pltpu.SMEM((1,), jnp.int32),
                pltpu.VMEM(state, jnp.float32),
                pltpu.VMEM(state, jnp.float32),
                pltpu.VMEM((num_kv_heads, plan.rows, head_dim), jnp.float32),
                pltpu.VMEM((plan.rows, plan.keys), jnp.float32),
                *buffers,
                pltpu.SemaphoreType.DMA((2, len(sources))),
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
        tables,
        q,
        jnp.broadcast_to(sinks.astype(jnp.float32)[..., None], state),
        *sources,
    )
    return out, copies[0] // (2 if plan.quantized else 1)  # a page and its scales are one


def _inside(index: jax.Array, count: Any) -> jax.Array:
    """Work behind the last piece looks at its blocks again, which costs no copy."""
    return jnp.maximum(jnp.minimum(index, count[0] - 1), 0)


def _kernel(
    count: Any,
    row: Any,
    tile: Any,
    begin: Any,
    end: Any,
    base: Any,
    tables: Any,
    q_ref: Any,
    sinks_ref: Any,
    *refs: Any,
    plan: TpuPlan,
    num_sources: int,
) -> None:
    """One piece of work: a program of the grid."""
    sources, refs = refs[:num_sources], refs[num_sources:]
    out_ref, copies_ref, slot_ref, highest_ref, total_ref, acc_ref, scores_ref, *rest = refs
    copies = _Copies(plan, (row, begin, end, base, tables), sources, rest[:-1], rest[-1], copies_ref)
    index = pl.program_id(0)

    @pl.when(index == 0)
    def _() -> None:
        copies_ref[0] = 0

    @pl.when(index < count[0])
    def _() -> None:
        first, last = copies.keys_of(index)
        first_block, end_block = first // plan.keys, last // plan.keys + 1

        @pl.when(index == 0)
        def _() -> None:
            slot_ref[0] = 0
            copies.start(index, first_block, jnp.int32(0))

        highest_ref[...] = jnp.maximum(sinks_ref[...], _LOWEST)
        total_ref[...] = (sinks_ref[...] > -jnp.inf).astype(jnp.float32)
        acc_ref[...] = jnp.zeros_like(acc_ref)
        begin_slot = slot_ref[0]

        def block_step(block: jax.Array, carry: None) -> None:
            slot = (begin_slot + block - first_block) % 2

            @pl.when(block + 1 < end_block)
            def _() -> None:
                copies.start(index, block + 1, 1 - slot)

            @pl.when((block + 1 == end_block) & (index + 1 < count[0]))
            def _() -> None:
                copies.start(index + 1, copies.keys_of(index + 1)[0] // plan.keys, 1 - slot)

            copies.wait(index, block, slot)
            piece = _Piece(base[index], begin[index], end[index], first, last, block, slot)
            _fold_heads(plan, piece, q_ref, copies.buffers, (highest_ref, total_ref, acc_ref, scores_ref))

        lax.fori_loop(first_block, end_block, block_step, None)
        slot_ref[0] = (begin_slot + end_block - first_block) % 2
        is_first = (index == 0) | (tile[index] != tile[jnp.maximum(index - 1, 0)])
        _store(plan, is_first, begin[index], end[index], out_ref, total_ref, acc_ref)


class _Copies:
    """The copies of pages from HBM into the two buffers. Made while the kernel is traced; holds its references."""

    def __init__(
        self, plan: TpuPlan, work: tuple[Any, ...], sources: Any, buffers: list[Any], semaphores: Any, counter: Any
    ) -> None:
        self._plan, self._sources, self.buffers, self._semaphores = plan, sources, buffers, semaphores
        self._row, self._begin, self._end, self._base, self._tables = work
        self._counter = counter

    def keys_of(self, piece: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The first and the last key that some query of a piece sees."""
        low, high = self._base[piece] + self._begin[piece], self._base[piece] + self._end[piece] - 1
        window = self._plan.options.sliding_window
        return (jnp.maximum(low - window + 1, 0) if window else jnp.int32(0)), high

    def start(self, piece: jax.Array, block: jax.Array, slot: jax.Array) -> None:
        """Starts the copies of a block's pages that the piece sees."""
        self._each(piece, block, slot, self._start_one)

    def wait(self, piece: jax.Array, block: jax.Array, slot: jax.Array) -> None:
        """Waits for the same."""
        self._each(piece, block, slot, lambda copy: copy.wait())

    def _start_one(self, copy: Any) -> None:
        copy.start()
        if self._plan.count_copies:
            self._counter[0] += 1

    def _each(self, piece: jax.Array, block: jax.Array, slot: jax.Array, act: Any) -> None:
        plan = self._plan
        first, last = self.keys_of(piece)
        lowest = jnp.maximum(first // plan.page_size - block * plan.pages_per_block, 0)
        highest = jnp.minimum(last // plan.page_size - block * plan.pages_per_block + 1, plan.pages_per_block)

        def one(place: jax.Array, carry: None) -> None:
            page = self._tables[self._row[piece], block * plan.pages_per_block + place]
            for number, (source, buffer) in enumerate(zip(self._sources, self.buffers, strict=True)):
                act(pltpu.make_async_copy(source.at[page], buffer.at[slot, place], self._semaphores.at[slot, number]))

        lax.fori_loop(lowest, highest, one, None)


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
        queries = q_ref[0, head] if plan.tile == 1 else q_ref[head].reshape(plan.rows, -1)
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
    for place in range(plan.pages_per_block):
        keys = slice(place * plan.page_size, (place + 1) * plan.page_size)
        scratch[:, keys] = scores[:, keys] * scales[slot, place, pl.ds(head, 1), : plan.page_size]
    return scratch[...]


def _store(
    plan: TpuPlan, is_first: jax.Array, begin: Any, end: Any, out_ref: Any, total_ref: Any, acc_ref: Any
) -> None:
    """Writes a piece's outputs; tokens of other rows in the same tile keep what they have."""
    total = total_ref[...][..., :1]
    done = acc_ref[...] / jnp.where(total > 0, total, 1.0)  # (K, M, H)
    if plan.tile == 1:
        out_ref[0] = done
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
