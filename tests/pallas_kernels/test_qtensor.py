"""Quantizing weights, packing, and the leaf type."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pallas_kernels import mxfp4, qtensor
from pallas_kernels.qtensor import QTensor
from pallas_kernels.quantized_matmul import reference

# Half a step of the largest magnitude; float8 has 3 bits behind the point, so half of one of them of the value itself.
STEP = {"int8": 1 / 254, "int4": 1 / 14}


@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_rounding_errs_by_half_a_step(kind, group):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 5, 96)).astype(np.float32) * np.float32([1e-3, 1, 1e3])[:, None, None]
    weight[1, 2] = 0.0
    quantized = jax.jit(qtensor.quantize, static_argnums=(1, 2))(weight, kind, group)
    quantized.check()
    assert quantized.shape == weight.shape
    assert quantized.group == (group or 96)
    back = np.asarray(qtensor.dequantize(quantized))
    np.testing.assert_allclose(back, reference.values(quantized), rtol=1e-6)
    parts = weight.reshape(3, 5, -1, quantized.group)
    largest = np.abs(parts).max(axis=-1, keepdims=True).repeat(quantized.group, axis=-1).reshape(weight.shape)
    limit = np.abs(weight) / 16 + largest / 448 / 512 if kind == "fp8" else largest * STEP[kind]
    assert (np.abs(back - weight) <= limit * 1.0001).all()
    assert not back[1, 2].any()


def test_int4_lies_two_in_a_byte():
    numbers = np.arange(16, dtype=np.int32).reshape(2, 8)
    packed = qtensor.pack_int4(jnp.asarray(numbers))
    np.testing.assert_array_equal(np.asarray(packed)[0], [0x10, 0x32, 0x54, 0x76])
    np.testing.assert_array_equal(np.asarray(qtensor.unpack_int4(packed)), numbers)


def test_int4_lies_as_words():
    """Bits 16 h + 4 s of word r hold input 16 s + 2 r + h of 64; outputs are in the last axis."""
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 16, (3, 128, 5))
    words = np.asarray(qtensor.pack_int4_along_inputs(jnp.asarray(numbers)))
    assert (words.shape, words.dtype) == ((3, 16, 5), np.int32)
    for r, s, h in ((0, 0, 0), (5, 2, 1), (15, 3, 1)):
        place = r // 8 * 64 + 16 * s + 2 * (r % 8) + h
        np.testing.assert_array_equal(words[:, r] >> (16 * h + 4 * s) & 15, numbers[:, place])
    np.testing.assert_array_equal(np.asarray(qtensor.unpack_int4_along_inputs(jnp.asarray(words))), numbers)


@pytest.mark.parametrize("first", [0, 1])
def test_a_weight_goes_to_words_and_back(first):
    rng = np.random.default_rng(2)
    weight = QTensor(
        jnp.asarray(rng.integers(0, 256, (2, 3, 4, 64)).astype(np.uint8)),
        jnp.asarray(rng.uniform(0.5, 2.0, (2, 3, 4, 4)).astype(np.float32)),
        jnp.asarray(rng.integers(0, 16, (2, 3, 4, 4)).astype(np.uint8)),
        jnp.arange(128)[::-1],
        kind="int4",
    )
    words = jax.jit(qtensor.to_words, static_argnums=1)(weight, first)
    words.check()
    assert (words.outputs, words.inputs, words.group, words.nbytes) == ((2, 3, 4), 128, 32, weight.nbytes)
    assert words.values.shape[:-2] == weight.outputs[:first]
    back = jax.jit(qtensor.from_words)(words)
    jax.tree.map(np.testing.assert_array_equal, back, weight)
    np.testing.assert_array_equal(reference.values(words), reference.values(weight))
    np.testing.assert_allclose(np.asarray(jax.jit(qtensor.dequantize)(words)), reference.values(weight), rtol=1e-6)


def test_words_that_do_not_fit_are_named():
    words = QTensor(jnp.ones((2, 8, 3), jnp.int32), jnp.ones((2, 2, 3)), kind="int4", packed_outputs=())
    words.check()
    for change, text in (
        ({"kind": "int8"}, "weight is 'int8'; as words it must be 'int4'"),
        ({"values": words.values.astype(jnp.uint8)}, r"weight\.values is uint8; int4 is stored as int32 words"),
        ({"scales": words.scales[1:]}, r"weight\.scales has shape \(1, 2, 3\); it must be \(2, 2, 3\)"),
        ({"packed_outputs": (2,)}, r"weight\.packed_outputs is \(2,\); it must divide the 3 outputs in the last axis"),
    ):
        with pytest.raises(ValueError, match=text):
            dataclasses.replace(words, **change).check()


def test_it_is_a_leaf_type():
    """Its arrays are the leaves of a tree, what it is lies in the structure; a jitted function takes and gives it."""
    quantized = qtensor.quantize(jnp.ones((4, 8)), "int8", activations="int8")
    leaves, structure = jax.tree.flatten({"layer": quantized})
    assert [leaf.dtype for leaf in leaves] == [jnp.int8, jnp.float32]
    again = jax.jit(lambda tree: tree)(jax.tree.unflatten(structure, leaves))["layer"]
    assert isinstance(again, QTensor)
    assert (again.kind, again.activations, again.shape, again.nbytes) == ("int8", "int8", (4, 8), 32 + 16)


def test_what_is_not_finite_has_no_scale():
    weight = jnp.ones((3, 8)).at[1, 3].set(jnp.nan).at[2, 0].set(jnp.inf)
    np.testing.assert_array_equal(
        np.isfinite(np.asarray(qtensor.quantize(weight, "int8").scales))[:, 0], [True, False, False]
    )


@pytest.mark.parametrize(("kind", "group"), [("int8", 3), ("int4", 5), ("int8", 0)])
def test_groups_that_do_not_divide_are_refused(kind, group):
    with pytest.raises(ValueError, match=f"group is {group}; it must divide the 20 inputs"):
        qtensor.quantize(jnp.ones((4, 20)), kind, group)


def every_mxfp4() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All 16 numbers with all 256 scales: codes (256, 16), scales (256, 1), and the values in float64."""
    codes = np.tile(np.arange(16, dtype=np.uint8), (256, 1))
    scales = np.arange(256, dtype=np.uint8)[:, None]
    numbers = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    return codes, scales, numbers * scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)


