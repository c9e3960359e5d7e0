"""Paged attention for TPU: a Pallas kernel that streams the pages of each row through on-chip memory.

Legend: T tokens, S rows, N query heads, K kv heads, G = N // K, H head_dim, P pages, L keys of a block, M query vectors
of a piece of work per kv head.

Two launches share one kernel. Rows that decode bring one token each: their G query vectors per kv head, padded to whole
sublanes. The tokens of the other rows are cut at fixed tiles of the token axis, so that every slice of queries and
outputs is aligned; a tile that holds several rows is visited once for each and stays on the chip meanwhile.

A piece of work walks the blocks of pages that it sees. Their copies from HBM run one or two blocks ahead, over the
borders of pieces (`mosaic_tpu_stream.py`), so the memory never waits for the arithmetic between two rows. A page is
copied once for all its kv heads, which lie together in it. Pages that a row does not see are not copied: what the
buffers still hold in their place is masked (scores) or zeroed (values). Up to eight rows that decode share a turn of
the grid, whose fixed cost would otherwise be a short row's largest.

The softmax is the online one (Milakov and Gimelshein, 2018), in float32. Products take their factors in the queries'
type or bfloat16, whichever is narrower, and sum in float32. Quantized pages are widened to that type exactly; their
scales multiply scores and weights, one row vector a page.

New keys and values are copied into the pages by a kernel of their own before the launches (`mosaic_tpu_write.py`).
Rows of pages fill the 128 lanes (`layout.py`, `head_packing.py`): H is theirs here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import layout, work
from pallas_kernels.paged_attention.api import RaggedBatch
from pallas_kernels.paged_attention.mosaic_tpu_kernel import TpuPlan, launch
from pallas_kernels.paged_attention.mosaic_tpu_stream import TABLE_ENTRIES, TABLE_ROWS, StreamPlan
from pallas_kernels.paged_attention.mosaic_tpu_write import write_pages
from pallas_kernels.paged_attention.options import AttentionOptions
from pallas_kernels.rounding import round_up

_BLOCK_KEYS = 256  # keys of a block: two buffers each of K and V stay within a few MiB
_TILE_ROWS = 256  # query vectors of a tile per kv head, about
_TURN_ROWS = (
    8  # rows that decode in a turn of the grid, at most, and the bytes of their queries and outputs, twice each
)
_TURN_BYTES = 2 << 20
_BUFFER_BYTES = 4 << 20  # where three buffers take no more, decoding has three


@functools.partial(jax.jit, static_argnames=("options", "target", "interpret", "count_copies"))
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
    interpret: Any = False,
    count_copies: bool = False,
) -> Any:
    """See `api.paged_attention`. Jitted so that a model's equal layers are traced and lowered once.

    Args:
        interpret: a `pltpu.InterpretParams` runs the kernel on the CPU.
        count_copies: for debugging: a fourth result, () int32, says how many pages (of K or of V, with its scales) both
            launches copied.
    """
    k_pages, v_pages = write_pages(k_pages, v_pages, k, v, batch, interpret)
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = k_pages.shape
    group = num_heads // num_kv_heads
    # A block is a power of two of pages, so that tables of whole tiles are whole blocks too.
    pages_per_block = 1 << (max(1, _BLOCK_KEYS // page_size).bit_length() - 1)
    tables = _pad_axis(batch.page_tables, 0, round_up(batch.page_tables.shape[0], TABLE_ROWS))
    tables = _pad_axis(tables, 1, round_up(tables.shape[1], TABLE_ENTRIES))
    factor = np.dtype(jnp.bfloat16) if jnp.bfloat16 in (q.dtype, k_pages.dtype) else np.dtype(jnp.float32)
    plan = TpuPlan(
        tile=1,
        rows=group,
        group=group,
        turn=1,
        stream=StreamPlan(page_size, pages_per_block, 2, options.sliding_window, count_copies),
        quantized=isinstance(k_pages, layout.QuantizedPages),
        options=options,
        sinks=sinks is not None,
        factor=factor,
    )
    heads = q.reshape(num_tokens, num_kv_heads, group, head_dim).astype(factor)
    head_sinks = jnp.full((num_kv_heads, group), -jnp.inf) if sinks is None else sinks.reshape(num_kv_heads, group)

    pages = (k_pages, v_pages)
    from_singles, rank, single_copies = _decode(plan, batch, heads, head_sinks, tables, pages, interpret)
    from_tiles, tile_copies = _prefill(plan, batch, heads, head_sinks, tables, pages, interpret)
    out = work.in_token_order(batch, from_singles, rank, from_tiles)
    results = out.reshape(q.shape).astype(q.dtype), k_pages, v_pages
    return (*results, single_copies + tile_copies) if count_copies else results


def _decode(
    plan: TpuPlan,
    batch: RaggedBatch,
    heads: jax.Array,
    sinks: jax.Array,
    tables: jax.Array,
    pages: tuple[layout.Pages, layout.Pages],
    interpret: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows with one token, of heads (T, K, G, H): outputs (S, K, G, H), each row's place among them, pages copied."""
    _, num_kv_heads, group, head_dim = heads.shape
    padded = round_up(group, plan.sublanes)
    row_bytes = 2 * num_kv_heads * padded * round_up(head_dim, 128) * (plan.factor.itemsize + 4)
    plan = dataclasses.replace(
        plan,
        rows=padded,
        group=padded,
        turn=max(1, min(_TURN_ROWS, _TURN_BYTES // row_bytes, batch.seq_lens.shape[0])),
        stream=dataclasses.replace(plan.stream, slots=3 if _block_bytes(plan, pages) * 3 <= _BUFFER_BYTES else 2),
    )
    singles = work.single_rows(batch)
    token = batch.query_start_loc[singles.row]
    out, copies = launch(
        plan,
        (singles.total, singles.row, jnp.zeros_like(token), jnp.zeros_like(token), jnp.ones_like(token)),
        batch.seq_lens[singles.row] - 1,
        tables,
        _pad_axis(heads[jnp.minimum(token, heads.shape[0] - 1)], 2, plan.group),  # (S, K, M, H)
        _pad_axis(sinks, 1, plan.group),
        pages,
        interpret,
    )
    return out[:, :, :group], singles.rank, copies


def _prefill(
    plan: TpuPlan,
    batch: RaggedBatch,
    heads: jax.Array,
    sinks: jax.Array,
    tables: jax.Array,
    pages: tuple[layout.Pages, layout.Pages],
    interpret: Any,
) -> tuple[jax.Array, jax.Array]:
    """Tokens of the other rows, of heads (T, K, G, H): outputs (T, K, G, H) at their places, and pages copied."""
    num_tokens, _, group, _ = heads.shape
    size = max(plan.sublanes, round_up(min(_TILE_ROWS // group, num_tokens), plan.sublanes))
    pieces = work.aligned_tiles(batch, num_tokens, size)
    out, copies = launch(
        dataclasses.replace(plan, tile=size, rows=size * group, group=group),
        (pieces.total, pieces.row, pieces.tile, pieces.begin, pieces.end),
        pieces.base,
        tables,
        _pad_axis(heads.transpose(1, 2, 0, 3), 2, round_up(num_tokens, size)),  # (K, G, T, H)
        jnp.repeat(sinks, size, axis=1),
        pages,
        interpret,
    )
    return out.transpose(2, 0, 1, 3)[:num_tokens], copies


def _block_bytes(plan: TpuPlan, pages: tuple[layout.Pages, layout.Pages]) -> int:
    """VMEM of one buffer of K and V, with their scales."""
    parts = [array for page in pages for array in jax.tree.leaves(page)]
    return sum(plan.stream.pages_per_block * math.prod(part.shape[1:]) * part.dtype.itemsize for part in parts)


def _pad_axis(x: jax.Array, axis: int, size: int) -> jax.Array:
    return jnp.pad(x, [(0, size - x.shape[a] if a == axis else 0) for a in range(x.ndim)])
