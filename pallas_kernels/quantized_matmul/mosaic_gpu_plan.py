"""What is decided before a launch of the kernel in `mosaic_gpu_kernel.py`: tiles, parts, shared memory and barriers.

Legend: T tokens, N outputs, I inputs, C warpgroups that compute, Z parts into which the inputs are cut.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic_gpu_int4 import M_ROWS, Int4Blocks
from pallas_kernels.mosaic_gpu_support import tiled

PROCESSORS = 132  # multiprocessors of an H100 (SXM) or H200
# Tokens up to which four warpgroups have registers for a tile: memory is the limit there. Beyond, two have them.
FEW_TOKENS = 32
_MOST_TOKENS = 128  # of a tile: 64 sums and 64 of the current group in each thread's registers
_SHARED_BYTES = 232_448  # of a block of threads on Hopper
_OTHER_BYTES = 2048  # barriers, and what the compiler aligns
_MOST_STAGES = 16
_MOST_PARTS = 32


@dataclasses.dataclass(frozen=True)
class HopperMatmulPlan:
    """Everything static about a launch. Build it with `plan_of`."""

    num_outputs: int  # N
    num_inputs: int  # I
    group: int
    tile: int  # tokens
    token_tiles: int
    warpgroups: int  # C; one more copies
    block: int  # inputs of a stage
    parts: int  # Z
    zeros: bool
    count_copies: bool = False

    @property
    def rows(self) -> int:
        """Outputs of a tile."""
        return self.warpgroups * M_ROWS

    @property
    def row_tiles(self) -> int:
        return -(-self.num_outputs // self.rows)

    @property
    def blocks(self) -> int:
        """Blocks of inputs."""
        return self.num_inputs // self.block

    @property
    def blocks_of_part(self) -> int:
        """Those of every part but the last, which may have fewer, but has one."""
        return -(-self.blocks // self.parts)

    @property
    def items(self) -> int:
        """Pieces of work: tiles of tokens, within tiles of outputs, within parts."""
        return self.parts * self.row_tiles * self.token_tiles

    @property
    def processors(self) -> int:
        """Blocks of threads: one for each multiprocessor, which takes one piece after another."""
        return min(PROCESSORS, self.items)

    @property
    def cut(self) -> Int4Blocks:
        """How the inputs are cut."""
        return Int4Blocks(self.block, self.group)

    @property
    def stages(self) -> int:
        """Blocks in shared memory."""
        each = self.rows * self.block // 2 + self.tile * self.block * 2
        return min(_MOST_STAGES, (_SHARED_BYTES - _OTHER_BYTES - self.rows * self.tile * 4) // each)


def plan_of(
    num_tokens: int,
    num_outputs: int,
    num_inputs: int,
    group: int,
    *,
    zeros: bool,
    count_copies: bool = False,
) -> HopperMatmulPlan:
    """The plan for a product; `num_outputs` is as `api` demands, and 32 divides `num_inputs` and `group`."""
    most = 4 if num_tokens <= FEW_TOKENS else 2
    warpgroups = next(count for count in (4, 2, 1) if count <= most and (count * M_ROWS <= num_outputs or count == 1))
    token_tiles = -(-num_tokens // _MOST_TOKENS)
    plan = HopperMatmulPlan(
        num_outputs=num_outputs,
        num_inputs=num_inputs,
        group=group,
        tile=-(-num_tokens // (8 * token_tiles)) * 8,
        token_tiles=token_tiles,
        warpgroups=warpgroups,
        block=Int4Blocks.of(num_inputs, group).block,
        parts=1,
        zeros=zeros,
        count_copies=count_copies,
    )
    return dataclasses.replace(plan, parts=_parts(plan))


def _parts(plan: HopperMatmulPlan) -> int:
    """The Z that ends first, if a piece takes as long as its blocks and two more: its sums go to memory and back.

    Up to FEW_TOKENS tokens it does not depend on how many there are, so that a token's bits do not either.
    """

    def duration(parts: int) -> int:
        cut = dataclasses.replace(plan, parts=parts)
        return -(-cut.items // PROCESSORS) * (cut.blocks_of_part + 2)

    possible = (parts for parts in range(1, _MOST_PARTS + 1) if -(-plan.blocks // -(-plan.blocks // parts)) == parts)
    return min(possible, key=duration)


class HopperMatmulScratch(NamedTuple):
    """Shared memory and barriers of a block of threads."""

    x: Any  # (stages, tile, block) bfloat16
    values: Any  # (stages, C, 64, block // 2) uint8
    results: Any  # (C, 64, tile) float32
    widened: list[Any]  # (C, 64, unit) bfloat16, in the interpreter
    filled: Any  # (stages,)
    read: Any  # (stages,)


def scratch_types(plan: HopperMatmulPlan, interpret: bool) -> list[Any]:
    """What `Scratch` refers to, in its order."""
    count, bfloat16 = plan.warpgroups, np.dtype(jnp.bfloat16)
    staged = functools.partial(tiled, columns=plan.cut.unit)
    return [
        staged((plan.stages, plan.tile, plan.block), bfloat16),
        tiled((plan.stages, count, M_ROWS, plan.block // 2), np.dtype(np.uint8), plan.block // 2),
        plgpu.SMEM((count, M_ROWS, plan.tile), jnp.float32),
        [staged((count, M_ROWS, plan.cut.unit), bfloat16)] if interpret else [],
        plgpu.Barrier(num_arrivals=count + 1, num_barriers=plan.stages),
        plgpu.Barrier(num_arrivals=count, num_barriers=plan.stages),
    ]
