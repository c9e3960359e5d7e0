"""Paged attention in plain XLA: what runs on CPU, and anywhere that has no kernel of its own.

Legend: T tokens, S rows, N query heads, K kv heads, G = N // K, H head_dim, P pages. A tile is `tile` consecutive query
tokens of one row, M = tile * G its query vectors per kv head, L the keys of a block: a page, or several small ones.

Two passes share one loop. Rows with a single query token (decoding) are tiles of one token, several tiles at a time;
rows with more are cut into tiles of a fixed size, one at a time. Both work lists are made on the device and both loops
run as many turns as there is work, so a step of decoding alone does nothing in the second pass, and rows of any lengths
share a step without padding. Each turn walks the blocks that its queries see, copies K and V of that block out of the
pages and folds them into an online softmax (Milakov and Gimelshein, 2018).

On CPU a token's output has the same bits whatever it is computed with: alone, in a batch, in any chunk, in either pass,
in any bucket. What that takes, each point found by measuring XLA:CPU:

* Blocks are cut at fixed positions of the sequence and folded in order; a block that a query does not see changes
  nothing (its probabilities are exactly 0, its rescaling exactly 1).
* A product's row has the same bits for any number of rows from 4 up, but not for 1: M is padded to a multiple of 4.
* That holds for the product with V, whose columns lie side by side, only up to some 48 rows or where the columns fill
  blocks of 64: XLA picks another routine beyond. So V is widened where M is larger, which gives the bits of a small M.
  Up to 16 columns have routines of their own, in JAX 0.12 one for a small and one for a large M: those V always are.
* `sum` over an axis is ordered by the size of the whole array; `_tree_sum` spells the order out.
* `exp` is contracted into multiply-adds differently when a short odd axis is unrolled: L and M are multiples of 4.
* Elementwise code of the caller (say, rotary embedding) may round differently, even from one token to the next, where
  XLA fuses it with the indexing in here. It cannot: operands of a loop and results of a branch are arrays in memory.
  (`lax.optimization_barrier` holds in JAX 0.11 and not in 0.10.)
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import layout
from pallas_kernels.paged_attention.api import RaggedBatch
from pallas_kernels.paged_attention.options import AttentionOptions
from pallas_kernels.paged_attention.work import in_token_order, row_of, single_rows

# Keys per block: few enough for the copies of K and V to stay in the cache, enough to outweigh the cost of a turn.
_BLOCK = 64
_ROW_MULTIPLE = 4
# The product with V on CPU, see above: it is taken as it is for up to so many rows and more than so many columns.
_FEW_ROWS = 32
_FEW_COLUMNS = 16
_COLUMN_BLOCK = 64
# What a GPU launches for a block of keys, the body of `fold` and its loop's condition: read in compiled programs.
_LAUNCHES_A_BLOCK = 12
_LOWEST = float(np.finfo(np.float32).min)
_INT_MAX = int(np.iinfo(np.int32).max)

Number = TypeVar("Number", int, jax.Array)


def launches(num_rows: int, keys: int, page_size: int, window: int | None) -> int:
    """About how many kernels a GPU launches for one layer of a step in which rows decode.

    Args:
        num_rows: rows of the step.
        keys: tokens of the longest one.
        window: how many of those a query sees; None: all.
    """
    block = _pages_per_block(page_size) * page_size
    seen = keys if window is None else min(keys, window + block)
    return _ceil_div(num_rows, _ACCELERATOR_TILING.rows) * _ceil_div(seen, block) * _LAUNCHES_A_BLOCK


class _Tiling(NamedTuple):
    """How work is cut. `rows`: single-token rows per turn. `tile`: query tokens per turn of the other rows."""

    rows: int
    tile: int


# CPU: measured on two cores; larger tiles gain nothing and waste more on short rows. Elsewhere a turn costs several
# kernel launches, so there are fewer of them.
_CPU_TILING = _Tiling(rows=16, tile=32)
_ACCELERATOR_TILING = _Tiling(rows=64, tile=128)


class _Work(NamedTuple):
    """A list of query tiles, computed from the front, `group` tiles a turn.

    Attributes:
        turns: () how many turns hold work.
        row, token, position, length: (W,) of each tile: its row, its first query token, that token's position in the
            sequence, and how many of its tokens are real. `length` 0 marks an entry without work; it must walk no
            block, as XLA hoists the only turn of a list of one out of the loop and runs it whatever `turns` is.
        place: (W,) where the turn that starts with this tile writes its group * tile outputs.
        group, tile: tiles a turn, tokens a tile.
    """

    turns: jax.Array
    row: jax.Array
    token: jax.Array
    position: jax.Array
    length: jax.Array
    place: jax.Array
    group: int
    tile: int


class _Keys(NamedTuple):
    """Everything about the key side that stays the same for a whole step."""

    k_pages: layout.Pages  # (P, K, page_size, H)
    v_pages: layout.Pages
    tables: jax.Array  # (S, MP), MP a multiple of `pages_per_block`
    pages_per_block: int
    options: AttentionOptions
    sinks: jax.Array | None  # (K, G)
    target: DeviceTarget

    @property
    def block(self) -> int:
        return self.pages_per_block * self.k_pages.shape[2]


@functools.partial(jax.jit, static_argnames=("options", "target"))
def paged_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    k_pages: layout.Pages,
    v_pages: layout.Pages,
    batch: RaggedBatch,
    sinks: jax.Array | None,
    *,
    options: AttentionOptions,
    target: DeviceTarget,
) -> tuple[jax.Array, layout.Pages, layout.Pages]:
    """See `api.paged_attention`. Jitted so that a model's equal layers are traced and lowered once."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, page_size = k_pages.shape[1:3]
    tiling = _CPU_TILING if target.platform == "cpu" else _ACCELERATOR_TILING
    k_pages = layout.write(k_pages, k, batch.slot_mapping, target)
    v_pages = layout.write(v_pages, v, batch.slot_mapping, target)

    pages_per_block = _pages_per_block(page_size)
    tables = jnp.pad(batch.page_tables, ((0, 0), (0, -batch.page_tables.shape[1] % pages_per_block)))
    sinks = None if sinks is None else sinks.astype(jnp.float32).reshape(num_kv_heads, -1)
    keys = _Keys(k_pages, v_pages, tables, pages_per_block, options, sinks, target)
    queries = q.reshape(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)

    singles, rank = _single_token_work(batch, min(tiling.rows, batch.seq_lens.shape[0]))
    tiles = _tiled_work(batch, num_tokens, tiling.tile)
    from_singles = _compute(queries, keys, singles, size=singles.row.shape[0])
    # The last tile may begin at the last token, and writes a whole tile.
    from_tiles = _compute(queries, keys, tiles, size=num_tokens + tiling.tile)

    def outputs() -> jax.Array:
        out = in_token_order(batch, from_singles, rank, from_tiles[:num_tokens])
        return out.reshape(q.shape).astype(q.dtype)

    out = lax.cond(batch.query_start_loc[-1] > 0, outputs, lambda: jnp.zeros_like(q))
    return out, k_pages, v_pages


