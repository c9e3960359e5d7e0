"""What is decided before a launch of the kernel in `triton_gpu_kernel.py`: sizes, warps and stages.

Legend: H head_dim, M query vectors of a program, L keys of a block, Z parts into which the keys of a piece are cut.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pallas_kernels.paged_attention.options import AttentionOptions
from pallas_kernels.triton_support import power_of_two

# A tensor core's product has 16 rows.
_FEWEST_VECTORS = 16
# These, and 12.x, have 99 KB of shared memory for a block of threads; the others have 163 KB and more.
_SMALL = ((8, 6), (8, 9))


class TritonSizes(NamedTuple):
    """How much a program does at a time."""

    vectors: int  # M, at most
    keys: int  # L
    num_warps: int
    num_stages: int


@dataclasses.dataclass(frozen=True)
class TritonPlan:
    """Everything static about a launch.

    Attributes:
        tile: tokens of a piece, at most.
        decoding: whether pieces are whole rows that decode, which mostly have one token.
        group: query heads of a kv head.
        wide: whether products are of float32.
        compute_capability: of the device, as 10 * major + minor.
    """

    tile: int
    decoding: bool
    num_kv_heads: int
    group: int
    head_dim: int
    page_size: int
    parts: int
    sizes: TritonSizes
    wide: bool
    kv_dtype: np.dtype
    options: AttentionOptions
    sinks: bool
    compute_capability: int

    @property
    def columns(self) -> int:
        """H, filled up to a power of two that a product can have."""
        return max(16, power_of_two(self.head_dim))

    @property
    def vectors(self) -> int:
        """M: a power of two, and no more than a piece mostly has."""
        mostly = 1 if self.decoding else self.tile
        return min(self.sizes.vectors, max(_FEWEST_VECTORS, power_of_two(mostly * self.group)))

    @property
    def blocks(self) -> int:
        """Programs that share the query vectors of a piece. Those that would have none end at once."""
        return -(-self.tile * self.group // self.vectors)

    @property
    def programs(self) -> int:
        """Those of a piece, with one part."""
        return self.num_kv_heads * self.blocks

    @property
    def working(self) -> int:
        """Those of them that mostly have something to do."""
        return self.num_kv_heads * -(-self.group // self.vectors) if self.decoding else self.programs

    def constants(self) -> dict[str, Any]:
        """The kernel's constants, by name."""
        pages = {np.dtype(np.int8): "int8", np.dtype(jnp.float8_e4m3fn): "fp8"}.get(self.kv_dtype, "plain")
        return {
            "kv_heads": self.num_kv_heads,
            "group": self.group,
            "head_dim": self.head_dim,
            "columns": self.columns,
            "page_size": self.page_size,
            "vectors": self.vectors,
            "keys": self.sizes.keys,
            "blocks": self.blocks,
            "parts": self.parts,
            "last_first": not self.decoding,  # the last tile of a prompt sees most keys
            "wide": self.wide,
            "pages": pages,
            "scale": self.options.scale,
            "soft_cap": self.options.soft_cap or 0.0,
            "window": self.options.sliding_window or 0,
            "has_sinks": self.sinks,
        }


def sizes(
    compute_capability: tuple[int, int], head_dim: int, kv_dtype: np.dtype, wide: bool, decoding: bool
) -> TritonSizes:
    """Sizes found by compiling for compute capability 8.0 to 12.1: large ones that keep to the registers, all but a
    few, and to the shared memory of a card. Three stages are two blocks of keys and values ahead.

    Args:
        head_dim: H.
        kv_dtype: the pages' type.
        wide: whether products are of float32.
        decoding: whether pieces are rows that decode.
    """
    narrow = kv_dtype.itemsize == 1
    if wide:  # products without tensor cores keep their factors in registers
        return TritonSizes(16, 32 if head_dim <= 128 else 16, 4, 3)
    if decoding:  # few vectors for many keys: several programs share a multiprocessor and its memory
        return TritonSizes(64 if head_dim <= 128 else 32, 64 if head_dim <= (128 if narrow else 64) else 32, 4, 3)
    if head_dim > 128:
        small = compute_capability in _SMALL or compute_capability[0] == 12
        return TritonSizes(64, 16 if small and not narrow else 32, 8, 3)
    if compute_capability[0] == 12 and head_dim > 64:  # where the compiler keeps more in registers
        return TritonSizes(64, 32, 4, 3) if narrow else TritonSizes(128, 32, 8, 3)
    return TritonSizes(128, 32 if narrow and head_dim > 64 else 64, 8, 3)  # widening takes registers


def is_wide(query_dtype: np.dtype, kv_dtype: np.dtype) -> bool:
    """Whether products must be of float32."""
    return np.dtype(np.float32) in (query_dtype, kv_dtype)
