"""How K and V lie in memory: page shapes, storage type, sharded axis, bytes. No other module knows these.

Legend: P pages, K kv heads, H head_dim, C kv heads side by side in a row, L lanes of a row.

One layer's cache is two arrays, one for K and one for V, each `(P, K, page_size, H)`: head-major inside a page, so that
the tokens of one head are contiguous (a matrix product over a page reads one block) and the head axis can be sharded.
Page 0 is the null page: padding is written there and its contents mean nothing.

A TPU stores rows of 128 lanes and fills them where head_dim is smaller. Arrays are `(P, K // C, page_size, L)` there:
heads of 64 lie in pairs, heads of 32 in fours, if a device's share of the heads allows it; any other head has zeros
behind it. The first halves memory and traffic against the second for the same arithmetic, as the matrix unit is 128
wide; the second costs what the compiler's own padding costs, but the scatter of new keys and values then happens in
place: into a last axis of 64, 80 or 96 libtpu's compiler copies the whole pool at every step, on every generation.
Quantized heads are not paired: a row has one scale. Scales fill their lanes too, for the same reason. Page-major and
token-major orders were left out after they were measured on a CPU (two to ten times slower there); GPUs copy a head's
page as one block, so they keep the same order.

int8 and float8_e4m3fn pages are `QuantizedPages`: the same array, and a float32 scale for every token and head, so that
a token's error does not depend on its neighbours and a page can be written token by token. Value = stored * scale.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.mesh_axes import MeshAxes
from pallas_kernels.qtensor import LARGEST, STORAGE
from pallas_kernels.rounding import round_up

# A row-major array on TPU is tiled: the last axis by 128, the one before by 8, or by less where the axis is shorter.
_TPU_LANES = 128
_TPU_ROWS = 8


# Narrow types and their largest number. float8_e4m3fn: OCP 8-bit floating point specification, E4M3.
QUANTIZED_DTYPES = {STORAGE[kind]: LARGEST[kind] for kind in ("int8", "fp8")}
DTYPES = (np.dtype(np.float32), np.dtype(jnp.bfloat16), *QUANTIZED_DTYPES)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedPages:
    """K, or V, pages of a narrow type with their scales.

    Attributes:
        values: (P, K, page_size, L) int8 or float8_e4m3fn.
        scales: (P, K, page_size) float32, not negative; 0 where the token's values are all 0. On TPU the last axis is
            filled up to whole lanes.
    """

    values: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """(P, K, page_size, L)."""
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
        heads_per_row, lanes: C and L; 1 and H but on TPU.
        scale_lanes: length of a row of scales: page_size but on TPU.
        bytes_per_page: device bytes of one page of K and one of V in one layer, over all KV heads, with the padding
            of a row-major array, and with the scales. The head axis of the values is never padded: with the heads
            sharded n ways a device holds 1/n of them.
    """

    dtype: np.dtype
    storage_dtype: np.dtype
    num_kv_heads: int
    head_dim: int
    page_size: int
    heads_per_row: int
    lanes: int
    scale_lanes: int
    bytes_per_page: int

    head_axis = 1
    """The axis of a page array that tensor parallelism shards."""

    def shape(self, num_pages: int) -> tuple[int, int, int, int]:
        """Shape of the K array, and of the V array: (P, K // C, page_size, L)."""
        return (num_pages, self.num_kv_heads // self.heads_per_row, self.page_size, self.lanes)

    def scales_shape(self, num_pages: int) -> tuple[int, int, int]:
        """Shape of the scales of K, and of V, if the pages are quantized."""
        return (*self.shape(num_pages)[:2], self.scale_lanes)

    @property
    def quantized(self) -> bool:
        """Whether pages carry scales."""
        return self.dtype in QUANTIZED_DTYPES

    def shardings(self, mesh: Mesh, mesh_axis: MeshAxes) -> Any:
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
        shape_of_scales = self.scales_shape(num_pages)
        return QuantizedPages(pages, jax.ShapeDtypeStruct(shape_of_scales, jnp.float32, sharding=scales))  # type: ignore[arg-type]

    def zeros(self, num_pages: int, shardings: Any = None) -> tuple[Pages, Pages]:
        """Fresh K and V pages of zeros, made in place on the shardings' devices (default device when None)."""
        # jit knows `_zeros` again on the next call, so that a model's layers share one compilation.
        make = jax.jit(_zeros, static_argnums=(0, 1, 2), out_shardings=shardings)
        arguments = (
            self.shape(num_pages),
            self.storage_dtype,
            self.scales_shape(num_pages) if self.quantized else None,
        )
        return make(*arguments), make(*arguments)


def _zeros(shape: tuple[int, ...], dtype: np.dtype, scales: tuple[int, ...] | None) -> Pages:
    values = jnp.zeros(shape, dtype)
    return values if scales is None else QuantizedPages(values, jnp.zeros(scales, jnp.float32))


def kv_layout(
    target: DeviceTarget,
    dtype: jax.typing.DTypeLike,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    shards: int = 1,
) -> KVLayout:
    """The cache layout for one device kind.

    bfloat16 is stored as uint16 on CPU: XLA:CPU widens a whole bfloat16 array to float32 and back to scatter into it,
    and a uint16 array it does not touch.

    Args:
        target: the device that will hold the pages.
        dtype: float32, bfloat16, int8 or float8_e4m3fn.
        num_kv_heads, head_dim, page_size: positive sizes.
        shards: devices that share the heads.

    Raises:
        ValueError: another dtype, a size below 1, or heads that cannot be shared.
    """
    dtype = np.dtype(dtype)
    if dtype not in DTYPES:
        raise ValueError(f"kv dtype is {dtype.name}; allowed: {', '.join(allowed.name for allowed in DTYPES)}")
    for name, value in (("num_kv_heads", num_kv_heads), ("head_dim", head_dim), ("page_size", page_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if num_kv_heads % shards:
        raise ValueError(f"num_kv_heads is {num_kv_heads}; {shards} devices must divide them")
    storage = np.dtype(np.uint16) if target.platform == "cpu" and dtype.itemsize == 2 else dtype
    heads_per_row, lanes, rows, scale_lanes = 1, head_dim, page_size, page_size
    scale_bytes = 4 * num_kv_heads * page_size if dtype in QUANTIZED_DTYPES else 0
    if target.platform == "tpu":
        shortest = 4 // dtype.itemsize  # narrow types are packed into 32 bits along this axis
        rows = round_up(page_size, min(_TPU_ROWS, max(shortest, 1 << (page_size - 1).bit_length())))
        lanes = round_up(head_dim, _TPU_LANES)
        together = lanes // head_dim
        if dtype not in QUANTIZED_DTYPES and together * head_dim == lanes and num_kv_heads // shards % together == 0:
            heads_per_row = together
        scale_lanes = round_up(page_size, _TPU_LANES)
        if scale_bytes:
            heads = round_up(num_kv_heads, min(_TPU_ROWS, 1 << (num_kv_heads - 1).bit_length()))
            scale_bytes = 4 * heads * scale_lanes
    return KVLayout(
        dtype=dtype,
        storage_dtype=storage,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        heads_per_row=heads_per_row,
        lanes=lanes,
        scale_lanes=scale_lanes,
        bytes_per_page=2 * (num_kv_heads // heads_per_row * rows * lanes * dtype.itemsize + scale_bytes),
    )


def page_partition_spec(mesh_axis: MeshAxes, *, quantized: bool) -> Any:
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
    """The float32 values of stored vectors (..., H), exactly; times `scales` (...) if they are quantized.

    uint16 is widened by integer shift, as a bfloat16 is the upper half of a float32; so no bfloat16 arithmetic reaches
    XLA:CPU, which has slow paths for it.
    """
    if stored.dtype == jnp.uint16:
        return lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, jnp.float32)
    wide = stored.astype(jnp.float32)
    return wide if scales is None else wide * scales[..., None]


def write(pages: Pages, new: jax.Array, slots: jax.Array, target: DeviceTarget) -> Pages:
    """Puts `new` (T, K, H) at the kv slots (T,) of pages, rounded to their type. Plain XLA: a scatter in place."""
    page_size = pages.shape[2]
    page, offset = slots // page_size, slots % page_size

    def put(stored: jax.Array, values: jax.Array) -> jax.Array:
        return stored.at[page, :, offset].set(values, mode="drop")

    put_values = functools.partial(_put_rows, slots=slots) if target.platform == "tpu" else put
    if isinstance(pages, QuantizedPages):
        values, scales = quantize(new, pages.dtype)
        return QuantizedPages(put_values(pages.values, values), put(pages.scales, scales))
    return put_values(pages, to_storage(new, pages.dtype))


def _put_rows(stored: jax.Array, values: jax.Array, slots: jax.Array) -> jax.Array:
    """`values` (T, K, L) at the kv slots of (P, K, page_size, L), which is an array of P * K * page_size rows.

    For XLA's attention on TPUs, as `mosaic_tpu` writes by copies. A scatter of all heads of a token at once moves the
    head axis inside the page there, which copies the pool to and fro: always for types of 8 bits, and from about a
    thousand tokens on for bfloat16.
    """
    num_pages, num_heads, page_size, lanes = stored.shape
    head = (slots // page_size)[:, None] * num_heads + jnp.arange(num_heads, dtype=slots.dtype)
    rows = stored.reshape(num_pages * num_heads * page_size, lanes)
    return rows.at[head * page_size + (slots % page_size)[:, None]].set(values, mode="drop").reshape(stored.shape)