def _single_token_work(batch: RaggedBatch, group: int) -> tuple[_Work, jax.Array]:
    """Rows with one query token, longest first so that a turn's rows end together; and each row's place in the list."""
    num_rows = batch.seq_lens.shape[0]
    singles = single_rows(batch)
    row = jnp.pad(singles.row, (0, -num_rows % group))
    place = jnp.arange(row.shape[0])
    work = _Work(
        turns=_ceil_div(singles.total, group),
        row=row,
        token=batch.query_start_loc[row],
        position=batch.seq_lens[row] - 1,
        length=(place < singles.total).astype(jnp.int32),
        place=place,
        group=group,
        tile=1,
    )
    return work, singles.rank


def _tiled_work(batch: RaggedBatch, num_tokens: int, tile: int) -> _Work:
    """Rows with two query tokens or more, cut into tiles, in token order.

    A tile's outputs go to its own tokens. What it writes past its length is overwritten by the tile that owns those
    tokens, which comes later, or belongs to no tile and is never read.
    """
    query_lens = jnp.diff(batch.query_start_loc)
    tiles = jnp.where(query_lens > 1, _ceil_div(query_lens, tile), 0)
    ends = jnp.cumsum(tiles)
    # Each such row has one tile that is not full, and at least two tokens.
    most = num_tokens // tile + min(query_lens.shape[0], num_tokens // 2)
    index = jnp.arange(max(most, 1))
    row = row_of(ends, index)
    first = (index - (ends - tiles)[row]) * tile
    token = jnp.minimum(batch.query_start_loc[row] + first, num_tokens)
    return _Work(
        turns=ends[-1],
        row=row,
        token=token,
        position=batch.seq_lens[row] - query_lens[row] + first,
        length=jnp.where(index < ends[-1], jnp.minimum(query_lens[row] - first, tile), 0),
        place=token,
        group=1,
        tile=tile,
    )


