"""Rounding weights to few bits, packing, and the leaf type."""

from __future__ import annotations

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
