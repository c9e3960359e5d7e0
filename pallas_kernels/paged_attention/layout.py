"""How K and V lie in memory: page shapes, storage type, sharded axis, bytes. No other module knows these.

Legend: P pages, K kv heads, H head_dim.

One layer's cache is two arrays, one for K and one for V, each `(P, K, page_size, H)`: head-major inside a page, so that
the tokens of one head are contiguous (a matrix product over a page reads one block) and the head axis can be sharded.
Page 0 is the null page: padding is written there and its contents mean nothing.

int8 and float8_e4m3fn pages are `QuantizedPages`: the same array, and a float32 scale for every token and head, so that
a token's error does not depend on its neighbours and a page can be written token by token. Value = stored * scale.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.dispatch import DeviceTarget

# A row-major array on TPU is tiled: the last axis by 128, the one before by 8, or by less where the axis is shorter.
_TPU_LANES = 128
_TPU_ROWS = 8


# Narrow types and their largest number. float8_e4m3fn: OCP 8-bit floating point specification, E4M3.
QUANTIZED_DTYPES = {np.dtype(np.int8): 127.0, np.dtype(jnp.float8_e4m3fn): 448.0}
DTYPES = (np.dtype(np.float32), np.dtype(jnp.bfloat16), *QUANTIZED_DTYPES)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedPages:
    """K, or V, pages of a narrow type with their scales.

    Attributes:
        values: (P, K, page_size, H) int8 or float8_e4m3fn.
        scales: (P, K, page_size) float32, not negative; 0 where the token's values are all 0.
    """

    values: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """(P, K, page_size, H)."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        """The values' type."""
        return np.dtype(self.values.dtype)

    @property
    def ndim(self) -> int:
        """4."""
        return self.values.ndim


Pages = jax.Array | QuantizedPages


@dataclasses.dataclass(frozen=True)
class KVLayout:
    """Shape, storage type and size of one layer's K and V pages. Build it with `kv_layout`.

    Attributes:
        dtype: what the values are rounded to: float32, bfloat16, int8 or float8_e4m3fn.
        storage_dtype: the arrays' dtype; uint16 means the bits of bfloat16.
        num_kv_heads, head_dim, page_size: K, H and tokens per page.
        bytes_per_page: device bytes of one page of K and one of V in one layer, over all KV heads, with the padding
            of a row-major array, and with the scales. The head axis of the values is never padded: with the heads
            sharded n ways a device holds 1/n of them.
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

    @property
    def quantized(self) -> bool:
        """Whether pages carry scales."""
        return self.dtype in QUANTIZED_DTYPES

    def shardings(self, mesh: Mesh, mesh_axis: str | None) -> Any:
        """Sharding of a page array, or of both arrays of `QuantizedPages`, over `mesh_axis` (None: replicated)."""
        spec = page_partition_spec(mesh_axis, quantized=self.quantized)
        return jax.tree.map(lambda s: NamedSharding(mesh, s), spec, is_leaf=lambda s: isinstance(s, PartitionSpec))

    def struct(self, num_pages: int, shardings: Any = None) -> Any:
        """Abstract K (or V) pages, for lowering without memory."""
        values, scales = (
            (shardings.values, shardings.scales) if isinstance(shardings, QuantizedPages) else (shardings,) * 2
        )
        shape = self.shape(num_pages)
        pages = jax.ShapeDtypeStruct(shape, self.storage_dtype, sharding=values)
        if not self.quantized:
            return pages
        return QuantizedPages(pages, jax.ShapeDtypeStruct(shape[:-1], jnp.float32, sharding=scales))  # type: ignore[arg-type]

    def zeros(self, num_pages: int, shardings: Any = None) -> tuple[Pages, Pages]:
        """Fresh K and V pages of zeros, made in place on the shardings' devices (default device when None)."""
        # jit knows `_zeros` again on the next call, so that a model's layers share one compilation.
        make = jax.jit(_zeros, static_argnums=(0, 1, 2), out_shardings=shardings)
        arguments = (self.shape(num_pages), self.storage_dtype, self.quantized)
        return make(*arguments), make(*arguments)


def _zeros(shape: tuple[int, ...], dtype: np.dtype, quantized: bool) -> Pages:
    values = jnp.zeros(shape, dtype)
    return QuantizedPages(values, jnp.zeros(shape[:-1], jnp.float32)) if quantized else values