def same_values(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got[:255]), np.signbit(want[:255]))


def test_every_number_of_mxfp4_with_every_scale_is_exact():
    """In bfloat16 and float32, below their smallest normal number too; 2^128 and more is infinity."""
    codes, scales, want = every_mxfp4()
    got = jax.jit(mxfp4.decode)(codes, scales)
    assert got.dtype == jnp.bfloat16
    with np.errstate(over="ignore"):
        same_values(np.asarray(got).astype(np.float64), want.astype(np.float32).astype(np.float64))
    small = np.abs(want[:255]) < np.finfo(np.float32).tiny
    assert np.unique(np.abs(want[:255][small])).tolist() == [0, *(2.0**-126 * part for part in (0.25, 0.5, 0.75))]
    weight = QTensor(jnp.tile(qtensor.pack_int4(jnp.asarray(codes)), (1, 2)), jnp.asarray(scales), kind="mxfp4")
    weight.check()
    wide = np.asarray(jax.jit(qtensor.dequantize)(weight))
    assert (wide.shape, wide.dtype) == ((256, 32), np.float32)
    with np.errstate(over="ignore"):
        same_values(wide, np.tile(want, 2).astype(np.float32))
        same_values(reference.values(weight), np.tile(want, 2))


def test_mxfp4_rounds_as_the_specification_says():
    """A power of two brings the largest magnitude to [4, 8); numbers: nearest, ties to even, at most 6."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((9, 5, 96)).astype(np.float32) * np.float32(2.0) ** rng.integers(-60, 60, (9, 5, 1))
    weight[0, :, :32] = np.linspace(-8, 8, 32, endpoint=False)  # every tie
    weight[1, :, :32] = np.linspace(-7.75, 7.75, 32)
    weight[2, 0] = 0.0
    rounded = jax.jit(qtensor.quantize, static_argnums=1)(weight, "mxfp4")
    rounded.check()
    assert (rounded.shape, rounded.group, rounded.nbytes) == ((9, 5, 96), 32, 9 * 5 * (48 + 3))
    blocks = weight.reshape(9, 5, 3, 32).astype(np.float64)
    largest = np.abs(blocks).max(axis=-1)
    with np.errstate(divide="ignore"):
        want = np.where(largest > 0, np.floor(np.log2(largest)) - 2 + 127, 0)
    np.testing.assert_array_equal(rounded.scales, want)
    scaled = np.clip(blocks / np.exp2(want[..., None] - 127), -6, 6)
    codes = scaled.astype(ml_dtypes.float4_e2m1fn).view(np.uint8).reshape(weight.shape)
    np.testing.assert_array_equal(qtensor.unpack_int4(rounded.values), codes)


def test_mxfp4_of_the_smallest_and_largest_numbers():
    tiny, largest = np.float32(2.0**-126), np.finfo(np.float32).max
    weight = np.zeros((5, 32), np.float32)
    weight[:, 3] = tiny, largest, np.nan, np.inf, -largest
    rounded = qtensor.quantize(jnp.asarray(weight), "mxfp4")
    np.testing.assert_array_equal(np.asarray(rounded.scales)[:, 0], [0, 252, 255, 255, 252])
    back = np.asarray(qtensor.dequantize(rounded))
    assert back[0, 3] == tiny
    assert (back[1, 3], back[4, 3]) == (6 * 2.0**125, -6 * 2.0**125)
    assert [qtensor.scales_are_finite(qtensor.quantize(jnp.asarray(row[None]), "mxfp4")) for row in weight] == [
        True, True, False, False, True,
    ]  # fmt: skip


def test_mxfp4_that_does_not_fit_is_named():
    weight = qtensor.quantize(jnp.ones((3, 64)), "mxfp4")
    for change, text in (
        ({"scales": jnp.ones((3, 2))}, "weight.scales is float32; for mxfp4 it must be uint8"),
        ({"scales": weight.scales[:, :1]}, "weight has groups of 64 inputs; those of mxfp4 must have 32"),
        ({"scales": weight.scales[:2]}, r"weight.scales has shape \(2, 2\); it must be \(3, 2\)"),
        ({"values": weight.values.astype(jnp.int8)}, "weight.values is int8; mxfp4 is stored as uint8"),
        ({"zeros": weight.scales}, "weight.zeros is uint8; for mxfp4 it must be None"),
        ({"activations": "int8"}, "weight is mxfp4 with an order of inputs or rounded activations"),
    ):
        with pytest.raises(ValueError, match=text):
            dataclasses.replace(weight, **change).check()
    with pytest.raises(ValueError, match="group is 64; for mxfp4 it must be 32"):
        qtensor.quantize(jnp.ones((3, 64)), "mxfp4", 64)
    with pytest.raises(ValueError, match="group is 32; it must divide the 48 inputs"):
        qtensor.quantize(jnp.ones((3, 48)), "mxfp4")
