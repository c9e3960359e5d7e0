"""Page shapes, storage types, sizes and shardings."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import kv_layout, layout

CPU = DeviceTarget("cpu", "cpu")
GPU = DeviceTarget("gpu", "NVIDIA H200", (9, 0))
TPU = DeviceTarget("tpu", "TPU v5 lite")


@pytest.mark.parametrize(
    ("target", "dtype", "storage", "lanes", "bytes_per_page"),
    [
        (CPU, jnp.float32, np.float32, 80, 2 * 4 * 64 * 80 * 4),
        (CPU, jnp.bfloat16, np.uint16, 80, 2 * 4 * 64 * 80 * 2),
        (GPU, jnp.bfloat16, jnp.bfloat16, 80, 2 * 4 * 64 * 80 * 2),
        (TPU, jnp.bfloat16, jnp.bfloat16, 128, 2 * 4 * 64 * 128 * 2),
    ],
)
def test_layout_per_device(target, dtype, storage, lanes, bytes_per_page):
    kv = kv_layout(target, dtype, num_kv_heads=4, head_dim=80, page_size=64)
    assert kv.shape(7) == (7, 4, 64, lanes)
    assert kv.shape(7)[kv.head_axis] == 4
    assert kv.dtype == dtype
    assert kv.storage_dtype == storage
    assert layout.value_dtype(kv.storage_dtype) == dtype
    assert kv.bytes_per_page == bytes_per_page


@pytest.mark.parametrize(
    ("dtype", "page_size", "rows"),
    [
        (jnp.float32, 1, 1),
        (jnp.float32, 4, 4),
        (jnp.float32, 5, 8),
        (jnp.bfloat16, 1, 2),
        (jnp.bfloat16, 8, 8),
        (jnp.bfloat16, 12, 16),
    ],
)
def test_tpu_pads_pages_to_its_tiles(dtype, page_size, rows):
    """The sizes are those that ahead-of-time compilation for a TPU v5e gives row-major arrays."""
    kv = kv_layout(TPU, dtype, 3, 128, page_size)
    assert kv.bytes_per_page == 2 * 3 * rows * 128 * np.dtype(dtype).itemsize


@pytest.mark.parametrize(
    ("heads", "head_dim", "dtype", "shards", "shape"),
    [
        (8, 64, jnp.bfloat16, 1, (3, 4, 16, 128)),
        (8, 64, jnp.float32, 4, (3, 4, 16, 128)),
        (8, 64, jnp.bfloat16, 8, (3, 8, 16, 128)),  # one head a device: nothing to pair it with
        (3, 64, jnp.bfloat16, 1, (3, 3, 16, 128)),
        (8, 32, jnp.bfloat16, 2, (3, 2, 16, 128)),
        (8, 96, jnp.bfloat16, 1, (3, 8, 16, 128)),
        (8, 192, jnp.bfloat16, 1, (3, 8, 16, 256)),
        (8, 64, jnp.int8, 1, (3, 8, 16, 128)),  # a row has one scale
    ],
)
def test_tpu_rows_fill_the_lanes(heads, head_dim, dtype, shards, shape):
    kv = kv_layout(TPU, dtype, heads, head_dim, 16, shards)
    assert kv.shape(3) == shape
    assert kv.struct(3).shape == shape
    if kv.quantized:
        assert kv.struct(3).scales.shape == (3, 8, 128) == kv.zeros(3)[0].scales.shape
    else:
        assert 3 * kv.bytes_per_page == 2 * np.prod(shape) * np.dtype(dtype).itemsize


@pytest.mark.parametrize(
    ("dtype", "page_size", "ratios"),  # for head_dim 64, 80, 96, 128, 256
    [
        (jnp.bfloat16, 16, (1.00, 1.60, 1.33, 1.00, 1.00)),
        (jnp.bfloat16, 256, (1.00, 1.60, 1.33, 1.00, 1.00)),
        (jnp.int8, 32, (2.12, 1.71, 1.44, 1.09, 1.05)),
        (jnp.int8, 64, (2.00, 1.62, 1.36, 1.03, 1.02)),
        (jnp.int8, 128, (1.94, 1.57, 1.32, 1.00, 1.00)),
    ],
)
def test_what_a_copied_page_holds_beside_what_is_needed(dtype, page_size, ratios):
    """The table of docs/tpu.md; on a GPU nothing is padded."""
    for head_dim, ratio in zip((64, 80, 96, 128, 256), ratios, strict=True):
        scales = 4 if dtype == jnp.int8 else 0
        needed = 2 * 8 * page_size * (head_dim * np.dtype(dtype).itemsize + scales)
        assert round(kv_layout(TPU, dtype, 8, head_dim, page_size).bytes_per_page / needed, 2) == ratio
        assert kv_layout(GPU, dtype, 8, head_dim, page_size).bytes_per_page == needed


def test_heads_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="num_kv_heads is 6; 4 devices must divide them"):
        kv_layout(CPU, jnp.float32, 6, 64, 16, 4)


def test_bytes_per_page_is_what_the_arrays_take():
    kv = kv_layout(CPU, jnp.bfloat16, 3, 16, 5)
    assert sum(array.nbytes for array in kv.zeros(11)) == 11 * kv.bytes_per_page


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zeros_are_zero_and_sharded_over_the_heads(dtype):
    mesh = jax.make_mesh((4,), ("tp",), axis_types=(AxisType.Auto,))
    kv = kv_layout(CPU, dtype, 8, 16, 4)
    sharding = kv.shardings(mesh, "tp")
    k_pages, v_pages = kv.zeros(6, sharding)
    chex.assert_trees_all_equal_shapes_and_dtypes(k_pages, kv.struct(6), v_pages)
    assert kv.struct(6, sharding).sharding == sharding
    for pages in (k_pages, v_pages):
        assert pages.sharding.spec == PartitionSpec(None, "tp", None, None)
        assert {shard.data.shape for shard in pages.addressable_shards} == {(6, 2, 4, 16)}
        np.testing.assert_array_equal(np.asarray(layout.to_float32(pages)), 0.0)


@pytest.mark.parametrize("target", [CPU, GPU])
def test_storage_keeps_every_bfloat16_and_its_bits(target):
    kv = kv_layout(target, jnp.bfloat16, 1, 1, 1)
    bits = np.arange(2**16, dtype=np.uint16)
    values = jax.lax.bitcast_convert_type(jnp.asarray(bits), jnp.bfloat16)
    stored = layout.to_storage(values, kv.storage_dtype)
    assert stored.dtype == kv.storage_dtype
    widened = np.asarray(layout.to_float32(stored)).view(np.uint32)
    ordinary = ~np.isnan(np.asarray(values.astype(jnp.float32)))
    np.testing.assert_array_equal(widened[ordinary], bits[ordinary].astype(np.uint32) << 16)
    np.testing.assert_array_equal(np.isnan(widened.view(np.float32)), ~ordinary)


@pytest.mark.parametrize("writer", [GPU, TPU, DeviceTarget("tpu", "TPU v6 lite")])
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.float8_e4m3fn])
def test_quantized_pages_have_a_scale_for_each_token_and_head(dtype, writer):
    mesh = jax.make_mesh((2,), ("tp",), axis_types=(AxisType.Auto,))
    kv = kv_layout(GPU, dtype, 4, 16, 8)
    shardings = kv.shardings(mesh, "tp")
    pages, _ = kv.zeros(5, shardings)
    chex.assert_trees_all_equal_shapes_and_dtypes(pages, kv.struct(5, shardings))
    assert (pages.values.dtype, pages.scales.shape, pages.scales.dtype) == (dtype, (5, 4, 8), jnp.float32)
    assert {shard.data.shape for shard in pages.scales.addressable_shards} == {(5, 2, 8)}
    assert kv.bytes_per_page == 2 * 4 * 8 * (16 + 4)
    assert kv_layout(TPU, dtype, 4, 16, 8).bytes_per_page == 2 * (4 * 8 * 128 + 4 * 128 * 4)

    rng = np.random.default_rng(0)
    slots = jnp.asarray([9, 17, 3])
    new = rng.standard_normal((3, 4, 16)).astype(np.float32) * np.float32([1e-3, 1, 1e3])[:, None, None]
    new[1, 2] = 0.0
    written = layout.write(pages, jnp.asarray(new), slots, writer)
    back = np.asarray(layout.to_float32(written.values, written.scales))
    for token, slot in enumerate((9, 17, 3)):
        largest = np.abs(new[token]).max(axis=-1, keepdims=True)
        # int8: half of a 127th of the largest. float8_e4m3fn: 3 bits behind the point, half of one of them.
        limit = largest / 254 if dtype == jnp.int8 else np.abs(new[token]) / 16 + largest / 448 / 512
        assert (np.abs(back[slot // 8, :, slot % 8] - new[token]) <= limit * 1.0001).all()
    untouched = np.ones((5, 8), bool)
    untouched[[1, 2, 0], [1, 1, 3]] = False
    assert not back.transpose(0, 2, 1, 3)[untouched].any()


def test_float32_values_are_rounded_to_nearest_even():
    values = jnp.asarray([1.0 + 2**-8, 1.0 + 3 * 2**-8, -1.0 - 2**-8], jnp.float32)  # halfway between bfloat16s
    stored = layout.to_storage(values, np.uint16)
    np.testing.assert_array_equal(np.asarray(layout.to_float32(stored)), [1.0, 1.015625, -1.0])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.uint8, jnp.uint16, jnp.float64])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(
        ValueError, match=f"kv dtype is {np.dtype(dtype).name}; allowed: float32, bfloat16, int8, float8_e4m3fn"
    ):
        kv_layout(CPU, dtype, 1, 16, 16)


@pytest.mark.parametrize("name", ["num_kv_heads", "head_dim", "page_size"])
def test_sizes_below_one_are_refused(name):
    sizes = {"num_kv_heads": 1, "head_dim": 16, "page_size": 16, name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        kv_layout(CPU, jnp.float32, **sizes)