def kv_layout(
    target: DeviceTarget, dtype: jax.typing.DTypeLike, num_kv_heads: int, head_dim: int, page_size: int
) -> KVLayout:
    """The cache layout for one device kind.

    bfloat16 is stored as uint16 on CPU: XLA:CPU widens a whole bfloat16 array to float32 and back to scatter into it,
    and a uint16 array it does not touch.

    Args:
        target: the device that will hold the pages.
        dtype: float32, bfloat16, int8 or float8_e4m3fn.
        num_kv_heads, head_dim, page_size: positive sizes.

    Raises:
        ValueError: another dtype, or a size below 1.
    """
    dtype = np.dtype(dtype)
    if dtype not in DTYPES:
        raise ValueError(f"kv dtype is {dtype.name}; allowed: {', '.join(allowed.name for allowed in DTYPES)}")
    for name, value in (("num_kv_heads", num_kv_heads), ("head_dim", head_dim), ("page_size", page_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    storage = np.dtype(np.uint16) if target.platform == "cpu" and dtype.itemsize == 2 else dtype
    rows, lanes = page_size, head_dim
    scale_bytes = 4 * num_kv_heads * page_size if dtype in QUANTIZED_DTYPES else 0
    if target.platform == "tpu":
        shortest = 4 // dtype.itemsize  # narrow types are packed into 32 bits along this axis
        rows = _round_up(page_size, min(_TPU_ROWS, max(shortest, 1 << (page_size - 1).bit_length())))
        lanes = _round_up(head_dim, _TPU_LANES)
        if scale_bytes:
            heads = _round_up(num_kv_heads, min(_TPU_ROWS, 1 << (num_kv_heads - 1).bit_length()))
            scale_bytes = 4 * heads * _round_up(page_size, _TPU_LANES)
    return KVLayout(
        dtype=dtype,
        storage_dtype=storage,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        bytes_per_page=2 * (num_kv_heads * rows * lanes * dtype.itemsize + scale_bytes),
    )


def page_partition_spec(mesh_axis: str | None, *, quantized: bool) -> Any:
    """Sharding of pages whose heads are split over `mesh_axis`: one spec, or `QuantizedPages` of two."""
    spec = PartitionSpec(*(mesh_axis if axis == KVLayout.head_axis else None for axis in range(4)))
    return QuantizedPages(spec, PartitionSpec(*spec[:-1])) if quantized else spec  # type: ignore[arg-type]


def value_dtype(storage_dtype: jax.typing.DTypeLike) -> np.dtype:
    """What a page array's dtype means: uint16 holds bfloat16, anything else itself."""
    dtype = np.dtype(storage_dtype)
    return np.dtype(jnp.bfloat16) if dtype == np.uint16 else dtype


def quantize(values: jax.Array, dtype: jax.typing.DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Values (..., H) to a narrow type with one scale for each vector: stored (..., H) and scales (...) float32.

    The largest magnitude of a vector becomes the type's largest number (127 or 448). int8 rounds to nearest even.
    """
    dtype = np.dtype(dtype)
    largest = QUANTIZED_DTYPES[dtype]
    wide = values.astype(jnp.float32)
    scales = jnp.max(jnp.abs(wide), axis=-1) / largest
    # A scale that is 0 or underflowed to it stores zeros.
    scaled = wide * jnp.where(scales > 0, 1.0 / jnp.where(scales > 0, scales, 1.0), 0.0)[..., None]
    if dtype == np.int8:
        scaled = jnp.round(scaled)
    return jnp.clip(scaled, -largest, largest).astype(dtype), scales


def to_storage(values: jax.Array, storage_dtype: jax.typing.DTypeLike) -> jax.Array:
    """Rounds values to float32 or bfloat16 and gives them the bits that a page array of `storage_dtype` holds."""
    rounded = values.astype(value_dtype(storage_dtype))
    return rounded if rounded.dtype == storage_dtype else lax.bitcast_convert_type(rounded, storage_dtype)


def to_float32(stored: jax.Array, scales: jax.Array | None = None) -> jax.Array:
    """The float32 values of stored pages (..., H), exactly; times `scales` (...) if the pages are quantized.

    uint16 is widened by integer shift, as a bfloat16 is the upper half of a float32; so no bfloat16 arithmetic reaches
    XLA:CPU, which has slow paths for it.
    """
    if stored.dtype == jnp.uint16:
        return lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, jnp.float32)
    wide = stored.astype(jnp.float32)
    return wide if scales is None else wide * scales[..., None]


def write(pages: Pages, new: jax.Array, slots: jax.Array) -> Pages:
    """Puts `new` (T, K, H) at the kv slots (T,) of pages, rounded to their type. Plain XLA: a scatter in place."""
    page_size = pages.shape[2]
    page, offset = slots // page_size, slots % page_size
    if isinstance(pages, QuantizedPages):
        values, scales = quantize(new, pages.dtype)
        return QuantizedPages(
            pages.values.at[page, :, offset].set(values, mode="drop"),
            pages.scales.at[page, :, offset].set(scales, mode="drop"),
        )
    return pages.at[page, :, offset].set(to_storage(new, pages.dtype), mode="drop")


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
