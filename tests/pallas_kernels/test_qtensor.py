"""Quantizing weights, packing, and the leaf type."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import qtensor
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
