"""The TPU kernel's list of work: which expert's weights meet which tile of rows, in which order.

Legend: E experts, W pieces of work.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_matmul.mosaic_tpu_plan import TpuGroupedPlan


class Work(NamedTuple):
    """Pieces of work in the order of their rows, each (W,) int32; they lie in the chip's scalar memory.

    Attributes:
        expert: whose weights are read. A piece without rows names the expert before it, so that it reads none.
        tile: of rows. Every tile has a piece, so that rows of no expert become zeros.
        begin, end: rows in the tile that are the expert's; equal where there are none.
    """

    expert: jax.Array
    tile: jax.Array
    begin: jax.Array
    end: jax.Array


def list_work(plan: TpuGroupedPlan, group_sizes: jax.Array) -> Work:
    """The pieces for group_sizes (E,): an expert's rows, cut at the borders of tiles; without rows, none."""
    ends = jnp.cumsum(group_sizes)
    starts = ends - group_sizes
    tiles, rows = plan.row_tiles, plan.tile_rows
    used = group_sizes > 0
    # Behind the experts comes an owner of the tiles in which nobody has rows.
    covered = -(-ends[-1:] // rows)
    first = jnp.concatenate([starts // rows, covered])
    pieces = jnp.concatenate([jnp.where(used, (ends - 1) // rows + 1 - starts // rows, 0), tiles - covered])
    behind = jnp.cumsum(pieces)
    place = jnp.arange(plan.items, dtype=jnp.int32)
    owner = jnp.sum(behind[None, :] <= place[:, None], axis=1, dtype=jnp.int32)
    owner = jnp.minimum(owner, plan.experts)
    # Pieces behind the last one look at the last tile once more.
    tile = jnp.minimum(first[owner] + place - (behind - pieces)[owner], tiles - 1)
    last_used = jnp.max(jnp.where(used, jnp.arange(plan.experts, dtype=jnp.int32), 0))

    def inside(rows_of_owner: jax.Array) -> jax.Array:
        nobody = jnp.zeros(1, jnp.int32)
        return jnp.clip(jnp.concatenate([rows_of_owner, nobody])[owner] - tile * rows, 0, rows)

    expert = jnp.where(owner < plan.experts, owner, last_used)
    return Work(*(part.astype(jnp.int32) for part in (expert, tile, inside(starts), inside(ends))))