def _compute(queries: jax.Array, keys: _Keys, work: _Work, size: int) -> jax.Array:
    """Attention of every tile in the list: queries (T, K, G, H) -> float32 (size, K, G, H), placed by `work.place`."""
    num_tokens, num_kv_heads, per_kv_head, head_dim = queries.shape
    group, tile = work.group, work.tile
    used = tile * per_kv_head
    padding = -used % _ROW_MULTIPLE
    # The keys that some query of a tile sees, first to last; an entry without work sees none.
    window = keys.options.sliding_window
    first = jnp.zeros_like(work.position) if window is None else jnp.maximum(work.position - window + 1, 0)
    first = jnp.where(work.length > 0, first, _INT_MAX)
    last = jnp.where(work.length > 0, work.position + work.length - 1, -1)
    begin = first.reshape(-1, group).min(axis=1) // keys.block
    end = last.reshape(-1, group).max(axis=1) // keys.block + 1
    offset = jnp.arange(tile, dtype=jnp.int32)

    def turn(index: jax.Array, out: jax.Array) -> jax.Array:
        def of(per_tile: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(per_tile, index * group, group)

        token = jnp.minimum(of(work.token)[:, None] + offset, num_tokens - 1)
        q = (
            queries.at[token].get(mode="promise_in_bounds").astype(jnp.float32) * keys.options.scale
        )  # (group, tile, K, G, H)
        q = q.transpose(0, 2, 1, 3, 4).reshape(group, num_kv_heads, used, head_dim)
        q = jnp.pad(q, ((0, 0), (0, 0), (0, padding), (0, 0)))
        positions = jnp.where(offset < of(work.length)[:, None], of(work.position)[:, None] + offset, -1)
        positions = jnp.pad(jnp.repeat(positions, per_kv_head, axis=1), ((0, 0), (0, padding)), constant_values=-1)
        view = _View(keys.tables[of(work.row)], of(first)[:, None], of(last)[:, None], begin[index], end[index])
        done = _attend(q, positions, keys, view)[:, :, :used]
        done = done.reshape(group, num_kv_heads, tile, per_kv_head, head_dim).transpose(0, 2, 1, 3, 4)
        done = done.reshape(group * tile, *out.shape[1:])
        return lax.dynamic_update_slice_in_dim(out, done, work.place[index * group], axis=0)

    return lax.fori_loop(0, work.turns, turn, jnp.zeros((size, *queries.shape[1:]), jnp.float32))


class _View(NamedTuple):
    """The keys that one turn's B tiles look at."""

    tables: jax.Array  # (B, MP)
    first: jax.Array  # (B, 1) the keys that some query of the tile sees, first to last
    last: jax.Array
    begin: jax.Array  # () the blocks that some tile needs
    end: jax.Array


def _attend(q: jax.Array, positions: jax.Array, keys: _Keys, view: _View) -> jax.Array:
    """Softmax attention of scaled queries over their rows' pages, block by block.

    q: (B, K, M, H). positions: (B, M), -1 for a query that sees nothing and gives zeros. Returns (B, K, M, H).
    """
    window, cap = keys.options.sliding_window, keys.options.soft_cap

    def fold(index: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        highest, total, acc = carry
        key = index * keys.block + jnp.arange(keys.block, dtype=jnp.int32)
        pages = lax.dynamic_slice_in_dim(view.tables, index * keys.pages_per_block, keys.pages_per_block, axis=1)
        k, v = _block(keys.k_pages, pages), _block(keys.v_pages, pages)
        # Keys that no query sees may hold NaN; 0 * NaN would carry it from V into the sum.
        v = jnp.where(((key >= view.first) & (key <= view.last))[:, None, :, None], v, 0.0)
        seen = key <= positions[..., None]
        if window is not None:
            seen &= key > positions[..., None] - window
        scores = _product(q, k, contract=3)  # (B, K, M, L)
        if cap is not None:
            scores = cap * jnp.tanh(scores / cap)
        scores = jnp.where(seen[:, None], scores, -jnp.inf)
        # `highest` starts finite, so a block that a query does not see gives exp(-inf) = 0 and exp(0) = 1, never NaN.
        new_highest = jnp.maximum(highest, scores.max(axis=-1, keepdims=True))
        probs = jnp.exp(scores - new_highest)
        keep = jnp.exp(highest - new_highest)
        return new_highest, total * keep + _tree_sum(probs), acc * keep + _weigh(probs, v, keys.target)

    _, total, acc = lax.fori_loop(view.begin, view.end, fold, (*_before_keys(q.shape, keys.sinks), jnp.zeros_like(q)))
    return acc / jnp.where(total > 0, total, 1.0)


def _before_keys(shape: tuple[int, ...], sinks: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The highest score and the sum of weights before any key, (B, K, M, 1) each: none, or the sink's own."""
    column = (*shape[:3], 1)
    if sinks is None:
        return jnp.full(column, _LOWEST, jnp.float32), jnp.zeros(column, jnp.float32)
    # A tile's query vectors are token-major: the sinks of its heads repeat. Padding vectors get some head's.
    repeated = jnp.tile(sinks, (1, -(-shape[2] // sinks.shape[1])))[:, : shape[2]]
    highest = jnp.broadcast_to(jnp.maximum(repeated, _LOWEST)[None, :, :, None], column)
    return highest, jnp.broadcast_to((repeated > -jnp.inf).astype(jnp.float32)[None, :, :, None], column)


def _block(pages: layout.Pages, ids: jax.Array) -> jax.Array:
    """Copies pages `ids` (B, n) of (P, K, page_size, H), side by side, as float32: (B, K, n * page_size, H)."""
    if isinstance(pages, layout.QuantizedPages):
        scales = _side_by_side(pages.scales, ids, pages.shape[2])
        return layout.to_float32(_side_by_side(pages.values, ids, pages.shape[2]), scales)
    return layout.to_float32(_side_by_side(pages, ids, pages.shape[2]))


def _side_by_side(pages: jax.Array, ids: jax.Array, page_size: int) -> jax.Array:
    """Pages `ids` (B, n) of (P, K, page_size or more, ...): (B, K, n * page_size, ...)."""
    _, num_kv_heads, _, *rest = pages.shape
    offsets = (1, *range(3, 4 + len(rest)))
    numbers = lax.GatherDimensionNumbers(offset_dims=offsets, collapsed_slice_dims=(0,), start_index_map=(0,))
    window = (1, num_kv_heads, page_size, *rest)
    block = lax.gather(pages, ids[..., None], numbers, window, mode="promise_in_bounds")  # (B, K, n, page_size, ...)
    return block.reshape(ids.shape[0], num_kv_heads, ids.shape[1] * page_size, *rest)


def _product(a: jax.Array, b: jax.Array, contract: int) -> jax.Array:
    """(B, K, M, C) times the axis `contract` of (B, K, ., .), in float32."""
    numbers = (((3,), (contract,)), ((0, 1), (0, 1)))
    return lax.dot_general(a, b, numbers, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _weigh(probs: jax.Array, v: jax.Array, target: DeviceTarget) -> jax.Array:
    """The sum of values v (B, K, L, H) with weights probs (B, K, M, L): (B, K, M, H), on CPU with bits that M does not
    change."""
    head_dim = v.shape[3]
    if target.platform == "cpu" and (probs.shape[2] > _FEW_ROWS or head_dim <= _FEW_COLUMNS):
        v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, -head_dim % _COLUMN_BLOCK)))
    return _product(probs, v, contract=2)[..., :head_dim]


def _tree_sum(x: jax.Array) -> jax.Array:
    """Sum over the last axis, halves onto halves: the same order whatever the shape of the rest. Keeps the axis."""
    width = 1 << (x.shape[-1] - 1).bit_length()
    x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, width - x.shape[-1]),))
    while width > 1:
        width //= 2
        x = x[..., :width] + x[..., width:]
    return x


def _pages_per_block(page_size: int) -> int:
    """Pages per block: at least `_BLOCK` keys, and a multiple of 8 of them."""
    multiple = 8 // math.gcd(8, page_size)
    return _ceil_div(_ceil_div(_BLOCK, page_size), multiple) * multiple


def _ceil_div(a: Number, b: int) -> Number:
    return -(-a // b)
