"""Paged attention for Hopper GPUs: the launches of the Pallas Mosaic GPU kernel in `mosaic_gpu_kernel.py`.

Legend: T tokens, S rows, N query heads, K kv heads, G = N // K, H head_dim, W pieces of work, M query vectors of a
piece per kv head, Z parts into which the keys of a piece are cut.

Two launches share one kernel. Rows that decode bring one token each, or up to 8 where some are speculated: as many as
fit beside their heads into the 64 rows that a warpgroup's matrix product has in any case. The tokens of the other rows
are cut into tiles from the row's first token on, of 64 rows or of two warpgroups'; a step of no more tokens than those
of a row that decodes has no such launch. XLA gathers the queries of every piece in front of the launch and its outputs
behind it, so that no two blocks of threads write to the same place and G may be any number up to 64.

A launch of few pieces would leave processors idle: then the keys of every piece are cut into Z parts, each gives its
own softmax with its maximum and sum, and XLA puts them together. Attention sinks enter there too.

New keys and values are scattered into the pages by XLA before the launches, so no block of threads reads what another
one of the same launch writes.
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
from pallas_kernels.paged_attention.mosaic_gpu_kernel import launch
from pallas_kernels.paged_attention.mosaic_gpu_plan import BLOCK_KEYS, M_ROWS, HopperPlan
from pallas_kernels.paged_attention.options import AttentionOptions

# Blocks of threads that a launch should have: two for each of the 132 multiprocessors of an H100 or H200.
_BLOCKS_WANTED = 264
_PART_BLOCKS = 4  # no more parts than what gives each about so many blocks of keys where the table is full
_LOG2E = math.log2(math.e)


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
        interpret: an `InterpretGPUParams` of Pallas runs the kernel on the CPU.
        count_copies: for debugging: a fourth result, () int32, says how many copies of K and V both launches started.
            One is a page of one kv head, or 64 tokens of it if it is longer.
    """
    k_pages = layout.write(k_pages, k, batch.slot_mapping, target)
    v_pages = layout.write(v_pages, v, batch.slot_mapping, target)
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, page_size, _ = k_pages.shape
    group = num_heads // num_kv_heads
    short = min(work.SHORT_TOKENS, M_ROWS // group, num_tokens)
    decoding = HopperPlan(
        tile=short,
        decoding=True,
        group=group,
        head_dim=head_dim,
        page_size=page_size,
        parts=1,
        warpgroups=1,
        quantized=isinstance(k_pages, layout.QuantizedPages),
        kv_dtype=np.dtype(k_pages.dtype),
        options=options,
        sinks=sinks is not None,
        count_copies=count_copies,
    )
    queries = q.reshape(num_tokens, num_kv_heads, group, head_dim)
    inputs = (queries, sinks, batch.page_tables, k_pages, v_pages, interpret)
    tokens = work.tokens_of(batch, num_tokens)
    rows = work.short_rows(batch, short)
    from_rows, copies = _attend(decoding, rows.pieces, rows.token, *inputs)
    of_tiles = of_rows = from_rows[rows.rank[tokens.row], jnp.minimum(tokens.in_row, short - 1)]
    if num_tokens > short:
        # Two warpgroups share the copies of a block, if there are tokens for both and room for their queries and sums.
        warpgroups = 2 if num_tokens * group > M_ROWS and head_dim <= 128 else 1
        tile = min(warpgroups * M_ROWS // group, num_tokens)
        tiles = work.row_tiles(batch, num_tokens, tile, short)
        tiled = dataclasses.replace(decoding, tile=tile, decoding=False, warpgroups=warpgroups)
        from_tiles, tile_copies = _attend(tiled, tiles.pieces, tiles.token, *inputs)
        of_tiles = from_tiles[tiles.first[tokens.row] + tokens.in_row // tile, tokens.in_row % tile]
        copies += tile_copies
    out = work.chosen(batch, tokens, of_rows, of_tiles, short)
    results = out.reshape(q.shape).astype(q.dtype), k_pages, v_pages
    return (*results, copies) if count_copies else results


def _attend(
    plan: HopperPlan,
    pieces: work.Pieces,
    token: jax.Array,
    queries: jax.Array,
    sinks: jax.Array | None,
    tables: jax.Array,
    k_pages: layout.Pages,
    v_pages: layout.Pages,
    interpret: Any,
) -> tuple[jax.Array, jax.Array]:
    """Attention of the pieces whose first tokens are `token` (W,).

    Args:
        plan: all but the parts.
        queries: (T, K, G, H).
        sinks: (N,), or None.
        tables: (S, MP).

    Returns:
        (W, tile, K, G, H) float32, or the queries' type; and the copies, (), if they are counted.
    """
    num_tokens, num_kv_heads, group, head_dim = queries.shape
    num_pieces, tile = token.shape[0], plan.tile
    most_keys = tables.shape[1] * plan.page_size
    if plan.options.sliding_window is not None:
        most_keys = min(most_keys, plan.options.sliding_window + BLOCK_KEYS)
    parts = work.key_parts(_BLOCKS_WANTED, num_pieces * num_kv_heads, most_keys, BLOCK_KEYS * _PART_BLOCKS)
    plan = dataclasses.replace(plan, parts=parts)
    place = jnp.minimum(token[:, None] + jnp.arange(tile, dtype=jnp.int32), num_tokens - 1)
    vectors = queries[place].transpose(0, 2, 1, 3, 4).reshape(num_pieces, num_kv_heads, plan.used, head_dim)
    vectors = jnp.pad(vectors, ((0, 0), (0, 0), (0, plan.rows - plan.used), (0, 0)))
    out = launch(plan, pieces, tables, vectors, k_pages, v_pages, interpret)
    copies = jnp.int32(0)
    if plan.count_copies:
        counts, out = out[-1], out[:-1]
        has_work = (jnp.arange(num_pieces) < pieces.total)[None, :, None]
        copies = jnp.sum(jnp.where(has_work, counts, 0), dtype=jnp.int32)
    done = work.together(out, None if sinks is None else _per_vector(sinks, plan)) if plan.partial else out[0]
    done = done[..., : plan.used, :].reshape(num_pieces, num_kv_heads, tile, group, head_dim)
    return done.transpose(0, 2, 1, 3, 4), copies


def _per_vector(sinks: jax.Array, plan: HopperPlan) -> jax.Array:
    """Sinks (N,) as (K, M) in units of log2, -inf for padding."""
    by_head = sinks.astype(jnp.float32).reshape(-1, plan.group) * _LOG2E
    by_head = jnp.tile(by_head, (1, plan.tile))
    return jnp.pad(by_head, ((0, 0), (0, plan.rows - plan.used)), constant_values=-jnp.inf)
