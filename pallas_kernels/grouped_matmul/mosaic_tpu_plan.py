"""What the TPU kernel of the grouped product does with given sizes: its tiles, and whether they fit the chip.

Plain arithmetic, so that dispatch may ask before anything of Pallas is imported.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from pallas_kernels.rounding import round_up

LANES = 128
SUBLANES = 8
ROWS_OF_A_TILE = 16  # rows of a tile of bfloat16
_TILE_ROWS = 128  # what the matrix unit keeps a block of weights for anyway
_TILE_OUTPUTS = 512
_LONGEST_TILE_OUTPUTS = 1024  # where there are few inputs
_BLOCK_BYTES = 2 << 20  # a block of weights that memory brings at its full rate, and the grid's own work hides behind
_UNIT = 512  # inputs of one product

# Bytes of VMEM that the kernel takes at most. A v4 core has 16 MiB, v5p and tpu7x have 64, v5e and v6e 128 (JAX's own
# table, `jax.experimental.pallas.tpu.get_tpu_info`); XLA keeps arrays of its own there.
_MOST_VMEM = {"TPU v4": 12 << 20}
_MOST_VMEM_ELSEWHERE = 32 << 20
_UNASKED_VMEM = 16 << 20  # XLA lets a kernel have that much without being told


@dataclasses.dataclass(frozen=True)
class TpuGroupedPlan:
    """Everything static about a launch. Rows are those of the kernel: three for each row of float32 activations.

    Attributes:
        leading, outputs: output axes in front of the last one, as one, and the last one.
        group: inputs that share a scale, of a weight in words of int4; None: the weight is bfloat16.
        across: a bfloat16 weight lies in memory with its outputs in the lanes.
        vmem_limit: bytes of VMEM to ask for; None: what a kernel has unasked.
    """

    rows: int
    experts: int
    leading: int
    outputs: int
    inputs: int
    group: int | None
    zeros: bool
    across: bool
    tile_rows: int
    tile_outputs: int
    vmem_limit: int | None

    @property
    def row_tiles(self) -> int:
        return -(-self.rows // self.tile_rows)

    @property
    def padded_rows(self) -> int:
        """Whole rows of tiles of bfloat16."""
        return round_up(self.rows, ROWS_OF_A_TILE)

    @property
    def output_tiles(self) -> int:
        return -(-self.outputs // self.tile_outputs)

    @property
    def items(self) -> int:
        """Pieces of work at most: a tile of rows for each expert that has some in it. A border between two experts
        inside of a tile, of which there is one fewer than experts, makes one more piece than there are tiles."""
        return self.row_tiles + min(self.experts, self.rows) - 1

    @property
    def grid(self) -> tuple[int, int, int]:
        """Leading outputs, tiles of outputs, pieces of work."""
        return self.leading, self.output_tiles, self.items

    @property
    def groups(self) -> int:
        """Of the inputs of a weight in words."""
        assert self.group is not None
        return self.inputs // self.group

    @property
    def scales(self) -> Literal["matrix", "rows", "eights"]:
        """How scales are read.

        As a matrix where XLA lays down an expert's own. Where its groups do not fill rows of tiles, XLA lays the
        experts of a group side by side instead, as rows of tiles of which a copy cannot take one; but whole tiles can
        be read as rows of 128 lanes, of which it can. Else scales come for 8 experts at a time; each 8 are read once
        all the same, as pieces of work go from expert to expert.
        """
        if self.group is None or not scales_lie_abreast(self.experts, self.groups):
            return "matrix"
        return "eights" if self.experts % SUBLANES or self.outputs % LANES else "rows"

    @property
    def unit(self) -> int:
        """Inputs of one product; with groups: of one group, or 128 lanes that several share."""
        if self.group is None:
            return _UNIT
        return next((size for size in (512, 256) if self.group % size == 0), LANES)

    @property
    def padded_inputs(self) -> int:
        """Inputs of a row of activations in the kernel: for words whole units, for bfloat16 those of the weight."""
        return self.inputs if self.group is None else round_up(self.inputs, self.unit)

    @property
    def block_bytes(self) -> int:
        """A block of the weight, with its scales and zero points, in VMEM."""
        if self.group is None:
            outputs = self.tile_outputs, self.inputs
            return 2 * max(_padded(*outputs, across=False), _padded(*outputs, across=True))
        scales = round_up(self.groups, 32) if self.scales == "matrix" else self.groups * SUBLANES
        return self.tile_outputs * (self.padded_inputs // 2 + scales * (5 if self.zeros else 4))

    @property
    def vmem(self) -> int:
        """Bytes of VMEM, about: two of each block, the sums, and what one product has beside them."""
        rows, outputs = self.tile_rows, self.tile_outputs
        activations = 2 * rows * round_up(self.padded_inputs, LANES)
        sums = 4 * rows * outputs
        beside = sums
        if self.group is not None:
            shared = max(1, LANES // self.group)
            beside = sums * shared + 2 * self.unit * outputs + 2 * shared * rows * self.unit
            beside += 4 * self.groups * outputs * self.zeros
        return 2 * (self.block_bytes + activations + sums) + sums + beside


def most_vmem(device_kind: str) -> int:
    """Bytes of VMEM that the kernel may take."""
    return _MOST_VMEM.get(device_kind, _MOST_VMEM_ELSEWHERE)


def smallest_vmem(experts: int, inputs: int, group: int | None, zeros: bool) -> int:
    """Bytes of VMEM that the smallest tiles take, whatever the rows and outputs."""
    smallest = TpuGroupedPlan(1, experts, 1, LANES, inputs, group, zeros, False, ROWS_OF_A_TILE, LANES, None)
    return smallest.vmem


def plan_of(
    rows: int, experts: int, leading: int, outputs: int, inputs: int, group: int | None, zeros: bool, device_kind: str
) -> TpuGroupedPlan:
    """The largest tiles, of rows before outputs, that fit `device_kind`; or the smallest (see `smallest_vmem`)."""
    most = most_vmem(device_kind)
    bits = 16 if group is None else 4
    longest = min(_LONGEST_TILE_OUTPUTS, max(_TILE_OUTPUTS, _BLOCK_BYTES * 8 // bits // inputs // LANES * LANES))
    # Groups that share lanes multiply the rows of a product.
    most_rows = _TILE_ROWS if group is None else min(_TILE_ROWS, max(ROWS_OF_A_TILE, 2 * group))
    tile_rows = min(round_up(rows, ROWS_OF_A_TILE), most_rows)
    while True:
        for tile_outputs in range(longest, 0, -LANES):
            plan = TpuGroupedPlan(
                rows=rows,
                experts=experts,
                leading=leading,
                outputs=outputs,
                inputs=inputs,
                group=group,
                zeros=zeros,
                across=group is None and _padded(outputs, inputs, across=True) < _padded(outputs, inputs, across=False),
                tile_rows=tile_rows,
                tile_outputs=_even_tile(outputs, tile_outputs),
                vmem_limit=None if most <= _UNASKED_VMEM else most + (8 << 20),
            )
            if plan.vmem <= most or (tile_rows == ROWS_OF_A_TILE and tile_outputs == LANES):
                return plan
        tile_rows = max(ROWS_OF_A_TILE, tile_rows // 2 // ROWS_OF_A_TILE * ROWS_OF_A_TILE)


def _even_tile(outputs: int, most: int) -> int:
    """The smallest tile that covers `outputs` in as few tiles as `most` does: all of them, or whole lanes."""
    if outputs <= min(most, LANES):
        return outputs
    return round_up(-(-outputs // -(-outputs // most)), LANES)


def scales_lie_abreast(experts: int, groups: int) -> bool:
    """Whether XLA keeps scales (experts, groups, outputs) with the experts as rows of tiles: the fewer numbers."""
    return round_up(experts, SUBLANES) * groups < experts * round_up(groups, SUBLANES)


def _padded(outputs: int, inputs: int, *, across: bool) -> int:
    """Numbers that a matrix takes in memory, its lanes and rows filled up. XLA lays a weight down so that they are
    fewest, whatever the order of its axes; an operand of a kernel that lies otherwise it would copy at every step."""
    rows, lanes = (inputs, outputs) if across else (outputs, inputs)
    return round_up(rows, SUBLANES) * round_up(lanes, LANES)
