"""Products with experts of the C++ kernels: the bits of one product for each expert, with every instruction set."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.native_cpu.grouped_matmul import (
    grouped_dense_matmul,
    grouped_mxfp4_matmul,
    grouped_quantized_matmul,
)
from pallas_kernels.native_cpu.matmul import dense_matmul, mxfp4_matmul, quantized_matmul
from pallas_kernels.qtensor import quantize
from tests.pallas_kernels.native_cpu.loaded import NAMES, target_for

# None at all, one, few, more than `few` tiles; 82 outputs end in half a vector.
SIZES = [(3, 0, 9, 1), (0, 0, 0, 0), (1, 0, 0, 0), (0, 70, 0, 30)]
OUTPUTS, INPUTS, PADDING = 82, 96, 3


@pytest.fixture(params=NAMES)
def instructions(request) -> str:
    return target_for(request.param).instructions


def arrays(sizes, dtype) -> tuple[jax.Array, list[jax.Array], jax.Array]:
    rng = np.random.default_rng(sum(sizes))
    x = jnp.asarray(rng.standard_normal((sum(sizes) + PADDING, INPUTS)), dtype)
    layers = [jnp.asarray(rng.standard_normal((len(sizes), OUTPUTS, INPUTS)), dtype) for _ in range(2)]
    return x, layers, jnp.array(sizes, jnp.int32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_have_the_bits_of_a_product_with_their_expert(instructions, sizes, dtype):
    x, layers, group_sizes = arrays(sizes, dtype)
    rounded = [quantize(layer, "int8", activations="int8") for layer in layers]
    values, scales = [q.values for q in rounded], [q.scales[..., 0] for q in rounded]
    one = jnp.int32(1)
    got = np.asarray(grouped_dense_matmul(x, layers, one, group_sizes, instructions=instructions))
    blocks = [quantize(layer, "mxfp4") for layer in layers]
    numbers, exponents = [q.values for q in blocks], [q.scales for q in blocks]
    got4 = np.asarray(grouped_mxfp4_matmul(x, numbers, exponents, one, group_sizes, instructions=instructions))
    got8 = np.asarray(grouped_quantized_matmul(x, values, scales, one, group_sizes, instructions=instructions))
    first = 0
    for expert, size in enumerate(sizes):
        if size == 0:
            continue
        part, rows = x[first : first + size], jnp.int32(size)
        want = dense_matmul(part, [w[expert] for w in layers], one, rows, instructions=instructions)
        np.testing.assert_array_equal(got[first : first + size], np.asarray(want))
        matrices, factors = [v[expert] for v in values], [s[expert] for s in scales]
        want = quantized_matmul(part, matrices, factors, one, rows, instructions=instructions)
        np.testing.assert_array_equal(got8[first : first + size], np.asarray(want))
        matrices, factors = [v[expert] for v in numbers], [s[expert] for s in exponents]
        want = mxfp4_matmul(part, matrices, factors, one, rows, instructions=instructions)
        np.testing.assert_array_equal(got4[first : first + size], np.asarray(want))
        first += size
    assert not np.any(got[first:])
    assert not np.any(got8[first:])
    assert not np.any(got4[first:])


def test_sizes_that_cannot_be_are_cut(instructions):
    """A negative size is none, and rows that are not there belong to nobody: nothing outside is read or written."""
    x, layers, _ = arrays((3, 0, 9, 1), jnp.float32)
    sizes = jnp.array([-5, 2, 1000, 7], jnp.int32)
    got = np.asarray(grouped_dense_matmul(x, layers, jnp.int32(0), sizes, instructions=instructions))
    cut = jnp.array([0, 2, x.shape[0] - 2, 0], jnp.int32)
    want = np.asarray(grouped_dense_matmul(x, layers, jnp.int32(0), cut, instructions=instructions))
    np.testing.assert_array_equal(got, want)


def test_what_does_not_fit_together_is_named():
    x, layers, sizes = arrays((3, 0, 9, 1), jnp.float32)
    zero = jnp.int32(0)
    with pytest.raises(ValueError, match="both must be float32, or both bfloat16"):
        grouped_dense_matmul(x.astype(jnp.bfloat16), layers, zero, sizes, instructions="avx2")
    with pytest.raises(ValueError, match="those of a loop must have one"):
        grouped_dense_matmul(x, [layers[0], layers[1][:2]], zero, sizes, instructions="avx2")
    with pytest.raises(ValueError, match=r"x has shape \(16, 95\)"):
        grouped_dense_matmul(x[:, :95], layers, zero, sizes, instructions="avx2")
    with pytest.raises(ValueError, match=r"group_sizes is \(3,\) int32; for 4 experts"):
        grouped_dense_matmul(x, layers, zero, sizes[:3], instructions="avx2")
    rounded = quantize(layers[0], "int8")
    with pytest.raises(ValueError, match="one float32 scale for each output"):
        grouped_quantized_matmul(x, [rounded.values], [rounded.scales], zero, sizes, instructions="avx2")
    blocks = quantize(layers[0], "mxfp4")
    with pytest.raises(ValueError, match=r"x has shape \(16, 95\); with weights \(4, 82, 48\) it must be \(rows, 96\)"):
        grouped_mxfp4_matmul(x[:, :95], [blocks.values], [blocks.scales], zero, sizes, instructions="avx2")
    with pytest.raises(ValueError, match=r"scales \(4, 82, 2\); values must be"):
        grouped_mxfp4_matmul(x, [blocks.values], [blocks.scales[..., :2]], zero, sizes, instructions="avx2")
