"""Gates of the C++ kernels, with every instruction set that this machine has."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.models.layers.mlp import gated
from jaxinfer.models.native_product import native_gate
from pallas_kernels.native_cpu.gating import KINDS, gating
from tests.pallas_kernels.native_cpu.loaded import NAMES, target_for


@pytest.fixture(params=NAMES)
def instructions(request) -> str:
    return target_for(request.param).instructions


def rows(dtype=jnp.float32) -> jnp.ndarray:
    rng = np.random.default_rng(5)
    return jnp.asarray(8 * rng.standard_normal((37, 2, 96)), dtype)


def exact(gate_up: jnp.ndarray, activation: str) -> np.ndarray:
    gate, up = np.asarray(gate_up, np.float64)[:, 0], np.asarray(gate_up, np.float64)[:, 1]
    inner = gate if activation == "silu" else 2 * np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
    with np.errstate(over="ignore"):  # far below zero, where the quotient is zero
        return gate / (1 + np.exp(-inner)) * up


@pytest.mark.parametrize("activation", KINDS)
def test_float32_is_exact_to_its_last_digits(instructions, activation):
    x = rows()
    got = np.asarray(gating(x, jnp.int32(37), activation, instructions=instructions))
    # e to the power of -z takes z's rounding error, at most 87 * 2^-24, as a share of itself.
    np.testing.assert_allclose(got, exact(x, activation), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("activation", KINDS)
def test_bfloat16_is_rounded_before_it_meets_up(instructions, activation):
    x = rows(jnp.bfloat16)
    got = gating(x, jnp.int32(37), activation, instructions=instructions)
    assert got.dtype == jnp.bfloat16
    want = np.asarray(gated(x, activation), np.float32)
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=2**-7, atol=1e-4)
    if activation == "silu":
        np.testing.assert_array_equal(np.asarray(got, np.float32), want)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_far_values_neither_overflow_nor_lose_what_is_not_finite(instructions, dtype):
    gates = jnp.asarray([300.0, -300.0, 0.0, -0.0, jnp.nan, jnp.inf, -3e38, 3e38] * 2, dtype)
    x = jnp.stack([gates, jnp.full(16, 0.5, dtype)])[None]
    got = np.asarray(gating(x, jnp.int32(1), "silu", instructions=instructions), np.float32)[0, :8]
    want = np.asarray([150.0, 0.0, 0.0, 0.0, np.nan, np.inf, 0.0, np.float32(gates[7]) / 2], np.float32)
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-30)


def test_rows_of_padding_are_zero_and_others_do_not_change(instructions):
    x = rows()
    whole = np.asarray(gating(x, jnp.int32(37), "silu", instructions=instructions))
    got = np.asarray(gating(x.at[20:].set(jnp.nan), jnp.int32(20), "silu", instructions=instructions))
    np.testing.assert_array_equal(got[:20], whole[:20])
    np.testing.assert_array_equal(got[20:], 0)


def test_what_the_kernel_does_not_serve_goes_to_xla():
    gate = native_gate(target_for("avx2").instructions, jnp.int32(37))
    x = rows()
    np.testing.assert_array_equal(gate(x, "gelu"), gated(x, "gelu"))
    np.testing.assert_array_equal(gate(x[..., :90], "silu"), gated(x[..., :90], "silu"))


def test_refusals():
    x, count = rows(), jnp.int32(1)
    with pytest.raises(ValueError, match="gate_up is int32"):
        gating(x.astype(jnp.int32), count, "silu", instructions="avx2")
    with pytest.raises(ValueError, match="the width is 90; it must be a multiple of 16"):
        gating(x[..., :90], count, "silu", instructions="avx2")
    with pytest.raises(ValueError, match="activation is 'gelu'; it must be one of silu, gelu_tanh"):
        gating(x, count, "gelu", instructions="avx2")
