"""Products of the C++ kernels, with every instruction set that this machine has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.native_cpu.matmul import dense_matmul, mxfp4_matmul, quantized_matmul
from pallas_kernels.qtensor import QTensor, quantize, widen_mxfp4
from pallas_kernels.quantized_matmul import quantized_matmul as op
from tests.pallas_kernels.native_cpu.loaded import NAMES, target_for

# Whole vectors and tails, fewer outputs than a vector, one row, more rows than a tile and than `few` tiles.
SHAPES = [(1, 64, 5), (8, 100, 7), (17, 1024, 130), (3, 7, 3), (64, 96, 33), (6, 33, 1)]
LAYERS = 3


@pytest.fixture(params=NAMES)
def instructions(request) -> str:
    return target_for(request.param).instructions


def matrices(rows: int, inputs: int, outputs: int, dtype=jnp.float32) -> tuple[jax.Array, list[jax.Array]]:
    rng = np.random.default_rng(rows * inputs + outputs)
    x = jnp.asarray(rng.standard_normal((rows, inputs)), dtype)
    return x, [jnp.asarray(rng.standard_normal((outputs, inputs)), dtype) for _ in range(LAYERS)]


def dense(x, weights, layer: int, count: int, instructions: str) -> np.ndarray:
    return np.asarray(dense_matmul(x, weights, jnp.int32(layer), jnp.int32(count), instructions=instructions))


def quantized(x, weights: list[QTensor], layer: int, count: int, instructions: str) -> np.ndarray:
    values, scales = [w.values for w in weights], [w.scales[:, 0] for w in weights]
    y = quantized_matmul(x, values, scales, jnp.int32(layer), jnp.int32(count), instructions=instructions)
    return np.asarray(y)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_dense_product_is_that_of_float64(instructions, shape, dtype):
    x, weights = matrices(*shape, dtype)
    for layer, weight in enumerate(weights):
        want = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
        got = dense(x, weights, layer, shape[0], instructions)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=1e-6 * np.sqrt(shape[1]) * 4, rtol=0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_has_the_bits_of_xlas_product(instructions, shape, dtype):
    x, weights = matrices(*shape, dtype)
    rounded = [quantize(w, "int8", activations="int8") for w in weights]
    want = jax.jit(lambda x, w: op(x, w, target=DeviceTarget("cpu", "cpu"), backend="xla"))(x, rounded[1])
    np.testing.assert_array_equal(quantized(x, rounded, 1, shape[0], instructions), want)


def microscaled(x, weights: list[QTensor], layer: int, count: int, instructions: str) -> np.ndarray:
    values, scales = [w.values for w in weights], [w.scales for w in weights]
    y = mxfp4_matmul(x, values, scales, jnp.int32(layer), jnp.int32(count), instructions=instructions)
    return np.asarray(y)


# Few tiles and many, one span of inputs and several, outputs that four do not divide.
MX_SHAPES = [(1, 64, 5), (8, 96, 7), (17, 2880, 130), (3, 32, 3), (64, 1600, 33), (6, 3232, 1)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", MX_SHAPES, ids=str)
def test_mxfp4_has_the_bits_of_a_dense_product(instructions, shape, dtype):
    x, weights = matrices(*shape, dtype)
    rounded = [quantize(w, "mxfp4") for w in weights]
    wide = [widen_mxfp4(w.values, w.scales).astype(dtype) for w in rounded]
    want = dense(x, wide, 1, shape[0], instructions)
    np.testing.assert_array_equal(microscaled(x, rounded, 1, shape[0], instructions), want)


def test_mxfp4_has_every_number_with_every_scale(instructions):
    """A row of activations for each input, 1 there and 0 elsewhere, reads the weight; sums of NaN are left out."""
    codes = jnp.tile(jnp.arange(16, dtype=jnp.uint8), 2)
    values = jnp.tile((codes[0::2] | codes[1::2] << 4)[None], (256, 1))
    scales = jnp.arange(256, dtype=jnp.uint8)[:, None]
    wide = np.asarray(widen_mxfp4(values, scales)).astype(np.float32)
    normal = np.arange(2, 252)
    got = microscaled(jnp.eye(32), [QTensor(values, scales, kind="mxfp4")], 0, 32, instructions)
    np.testing.assert_array_equal(got.T[normal], wide[normal])
    # Beyond: activations bring small products into the range of normal numbers, and large ones back into the finite.
    for some, factor in ((slice(0, 2), 2.0**20), (slice(252, 255), 2.0**-20)):
        got = microscaled(jnp.eye(32) * factor, [QTensor(values, scales, kind="mxfp4")], 0, 32, instructions)
        want = wide[some].astype(np.float64) * factor
        finite = np.isfinite(wide[some]).all(axis=1)
        # Processors take weights below the smallest normal number as zeros, in XLA's threads at least.
        seen = np.abs(wide[some][finite]) >= np.finfo(np.float32).tiny
        np.testing.assert_array_equal(got.T[some][finite][seen], want[finite][seen])
        assert np.isin(got.T[some][finite][~seen], [0, *want[finite][~seen]]).all()
        assert not np.isfinite(got.T[some][~finite]).any()
    assert np.isnan(got.T[255]).all()


def test_int8_holds_the_whole_range_of_weights(instructions):
    """-128 occurs in published checkpoints, and the sums of a row of the largest numbers are exact."""
    x = jnp.where(jnp.arange(4096) % 2 == 0, 1.0, -1.0)[None] * jnp.ones((2, 1))
    values = jnp.stack([jnp.full(4096, -128), jnp.where(jnp.arange(4096) % 2 == 0, 127, -128)]).astype(jnp.int8)
    weight = QTensor(values, jnp.ones((2, 1)), activations="int8")
    want = np.asarray(values, np.int64) @ np.where(np.arange(4096) % 2 == 0, 127, -127)
    scale = np.float32(1 / 127)
    np.testing.assert_array_equal(
        quantized(x, [weight], 0, 2, instructions), np.tile(want.astype(np.float32) * scale, (2, 1))
    )


Run = Callable[[jax.Array, int, int], np.ndarray]


@pytest.fixture(params=["float32", "bfloat16", "int8", "mxfp4", "mxfp4-bfloat16"])
def run(request, instructions) -> Run:
    """x, layer, count -> products, of one kind of weights (33 outputs, 200 inputs; 224 with padding for MXFP4)."""
    dtype = jnp.dtype("bfloat16" if request.param.endswith("bfloat16") else "float32")
    _, weights = matrices(1, 200, 33, dtype)
    if request.param.startswith("mxfp4"):
        blocks = [quantize(jnp.pad(w, ((0, 0), (0, 24))), "mxfp4") for w in weights]
        return lambda x, layer, count: microscaled(
            jnp.pad(x, ((0, 0), (0, 24))).astype(dtype), blocks, layer, count, instructions
        )
    if request.param == "int8":
        rounded = [quantize(w, "int8", activations="int8") for w in weights]
        return lambda x, layer, count: quantized(x, rounded, layer, count, instructions)
    return lambda x, layer, count: dense(x.astype(dtype), weights, layer, count, instructions)


def test_a_rows_bits_do_not_depend_on_the_others(run):
    x, _ = matrices(40, 200, 33)
    together = run(x, 1, 40)
    for count in (1, 2, 3, 6, 7, 13, 25):
        np.testing.assert_array_equal(run(x[40 - count :], 1, count), together[40 - count :])


def test_rows_of_padding_are_zero_and_harm_nobody(run):
    x, _ = matrices(8, 200, 33)
    poisoned = x.at[5:].set(jnp.nan)
    np.testing.assert_array_equal(run(poisoned, 2, 5), np.where(np.arange(8)[:, None] < 5, run(x, 2, 8), 0))
    np.testing.assert_array_equal(run(poisoned, 2, 0), 0)


def test_what_is_not_finite_stays_in_its_row_and_is_seen(run):
    x, _ = matrices(8, 200, 33)
    for bad in (jnp.nan, jnp.inf):
        got = run(x.at[3, 117].set(bad), 0, 8)
        assert not np.isfinite(got[3]).any()
        np.testing.assert_array_equal(np.delete(got, 3, axis=0), np.delete(run(x, 0, 8), 3, axis=0))


def test_a_row_of_zeros_gives_zeros(run):
    x, _ = matrices(8, 200, 33)
    got = run(x.at[2].set(0.0), 0, 8)
    np.testing.assert_array_equal(got[2], 0)
    np.testing.assert_array_equal(np.delete(got, 2, axis=0), np.delete(run(x, 0, 8), 2, axis=0))


def test_a_loop_reads_its_layers_weights(instructions):
    x, weights = matrices(8, 64, 64)

    @jax.jit
    def looped(x, weights):
        def body(layer, h):
            return jnp.tanh(dense_matmul(h, weights, layer, jnp.int32(8), instructions=instructions))

        return jax.lax.fori_loop(0, LAYERS, body, x)

    want = x
    for layer in range(LAYERS):
        want = jnp.tanh(dense(want, weights, layer, 8, instructions))
    np.testing.assert_allclose(looped(x, weights), want, atol=1e-6)


def test_types_and_shapes_that_do_not_fit_are_refused():
    x, weights = matrices(8, 64, 64)
    zero = jnp.int32(0)
    with pytest.raises(ValueError, match="both must be float32, or both bfloat16"):
        dense_matmul(x.astype(jnp.bfloat16), weights, zero, zero, instructions="avx2")
    with pytest.raises(ValueError, match=r"x has shape \(8, 63\); with these weights it must be \(tokens, 64\)"):
        dense_matmul(x[:, :63], weights, zero, zero, instructions="avx2")
    with pytest.raises(ValueError, match=r"shapes \(64, 64\) and \(63, 64\); those of a loop must have one"):
        dense_matmul(x, [weights[0], weights[1][:63]], zero, zero, instructions="avx2")
    long = jnp.zeros((1, 65_537), jnp.int8)
    with pytest.raises(ValueError, match="has 65537 inputs; with more than 65536 a sum may overflow"):
        quantized_matmul(jnp.zeros((1, 65_537)), [long], [jnp.ones(1)], zero, zero, instructions="avx2")
    rounded = quantize(weights[0], "int8", activations="int8")
    with pytest.raises(ValueError, match="one float32 scale for each output"):
        quantized_matmul(x, [rounded.values], [rounded.scales], zero, zero, instructions="avx2")
    blocks = quantize(weights[0], "mxfp4")
    with pytest.raises(ValueError, match=r"scales \(64, 1\); values must be \(outputs, inputs // 2\) and scales"):
        mxfp4_matmul(x, [blocks.values], [blocks.scales[:, :1]], zero, zero, instructions="avx2")
    with pytest.raises(ValueError, match=r"x has shape \(8, 63\); with these weights it must be \(tokens, 64\)"):
        mxfp4_matmul(x[:, :63], [blocks.values], [blocks.scales], zero, zero, instructions="avx2")
    with pytest.raises(ValueError, match="values and scales must be uint8"):
        mxfp4_matmul(x, [blocks.values], [blocks.scales.astype(jnp.float32)], zero, zero, instructions="avx2")
    wide = dataclasses.replace(rounded, values=rounded.values.astype(jnp.int32))
    with pytest.raises(ValueError, match="values must be int8"):
        quantized_matmul(x, [wide.values], [rounded.scales[:, 0]], zero, zero, instructions="avx2")
