"""What is decided before a launch of the kernel in `mosaic_gpu_kernel.py`: tiles, shared memory and barriers.

Legend: R rows, E experts, N outputs and I inputs of an expert, C warpgroups that compute.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import mosaic_gpu_mxfp4
from pallas_kernels.mosaic_gpu_int4 import M_ROWS, Int4Blocks
from pallas_kernels.mosaic_gpu_support import tiled

PROCESSORS = 132  # multiprocessors of an H100 (SXM) or H200
STORED_ROWS = 32  # that pass through shared memory on their way out at a time
# Rows up to which an expert has one tile, so that its weights are read once.
FEW_ROWS = 64
_MOST_ROWS = 128  # of a tile: 64 sums in each thread's registers
# Of numbers in 4 bits, four warpgroups have registers for this many rows; two, for more.
_PACKED_ROWS = 32
_PACKED_MIDDLE_ROWS = 256  # up to here tiles of FEW_ROWS leave more of shared memory to weights
_SHARED_BYTES = 232_448  # of a block of threads on Hopper
_OTHER_BYTES = 2048  # barriers, and what the compiler aligns
_MOST_STAGES = 16


@dataclasses.dataclass(frozen=True)
class HopperGroupedPlan:
    """Everything static about a launch. Build it with `plan_of`."""

    num_rows: int  # R, a multiple of 8
    num_experts: int  # E
    num_outputs: int  # N
    num_inputs: int  # I
    tile: int  # rows
    warpgroups: int  # C; one more copies
    block: int  # inputs of a stage
    kind: str | None = None  # None: weights in bfloat16; "int4" or "mxfp4"
    group: int = 0  # inputs that share a scale
    zeros: bool = False
    count_copies: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        """Rows of a product. An item takes the narrowest one that holds its rows."""
        return (*(size for size in (8, 16, 32, 64) if size < self.tile), self.tile)

    @property
    def output_tiles(self) -> int:
        """Tiles of 64 outputs, of a warpgroup; the last one may begin before its place, to end with the outputs."""
        return -(-self.num_outputs // M_ROWS)

    @property
    def wide_tiles(self) -> int:
        """Tiles of outputs of a block of threads; warpgroups that have none in the last one are idle there."""
        return -(-self.output_tiles // self.warpgroups)

    @property
    def row_tiles(self) -> int:
        """The most tiles that rows can be cut into: each expert, and padding behind them, begins with one of its own,
        and whatever rows are left fill others."""
        begun = min(self.num_experts + 1, self.num_rows)
        return begun + (self.num_rows - begun) // self.tile

    @property
    def processors(self) -> int:
        """Blocks of threads: one for each multiprocessor, which takes one item after another."""
        return min(PROCESSORS, self.row_tiles * self.wide_tiles)

    @property
    def blocks(self) -> int:
        """Blocks of inputs."""
        return self.num_inputs // self.block

    @property
    def cut(self) -> Int4Blocks:
        """How the inputs of a weight in 4 bits are cut."""
        return Int4Blocks(self.block, self.group)

    @property
    def unit(self) -> int:
        """Inputs of one product. It does not depend on the plan's other sizes, so that sums do not either."""
        return math.gcd(self.num_inputs, 64) if self.kind is None else self.cut.unit

    @property
    def block_bytes(self) -> int:
        """Of a block of one output's weights."""
        return self.block * 2 if self.kind is None else self.block // 2

    @property
    def stored(self) -> int:
        """Rows that pass through shared memory on their way out at a time."""
        return min(self.tile, STORED_ROWS)

    @property
    def stages(self) -> int:
        """Blocks in shared memory."""
        each = self.warpgroups * M_ROWS * self.block_bytes + self.tile * self.block * 2
        results = self.warpgroups * self.stored * M_ROWS * 4
        return min(_MOST_STAGES, (_SHARED_BYTES - _OTHER_BYTES - results) // each)


def plan_of(
    num_rows: int,
    num_experts: int,
    num_outputs: int,
    num_inputs: int,
    *,
    kind: str | None = None,
    group: int = 0,
    zeros: bool = False,
    count_copies: bool = False,
) -> HopperGroupedPlan:
    """The plan for a product; 8 divides `num_rows`, sizes are as `api` demands. Sums do not depend on it: every row's
    are taken over the same inputs in the same order."""
    if kind is None:
        few = num_rows <= FEW_ROWS
        most, warpgroups = (FEW_ROWS, 2) if few else (_MOST_ROWS, 4)
        block = next(size for size in ((128, 64, 32) if few else (64, 32)) if num_inputs % size == 0)
    else:
        most = FEW_ROWS if num_rows <= _PACKED_MIDDLE_ROWS else _MOST_ROWS
        warpgroups = 4 if num_rows <= _PACKED_ROWS else 2
        largest = 256 if num_rows <= _PACKED_MIDDLE_ROWS else 128
        cut = mosaic_gpu_mxfp4.blocks_of(num_inputs) if kind == "mxfp4" else Int4Blocks.of(num_inputs, group, largest)
        block = cut.block
    return HopperGroupedPlan(
        num_rows=num_rows,
        num_experts=num_experts,
        num_outputs=num_outputs,
        num_inputs=num_inputs,
        tile=min(num_rows, most),
        warpgroups=next(count for count in (4, 2, 1) if count <= warpgroups and (count - 1) * M_ROWS < num_outputs),
        block=block,
        kind=kind,
        group=group,
        zeros=zeros,
        count_copies=count_copies,
    )


class HopperGroupedScratch(NamedTuple):
    """Shared memory and barriers of a block of threads."""

    x: Any  # (stages, tile, block) bfloat16
    values: Any  # (stages, C, 64, block) bfloat16, or (stages, C, 64, block // 2) uint8
    results: Any  # (C, stored, 64) float32
    factors: list[Any]  # (C, 64, inputs of a product) bfloat16, in the interpreter
    filled: Any  # (stages,)
    read: Any  # (stages,)


def scratch_types(plan: HopperGroupedPlan, interpret: bool) -> list[Any]:
    """What `HopperGroupedScratch` refers to, in its order."""
    count, bfloat16 = plan.warpgroups, np.dtype(jnp.bfloat16)
    staged = functools.partial(tiled, columns=plan.unit)
    packed, width = np.dtype(np.uint8), plan.block // 2
    return [
        staged((plan.stages, plan.tile, plan.block), bfloat16),
        staged((plan.stages, count, M_ROWS, plan.block), bfloat16)
        if plan.kind is None
        else tiled((plan.stages, count, M_ROWS, width), packed, width),
        plgpu.SMEM((count, plan.stored, M_ROWS), jnp.float32),
        [staged((count, M_ROWS, plan.unit), bfloat16)] if interpret else [],
        plgpu.Barrier(num_arrivals=count + 1, num_barriers=plan.stages),
        plgpu.Barrier(num_arrivals=count, num_barriers=plan.stages),
    ]
