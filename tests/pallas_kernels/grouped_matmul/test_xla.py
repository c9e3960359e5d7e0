"""The grouped product through XLA on this CPU, the checks of its arguments, and that only touched experts are read."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dispatch import DeviceTarget, UnknownBackend
from pallas_kernels.grouped_matmul import grouped_matmul, grouped_matmul_of_choice, xla
from pallas_kernels.qtensor import QTensor, quantize
from tests.pallas_kernels.grouped_matmul.contract import CASES, GroupedMatmulContract

CPU = DeviceTarget("cpu", "cpu")


class TestXla(GroupedMatmulContract):
    backend = "xla"
    target = CPU  # type: ignore[assignment]


@pytest.mark.parametrize("case", [CASES[0], CASES[8]], ids=str)
def test_one_of_several_layers_is_picked(case):
    x, weight, sizes = case.arrays(CPU)
    other = jax.tree.map(jnp.zeros_like, weight)
    pick = jax.jit(lambda index: grouped_matmul_of_choice(x, [other, weight], index, sizes, target=CPU))
    want = np.asarray(jax.jit(lambda: grouped_matmul(x, weight, sizes, target=CPU))())
    np.testing.assert_array_equal(np.asarray(pick(jnp.int32(1))), want)
    assert not np.any(np.asarray(pick(jnp.int32(0))))


def test_a_ragged_dot_is_the_same_product():
    """The form of other devices, which this one computes, too."""
    x, weight, sizes = CASES[0].arrays(CPU)
    assert not isinstance(weight, QTensor)
    got = np.asarray(xla._ragged(x, weight, sizes))
    want = np.asarray(grouped_matmul(x, weight, sizes, target=CPU))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_experts_without_rows_are_not_read():
    """NaN in their weights reaches nobody, and the loop turns once for each expert that has rows."""
    x, weight, sizes = CASES[0].arrays(CPU)
    assert not isinstance(weight, QTensor)
    got = np.asarray(grouped_matmul(x, weight.at[1].set(jnp.nan), sizes, target=CPU))
    np.testing.assert_array_equal(got, np.asarray(grouped_matmul(x, weight, sizes, target=CPU)))


def test_what_does_not_fit_together_is_named():
    x, weight, sizes = CASES[0].arrays(CPU)
    assert not isinstance(weight, QTensor)
    for arguments, message in (
        ((x.astype(jnp.int32), weight, sizes), "x is int32"),
        ((x, weight.astype(jnp.bfloat16), sizes), "weight is bfloat16; it must be of x's type, float32"),
        ((x[:, :7], weight, sizes), r"x has shape \(16, 7\)"),
        ((x, weight[:, 0, 0], sizes), "it must have axes of experts, outputs and inputs"),
        ((x, weight, sizes[:3]), r"group_sizes is \(3,\) int32; for 4 experts it must be \(4,\) int32"),
        ((x, weight, sizes.astype(jnp.float32)), "float32; for 4 experts"),
    ):
        with pytest.raises(ValueError, match=message):
            grouped_matmul(*arguments, target=CPU)
    with pytest.raises(UnknownBackend, match="known: "):
        grouped_matmul(x, weight, sizes, target=CPU, backend="none")
    sorted_by_group = quantize(weight, "int4", 32)
    order = jnp.arange(96, dtype=jnp.int32)
    with pytest.raises(ValueError, match="act-order"):
        grouped_matmul(x, dataclasses.replace(sorted_by_group, order=order), sizes, target=CPU)
