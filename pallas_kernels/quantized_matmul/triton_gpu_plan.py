"""What is decided before a launch of the kernel in `triton_gpu_kernel.py`: tiles, parts, warps and stages, and the
bytes that follow from them.

Legend: T rows, O outputs, I inputs, A groups, g = I // A, Z parts, BO outputs of a program, BT rows of a program, B
slices of a turn of its loop, s inputs of a slice, L numbers of a word.

With few rows a product takes as long as its weights take to be read. So every weight is read once: a program has all
of the rows, up to 128, and 16 at least, which is what tensor cores multiply; rows that are not there are not read.
Programs have few outputs then, so that there is one for every multiprocessor without cutting the inputs: 4,096 outputs
by 32 are 128. Outputs that are few would have few warps to widen them, 16 outputs each; slices of the inputs have warps
of their own. What a program has on its way must cover the time that memory takes to answer: if that is 0.7 us, the 2
TB/s of an A100 are 13 KB for each of 108 multiprocessors; three turns of four slices of 32 outputs by 128 inputs of
int4 are 24.

Every program reads its rows' activations again, which come from the level 2 cache: 2 * T bytes an input beside BO / 2
of int4, so more rows want more outputs. Many rows take as long as their arithmetic: then tiles are the largest whose
sums stay in registers, and weights that several programs read are in the cache, as these programs follow each other.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from pallas_kernels.qtensor import STORAGE, Kind
from pallas_kernels.triton_support import power_of_two

FEWEST_ROWS = 16
# Programs that a launch should have: as many as the cards of compute capability 8.0 (108), 8.6, 8.9 (142 at most) and
# 9.0 (132) have multiprocessors, roughly, and a power of two, as outputs often are.
_PROGRAMS_WANTED = 128
_MOST_PARTS = 16


class TritonMatmulSizes(NamedTuple):
    """How much a program does at a time."""

    rows: int  # BT
    outputs: int  # BO
    slices: int  # B
    slice_inputs: int  # s, at most
    num_warps: int
    num_stages: int


@dataclasses.dataclass(frozen=True)
class TritonMatmulPlan:
    """Everything static about a launch.

    Attributes:
        rows, outputs, inputs, groups: T, O, I and A.
        dtype: of the activations.
        compute_capability: of the device, as 10 * major + minor.
    """

    rows: int
    outputs: int
    inputs: int
    groups: int
    kind: Kind
    has_zeros: bool
    dtype: np.dtype
    compute_capability: int

    @functools.cached_property
    def sizes(self) -> TritonMatmulSizes:
        """Those of a program; see `sizes`."""
        return sizes(self.rows, self.kind, wide=self.dtype == np.float32)

    @property
    def group(self) -> int:
        """g."""
        return self.inputs // self.groups

    @property
    def slice_inputs(self) -> int:
        """s: inputs of one group. A power of two where there are several groups."""
        return self.sizes.slice_inputs if self.groups == 1 else min(self.group, self.sizes.slice_inputs)

    @property
    def turn_inputs(self) -> int:
        """Inputs of a turn of the loop."""
        return self.sizes.slices * self.slice_inputs

    @property
    def numbers(self) -> int:
        """L: for int4 as many as make words of 32 bits and products of at least 16 inputs, which tensor cores want."""
        if self.kind != "int4":
            return 1
        return next(count for count in (8, 4, 2) if self.group % (count * (1 if self.groups == 1 else 16)) == 0)

    @property
    def row_tiles(self) -> int:
        """Programs that read the same weights."""
        return -(-self.rows // self.sizes.rows)

    @property
    def tiles(self) -> int:
        """Programs of a part."""
        return self.row_tiles * -(-self.outputs // self.sizes.outputs)

    @functools.cached_property
    def parts(self) -> int:
        """Z: into how many parts the inputs are cut, each with sums of its own.

        Parts let more multiprocessors read, and cost the sums that they write and XLA reads again. The time is as the
        bytes over the share of the device that reads; the fewest parts with the least time are taken.
        """
        turns = -(-self.inputs // self.turn_inputs)
        counts = range(1, min(_MOST_PARTS, turns) + 1)
        return min(counts, key=lambda parts: self.moved(parts) / min(1.0, self.tiles * parts / _PROGRAMS_WANTED))

    @property
    def weight_bytes(self) -> int:
        """Of the values, scales and zero points, as they lie in memory."""
        values = self.outputs * self.inputs * STORAGE[self.kind].itemsize // (2 if self.kind == "int4" else 1)
        return values + self.outputs * self.groups * (5 if self.has_zeros else 4)

    def moved(self, parts: int) -> int:
        """Bytes from and to memory with so many parts: weights, activations and outputs once, sums of parts written and
        read. What several programs read comes from memory once."""
        activations = self.rows * self.inputs * self.dtype.itemsize
        sums = 4 * self.rows * self.outputs
        return self.weight_bytes + activations + sums + (2 * parts * sums if parts > 1 else 0)

    def constants(self) -> dict[str, Any]:
        """The kernel's constants, by name."""
        return {
            "rows": self.rows,
            "outputs": self.outputs,
            "inputs": self.inputs,
            "groups": self.groups,
            "parts": self.parts,
            "row_tile": self.sizes.rows,
            "output_tile": self.sizes.outputs,
            "slices": self.sizes.slices,
            "slice_inputs": self.slice_inputs,
            "numbers": self.numbers,
            "kind": self.kind,
            "has_zeros": self.has_zeros,
            "whole": self.inputs % self.turn_inputs == 0,
        }


def sizes(rows: int, kind: Kind, wide: bool) -> TritonMatmulSizes:
    """Sizes whose sums, factors and copies fit compute capability 8.0, 8.6, 8.9 and 9.0, found by compiling for them.

    Args:
        rows: T.
        wide: whether products are of float32: without tensor cores their factors lie in registers.
    """
    if wide:
        return TritonMatmulSizes(FEWEST_ROWS, 32, 1, 128 if kind == "int4" else 32, 4, 3)
    if rows <= FEWEST_ROWS:
        return TritonMatmulSizes(FEWEST_ROWS, 32, 4, 128 if kind == "int4" else 64, 8, 4)
    if rows <= 64:
        return TritonMatmulSizes(max(32, power_of_two(rows)), 64, 1, 128, 4, 4)
    return TritonMatmulSizes(128, 128, 1, 128 if kind == "int4" else 64, 8, 3)
