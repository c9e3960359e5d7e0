"""What is decided before a launch of the kernel in `mosaic_gpu_kernel.py`: sizes, shared memory and barriers.

Legend: H head_dim, L keys of a block, M query vectors of a piece per kv head, C warpgroups that compute, Z parts into
which the keys of a piece are cut.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic_gpu_support import tiled
from pallas_kernels.paged_attention.options import AttentionOptions

M_ROWS = 64  # rows of a warpgroup's matrix product
BLOCK_KEYS = 64  # L
_SHARED_BYTES = 232_448  # of a block of threads on Hopper
_HALF_SHARED_BYTES = 115_712  # two blocks of threads fit on a multiprocessor
_OTHER_BYTES = 1024  # barriers, maxima and sums
_MOST_STAGES = 4


@dataclasses.dataclass(frozen=True)
class HopperPlan:
    """Everything static about a launch."""

    tile: int  # tokens a piece, at most
    decoding: bool  # whether pieces are whole rows that decode, which mostly have one token
    group: int  # query heads of a kv head
    head_dim: int
    page_size: int
    parts: int  # Z
    warpgroups: int  # C; with two there is a third one that copies
    quantized: bool
    kv_dtype: np.dtype
    options: AttentionOptions
    sinks: bool
    count_copies: bool = False

    @property
    def used(self) -> int:
        """Query vectors of a piece, ordered by token and then by head."""
        return self.tile * self.group

    @property
    def rows(self) -> int:
        """M: those of memory. The matrix products have C * 64; what the rest of them holds is never read."""
        return self.warpgroups * M_ROWS if self.warpgroups > 1 else -(-self.used // 8) * 8

    @property
    def moved(self) -> int:
        """Rows of memory of one warpgroup."""
        return min(self.rows, M_ROWS)

    @property
    def moved_of_one(self) -> int:
        """Rows of memory of a piece with one token."""
        return min(-(-self.group // 8) * 8, self.moved)

    @property
    def partial(self) -> bool:
        """Whether maxima and sums leave the kernel, and outputs in float32."""
        return self.parts > 1 or self.sinks

    @property
    def unit(self) -> int:
        """Tokens of a copy: a page, or a slice of one."""
        return min(self.page_size, BLOCK_KEYS)

    @property
    def units(self) -> int:
        """Copies of a block of K, or of V."""
        return BLOCK_KEYS // self.unit

    @property
    def rewrites(self) -> bool:
        """Whether a warpgroup has a buffer of its own for keys and values that it rewrites."""
        return self.quantized or self.warpgroups > 1

    @property
    def columns(self) -> int:
        """Columns of H that pass through registers at a time: the sums of 256 of them leave little room."""
        wanted = 64 if self.head_dim <= 128 else 32
        return wanted if self.head_dim % wanted == 0 else self.head_dim

    @property
    def stages(self) -> int:
        """Blocks in shared memory.

        Raises:
            ValueError: two do not fit.
        """
        block = 2 * BLOCK_KEYS * (self.head_dim * self.kv_dtype.itemsize + 4 * self.quantized)
        each = M_ROWS * (2 * self.head_dim * (1 + self.rewrites) + 4 * self.columns * self.partial)
        fixed = each * self.warpgroups + _OTHER_BYTES
        for limit in (_HALF_SHARED_BYTES, _SHARED_BYTES)[self.warpgroups > 1 :]:
            if (limit - fixed) // block >= 2:
                return min(_MOST_STAGES, (limit - fixed) // block)
        raise ValueError(f"head_dim is {self.head_dim}: two blocks of keys do not fit into shared memory")


class HopperScratch(NamedTuple):
    """Shared memory and barriers of a block of threads."""

    q: Any  # (C, 64, H) bfloat16
    k: Any  # (stages, L, H)
    v: Any
    scales: list[Any]  # of K and V, (stages, L) float32, if pages are quantized
    rewritten: list[Any]  # (C, L, H) bfloat16, if `Plan.rewrites`
    results: list[Any]  # (C, 64, columns), (C, 64), (C, 64) float32, if they leave
    weights: list[Any]  # (C, 64, L) bfloat16, in the interpreter
    q_barriers: Any  # (C,)
    k_barriers: Any  # (stages,)
    v_barriers: Any
    read_barriers: list[Any]  # (stages,), when a warpgroup of its own copies

    def of(self, warpgroup: Any) -> HopperScratch:
        """One computing warpgroup's share."""

        def own(references: list[Any]) -> list[Any]:
            return [reference.at[warpgroup] for reference in references]

        return self._replace(
            q=self.q.at[warpgroup],
            rewritten=own(self.rewritten),
            results=own(self.results),
            weights=own(self.weights),
            q_barriers=self.q_barriers.at[warpgroup],
        )


def scratch_types(plan: HopperPlan, interpret: bool) -> list[Any]:
    """What `Scratch` refers to, in its order."""
    bfloat16, count = np.dtype(jnp.bfloat16), plan.warpgroups
    ring = (plan.stages, BLOCK_KEYS)
    pages = tiled((*ring, plan.head_dim), plan.kv_dtype, plan.columns)
    scales = plgpu.SMEM(ring, jnp.float32)
    vector = plgpu.SMEM((count, M_ROWS), jnp.float32)
    filled = plgpu.Barrier(num_arrivals=plan.units * (2 if plan.quantized else 1), num_barriers=plan.stages)
    return [
        tiled((count, M_ROWS, plan.head_dim), bfloat16, plan.columns),
        pages,
        pages,
        [scales, scales] if plan.quantized else [],
        [tiled((count, BLOCK_KEYS, plan.head_dim), bfloat16, plan.columns)] if plan.rewrites else [],
        [plgpu.SMEM((count, M_ROWS, plan.columns), jnp.float32), vector, vector] if plan.partial else [],
        [tiled((count, M_ROWS, BLOCK_KEYS), bfloat16, BLOCK_KEYS)] if interpret else [],
        plgpu.Barrier(num_barriers=count),
        filled,
        filled,
        [plgpu.Barrier(num_arrivals=count, num_barriers=plan.stages)] if count > 1 else [],
    ]
