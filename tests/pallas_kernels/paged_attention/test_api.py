"""Argument checks, backend choice and tensor parallelism of the op."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import AttentionOptions, paged_attention, reference
from pallas_kernels.paged_attention.layout import page_partition_spec
from tests.pallas_kernels.paged_attention import cases
from tests.pallas_kernels.paged_attention.cases import Inputs, Shape

CPU = DeviceTarget("cpu", "cpu")
SMALL = Shape(tokens=8, rows=2, pages_per_row=3, head_dim=16)
TP_SHAPE = Shape(tokens=32, rows=4, pages_per_row=6, kv_heads=8, group=2, head_dim=16)


def inputs_of(shape: Shape, rows: cases.Rows) -> Inputs:
    return cases.build(shape, CPU, rows, np.random.default_rng(0))


def mesh_of(*shape: int) -> Mesh:
    names = ("tp",) if len(shape) == 1 else ("dp", "tp")
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_jitted_or_not_and_on_numpy_or_device_arrays(self):
        inputs = inputs_of(SMALL, [(1, 20), (5, 33)])
        op = self.variant(functools.partial(paged_attention, options=AttentionOptions(0.5), target=CPU))
        out, _, _ = op(*inputs.args)
        want, _, _ = reference.paged_attention(*inputs.args, options=AttentionOptions(0.5))
        np.testing.assert_allclose(np.asarray(out), want, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": jnp.zeros((8, 5, 16))}, "q has 5 heads; it must be a multiple of the 2 kv heads"),
        ({"q": jnp.zeros((8, 64))}, r"q has shape \(8, 64\); it needs 3 axes"),
        ({"k": jnp.zeros((7, 2, 16))}, r"k has shape \(7, 2, 16\); .* must be \(8, 2, 16\)"),
        ({"v": jnp.zeros((8, 2, 8))}, r"v has shape \(8, 2, 8\); .* must be \(8, 2, 16\)"),
        ({"v_pages": jnp.zeros((9, 2, 16, 16))}, r"v_pages has shape \(9, 2, 16, 16\)"),
        ({"v_pages": jnp.zeros((10, 2, 16, 16), jnp.uint16)}, "k_pages is float32 and v_pages uint16"),
        ({"seq_lens": jnp.zeros((3,), jnp.int32)}, r"batch.query_start_loc has shape \(3,\); .* must be \(4,\)"),
        ({"slot_mapping": jnp.zeros((8,), jnp.float32)}, "batch.slot_mapping is float32; it must be int32"),
        ({"page_tables": jnp.zeros((2, 0), jnp.int32)}, "no axis may be 0"),
        (
            {"backend": "triton"},
            "backend of paged_attention is 'triton'; known: mosaic_tpu, mosaic_gpu, triton_gpu, native_cpu, xla",
        ),
        ({"head_axis": "tp"}, "mesh and head_axis go together"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    inputs = inputs_of(SMALL, [(1, 20), (5, 33)])
    arrays = {"q": inputs.q, "k": inputs.k, "v": inputs.v, "k_pages": inputs.k_pages, "v_pages": inputs.v_pages}
    batch = dataclasses.replace(inputs.batch, **{n: a for n, a in change.items() if hasattr(inputs.batch, n)})
    others = {n: a for n, a in change.items() if n not in arrays and not hasattr(batch, n)}
    arrays |= {n: a for n, a in change.items() if n in arrays}
    with pytest.raises(ValueError, match=message):
        paged_attention(**arrays, batch=batch, options=AttentionOptions(1.0), target=CPU, **others)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sliding_window": 0}, "sliding_window is 0; it must be at least 1"),
        ({"soft_cap": 0.0}, "soft_cap is 0.0; it must be finite and above 0"),
        ({"soft_cap": float("inf")}, "soft_cap is inf"),
        ({"scale": float("nan")}, "scale is nan; it must be finite"),
    ],
)
def test_options_outside_their_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AttentionOptions(**{"scale": 1.0} | change)


def test_a_mesh_that_does_not_fit_is_refused():
    inputs = inputs_of(SMALL, [(1, 20)])
    with pytest.raises(ValueError, match="2 kv heads; the head axis of the mesh, 8, must divide them"):
        paged_attention(*inputs.args, options=AttentionOptions(1.0), target=CPU, mesh=mesh_of(8), head_axis="tp")
    with pytest.raises(ValueError, match="head_axis is 'x'; the mesh has axes 'dp', 'tp'"):
        paged_attention(*inputs.args, options=AttentionOptions(1.0), target=CPU, mesh=mesh_of(2, 2), head_axis="x")


@pytest.mark.parametrize(
    ("mesh_shape", "dtype"),
    [
        pytest.param((2,), jnp.bfloat16, marks=pytest.mark.longer),
        pytest.param((8,), jnp.float32, marks=pytest.mark.longer),
        ((2, 4), jnp.float32),
    ],
)
def test_tensor_parallel_gives_the_bits_of_one_device(mesh_shape, dtype):
    """Heads do not meet in attention, so splitting them changes nothing, and the pages stay split."""
    shape = dataclasses.replace(TP_SHAPE, dtype=dtype)
    inputs = inputs_of(shape, [(1, 90), (20, 40), (0, 5), (3, 3)])
    op = functools.partial(paged_attention, options=AttentionOptions(0.5), target=CPU)
    want = jax.tree.map(np.asarray, jax.jit(op)(*inputs.args))

    mesh = mesh_of(*mesh_shape)
    heads = NamedSharding(mesh, PartitionSpec(None, "tp", None))
    pages = NamedSharding(mesh, page_partition_spec("tp", quantized=False))
    everywhere = NamedSharding(mesh, PartitionSpec())
    args = jax.device_put(inputs.args, (heads, heads, heads, pages, pages, everywhere))
    run = jax.jit(functools.partial(op, mesh=mesh, head_axis="tp"), donate_argnums=(3, 4))
    out, k_pages, v_pages = run(*args)

    chex.assert_tree_all_finite(out)
    assert out.sharding.is_equivalent_to(heads, out.ndim)
    assert k_pages.sharding.is_equivalent_to(pages, 4)
    assert v_pages.sharding.is_equivalent_to(pages, 4)
    assert args[3].is_deleted()
    np.testing.assert_array_equal(np.asarray(out), want[0])
    # The null page takes the padding, in no order.
    np.testing.assert_array_equal(np.asarray(k_pages)[1:], want[1][1:])
    np.testing.assert_array_equal(np.asarray(v_pages)[1:], want[2][1:])


def test_a_mesh_of_one_device_needs_no_shard_map():
    inputs = inputs_of(SMALL, [(1, 20), (5, 33)])
    op = functools.partial(paged_attention, options=AttentionOptions(0.5), target=CPU)
    sharded = functools.partial(op, mesh=mesh_of(1), head_axis="tp")
    assert "shard_map" not in str(jax.make_jaxpr(sharded)(*inputs.args))
