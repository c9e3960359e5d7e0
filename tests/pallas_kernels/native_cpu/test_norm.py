"""Norms of the C++ kernels, with every instruction set that this machine has."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.models.layers.norm import rms_norm
from jaxinfer.models.native_product import native_normalize
from pallas_kernels.native_cpu.norm import normalize
from tests.pallas_kernels.native_cpu.loaded import NAMES, target_for

# Llama's; Gemma's, which rounds once and has weights around 0; and one with neither.
WAYS = [(1e-5, 0.0, False), (1e-6, 1.0, True), (1e-6, 1.0, False)]


@pytest.fixture(params=NAMES)
def instructions(request) -> str:
    return target_for(request.param).instructions


def arrays(columns: int, dtype) -> tuple[jnp.ndarray, jnp.ndarray]:
    rng = np.random.default_rng(columns)
    x = jnp.asarray(rng.standard_normal((37, columns)) * np.geomspace(1e-3, 1e3, 37)[:, None], dtype)
    return x, jnp.asarray(1 + 0.2 * rng.standard_normal(columns), dtype)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("columns", [16, 48, 1024])
def test_it_is_rms_norm(instructions, columns, dtype, way):
    eps, offset, scale_float32 = way
    x, weight = arrays(columns, dtype)
    how = {"eps": eps, "offset": offset, "scale_float32": scale_float32}
    got = normalize(x, weight, jnp.int32(37), **how, instructions=instructions)
    assert got.dtype == dtype
    want = np.asarray(rms_norm(x, weight, **how), np.float32)
    # Where one of the roundings to bfloat16 falls the other way, the result is a step of it away.
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=2e-6 if dtype == jnp.float32 else 2**-7)
    assert np.mean(np.asarray(got, np.float32) == want) > (0.3 if dtype == jnp.float32 else 0.99)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_a_rows_bits_are_its_own_and_padding_is_zero(instructions, dtype):
    x, weight = arrays(96, dtype)
    how = {"eps": 1e-5, "offset": 0.0, "scale_float32": False, "instructions": instructions}
    whole = np.asarray(normalize(x, weight, jnp.int32(37), **how), np.float32)
    for count in (1, 7, 20):
        poisoned = x.at[count:].set(jnp.nan)
        got = np.asarray(normalize(poisoned, weight, jnp.int32(count), **how), np.float32)
        np.testing.assert_array_equal(got[:count], whole[:count])
        np.testing.assert_array_equal(got[count:], 0)
    assert np.isnan(np.asarray(normalize(x.at[3, 5].set(jnp.nan), weight, jnp.int32(37), **how), np.float32)[3]).all()


def test_heads_of_real_tokens_are_real_rows():
    normalized = native_normalize(target_for("avx2").instructions, jnp.int32(5))
    rng = np.random.default_rng(0)
    x, weight = jnp.asarray(rng.standard_normal((8, 3, 32)), jnp.float32), jnp.ones(32, jnp.float32)
    how = {"eps": 1e-6, "offset": 0.0, "scale_float32": False}
    got = normalized(x, weight, **how)
    np.testing.assert_allclose(got[:5], rms_norm(x, weight, **how)[:5], rtol=1e-6)
    np.testing.assert_array_equal(got[5:], 0)
    over_heads = jnp.ones((3, 32), jnp.float32)
    np.testing.assert_array_equal(normalized(x, over_heads, **how), rms_norm(x, over_heads, **how))


def test_refusals():
    x, weight = arrays(32, jnp.float32)
    how = {"eps": 1e-6, "offset": 0.0, "scale_float32": False, "instructions": "avx2"}
    with pytest.raises(ValueError, match="x is float32 and the weight bfloat16"):
        normalize(x, weight.astype(jnp.bfloat16), jnp.int32(1), **how)
    with pytest.raises(ValueError, match="a multiple of 16"):
        normalize(x[:, :24], weight[:24], jnp.int32(1), **how)
