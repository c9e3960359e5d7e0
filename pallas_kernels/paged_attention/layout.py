"""How K and V lie in memory: page shapes, storage type, sharded axis, bytes. No other module knows these.

Legend: P pages, K kv heads, H head_dim.

One layer's cache is two arrays, one for K and one for V, each `(P, K, page_size, H)`: head-major inside a page, so that
the tokens of one head are contiguous (a matrix product over a page reads one block) and the head axis can be sharded.
Page 0 is the null page: padding is written there and its contents mean nothing.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec, Sharding

from pallas_kernels.dispatch import DeviceTarget

# A row-major array on TPU is tiled: the last axis by 128, the one before by 8, or by less where the axis is shorter.
_TPU_LANES = 128
_TPU_ROWS = 8


@dataclasses.dataclass(frozen=True)
class KVLayout:
    """Shape, storage type and size of one layer's K and V pages. Build it with `kv_layout`.

    Attributes:
        dtype: what the values mean, float32 or bfloat16.
        storage_dtype: the arrays' dtype; uint16 means the bits of bfloat16.
        num_kv_heads, head_dim, page_size: K, H and tokens per page.
        bytes_per_page: device bytes of one page of K and one of V in one layer, over all KV heads, with the padding
            of a row-major array. The head axis is never padded: with the heads sharded n ways a device holds 1/n of it.
    """

    dtype: np.dtype
    storage_dtype: np.dtype
    num_kv_heads: int
    head_dim: int
    page_size: int
    bytes_per_page: int

    head_axis = 1
    """The axis of a page array that tensor parallelism shards."""

    def shape(self, num_pages: int) -> tuple[int, int, int, int]:
        """Shape of the K array, and of the V array: (P, K, page_size, H)."""
        return (num_pages, self.num_kv_heads, self.page_size, self.head_dim)

    def partition_spec(self, mesh_axis: str | None) -> PartitionSpec:
        """Sharding of a page array whose heads are split over `mesh_axis` (None: replicated)."""
        return page_partition_spec(mesh_axis)

    def struct(self, num_pages: int, sharding: Sharding | None = None) -> jax.ShapeDtypeStruct:
        """Abstract K (or V) array, for lowering without memory."""
        return jax.ShapeDtypeStruct(self.shape(num_pages), self.storage_dtype, sharding=sharding)

    def zeros(self, num_pages: int, sharding: Sharding | None = None) -> tuple[jax.Array, jax.Array]:
        """Fresh K and V arrays of zeros, made in place on the sharding's devices (default device when None)."""
        # jit knows `jnp.zeros` again on the next call, so that a model's layers share one compilation.
        make = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sharding)
        return make(self.shape(num_pages), self.storage_dtype), make(self.shape(num_pages), self.storage_dtype)


def kv_layout(
    target: DeviceTarget, dtype: jax.typing.DTypeLike, num_kv_heads: int, head_dim: int, page_size: int
) -> KVLayout:
    """The cache layout for one device kind.

    bfloat16 is stored as uint16 on CPU: XLA:CPU widens a whole bfloat16 array to float32 and back to scatter into it,
    and a uint16 array it does not touch.

    Args:
        target: the device that will hold the pages.
        dtype: float32 or bfloat16.
        num_kv_heads, head_dim, page_size: positive sizes.

    Raises:
        ValueError: another dtype, or a size below 1.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.dtype(jnp.float32), np.dtype(jnp.bfloat16)):
        raise ValueError(f"kv dtype is {dtype.name}; allowed: float32, bfloat16")
    for name, value in (("num_kv_heads", num_kv_heads), ("head_dim", head_dim), ("page_size", page_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    storage = np.dtype(np.uint16) if target.platform == "cpu" and dtype.itemsize == 2 else dtype
    rows, lanes = page_size, head_dim
    if target.platform == "tpu":
        shortest = 4 // dtype.itemsize  # narrow types are packed into 32 bits along this axis
        rows = _round_up(page_size, min(_TPU_ROWS, max(shortest, 1 << (page_size - 1).bit_length())))
        lanes = _round_up(head_dim, _TPU_LANES)
    return KVLayout(
        dtype=dtype,
        storage_dtype=storage,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        bytes_per_page=2 * num_kv_heads * rows * lanes * dtype.itemsize,
    )


def page_partition_spec(mesh_axis: str | None) -> PartitionSpec:
    """Sharding of a page array `(P, K, page_size, H)` whose heads are split over `mesh_axis`."""
    return PartitionSpec(*(mesh_axis if axis == KVLayout.head_axis else None for axis in range(4)))


def value_dtype(storage_dtype: jax.typing.DTypeLike) -> np.dtype:
    """What a page array's dtype means: uint16 holds bfloat16, anything else itself."""
    dtype = np.dtype(storage_dtype)
    return np.dtype(jnp.bfloat16) if dtype == np.uint16 else dtype


def to_storage(values: jax.Array, storage_dtype: jax.typing.DTypeLike) -> jax.Array:
    """Rounds values to the cache's type and gives them the bits that a page array of `storage_dtype` holds."""
    rounded = values.astype(value_dtype(storage_dtype))
    return rounded if rounded.dtype == storage_dtype else lax.bitcast_convert_type(rounded, storage_dtype)


def to_float32(stored: jax.Array) -> jax.Array:
    """The float32 values of stored pages, exactly.

    uint16 is widened by integer shift, as a bfloat16 is the upper half of a float32; so no bfloat16 arithmetic reaches
    XLA:CPU, which has slow paths for it.
    """
    if stored.dtype == jnp.uint16:
        return lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, jnp.float32)
    return stored.astype(jnp.float32)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
