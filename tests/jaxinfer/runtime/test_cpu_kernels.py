"""What an engine on a CPU computes with, and that its tokens do not depend on it."""

from __future__ import annotations

import dataclasses
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.config import ConfigError, RuntimeConfig
from jaxinfer.models.layer_choice import LayerChoice
from jaxinfer.models.layers.linear import product
from jaxinfer.models.native_product import native_multiply
from jaxinfer.runtime import cpu_kernels
from jaxinfer.runtime.cpu_kernels import choose_form
from jaxinfer.sharding import make_mesh
from pallas_kernels.native_cpu.instructions import BY_NAME
from pallas_kernels.native_cpu.library import KernelsUnavailable
from pallas_kernels.qtensor import quantize
from tests.golden_recipe import load_case
from tests.jaxinfer.harness import build
from tests.pallas_kernels.native_cpu.loaded import NAMES, target_for

AVX2 = BY_NAME["avx2"]
MODEL = SimpleNamespace(
    shape=SimpleNamespace(layers=[SimpleNamespace(mlp=512)]),
    config=SimpleNamespace(hidden_size=256),
    dtype="float32",
)


def chosen(monkeypatch, *, asked="auto", ours=1.0, xla=1.0, refusal=None, mesh=None):
    def load(name):
        if refusal is not None:
            raise KernelsUnavailable(refusal)
        return AVX2

    monkeypatch.setattr(cpu_kernels, "load", load)
    monkeypatch.setattr(cpu_kernels, "measured", lambda *args: (ours, xla))
    return choose_form(MODEL, make_mesh() if mesh is None else mesh, RuntimeConfig(cpu_kernels=asked))


def test_the_kernels_serve_unless_xla_is_much_faster(monkeypatch):
    form = chosen(monkeypatch, ours=0.001, xla=0.0006)
    assert form.instructions == "avx2"
    assert form.why == (
        "C++ kernels for avx2: bfloat16 widened in registers, int8 multiplied in pairs "
        "(1024 x 256 for 1 and 8 rows: 1.00 ms, XLA 0.60 ms)"
    )
    form = chosen(monkeypatch, ours=0.001, xla=0.0004)
    assert form.instructions is None
    assert "XLA, which is faster than the C++ kernels for avx2" in form.why


def test_where_they_cannot_be_had_xla_serves_and_says_why(monkeypatch):
    form = chosen(monkeypatch, refusal="there is no C++ compiler")
    assert form == (None, "XLA, since the C++ kernels cannot be had: there is no C++ compiler")
    with pytest.raises(ConfigError, match=r"cpu_kernels is 'avx2', which cannot be had here: there is no C\+\+"):
        chosen(monkeypatch, asked="avx2", refusal="there is no C++ compiler")


def test_a_small_model_is_not_measured(monkeypatch):
    monkeypatch.setattr(MODEL.config, "hidden_size", 255)
    assert chosen(monkeypatch, ours=9.0, xla=1.0).instructions == "avx2"


def test_what_is_asked_for_is_not_measured(monkeypatch):
    assert chosen(monkeypatch, asked="avx2", ours=9.0, xla=1.0).instructions == "avx2"
    assert chosen(monkeypatch, asked="xla").instructions is None


def test_an_unknown_name_and_several_devices(monkeypatch):
    with pytest.raises(ConfigError, match="cpu_kernels is 'neon'; it must be one of auto, xla, avx512_bf16, "):
        chosen(monkeypatch, asked="neon")
    several = SimpleNamespace(size=2, devices=np.asarray([SimpleNamespace(platform="cpu")] * 2))
    assert "split a product over several devices" in chosen(monkeypatch, mesh=several).why
    gpu = SimpleNamespace(size=1, devices=np.asarray([SimpleNamespace(platform="gpu")]))
    assert chosen(monkeypatch, mesh=gpu) == (None, "the device is no CPU")


def test_both_forms_are_measured_on_the_models_own_product():
    target = target_for("avx2")
    assert all(0 < seconds < 10 for seconds in cpu_kernels.measured(target.instructions, 4096, 2048, "bfloat16"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_multiply_gives_what_product_gives(dtype):
    multiply = native_multiply(target_for("avx2").instructions)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((8, 2, 16)), dtype)
    weights = [jnp.asarray(rng.standard_normal((3, 5, 2, 16)), dtype) for _ in range(2)]
    got = multiply(x, weights[1], inputs=2)
    assert got.shape == (8, 3, 5)
    np.testing.assert_allclose(got, product(x, weights[1], inputs=2), atol=1e-4)
    choice = LayerChoice(jnp.int32(1), tuple(weights))
    np.testing.assert_array_equal(jax.jit(lambda x: multiply(x, choice, inputs=2))(x), got)
    rounded = [quantize(w.reshape(3, 5, 32), "int8", activations="int8") for w in weights]
    rounded = [dataclasses.replace(w, target=target_for("avx2")) for w in rounded]
    flat = x.reshape(8, 32)
    want = jax.jit(lambda x: product(x, rounded[1]))(flat)
    np.testing.assert_array_equal(multiply(flat, LayerChoice(jnp.int32(1), tuple(rounded))), want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_multiply_of_mxfp4_gives_what_product_gives(dtype):
    multiply = native_multiply(target_for("avx2").instructions, jnp.int32(5))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((8, 2, 32)), dtype)
    weights = [quantize(jnp.asarray(rng.standard_normal((3, 5, 64)), dtype), "mxfp4") for _ in range(2)]
    weights = [dataclasses.replace(w, target=target_for("avx2")) for w in weights]
    got = jax.jit(lambda x: multiply(x, LayerChoice(jnp.int32(1), tuple(weights)), inputs=2))(x)
    assert got.shape == (8, 3, 5)
    np.testing.assert_allclose(got[:5], jax.jit(lambda x: product(x, weights[1], inputs=2))(x)[:5], atol=1e-4)
    np.testing.assert_array_equal(got[5:], 0)  # padding, which XLA would compute


def test_what_the_kernels_do_not_serve_goes_to_xla():
    x = jnp.ones((8, 16), jnp.bfloat16)
    weight = jnp.full((4, 16), 0.1, jnp.float32)
    mixed = native_multiply(target_for("avx2").instructions)(x, weight)
    np.testing.assert_array_equal(mixed, product(x, weight))
    groups = quantize(weight, "int8", 8, activations="int8")
    groups = dataclasses.replace(groups, target=target_for("avx2"))
    want = jax.jit(lambda x: product(x, groups))(x)
    np.testing.assert_array_equal(jax.jit(lambda x: native_multiply("avx2")(x, groups))(x), want)


@cache
def tokens_computed_by(kernels, quantization):
    engine = build(load_case("llama"), cpu_kernels=kernels, quantization=quantization, max_num_batched_tokens=16)
    assert engine.loop.info.backends["products"] == ("xla" if kernels == "xla" else f"native_cpu ({kernels})")
    return engine.generate(range(20, 40)).tokens


@pytest.mark.longer
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_tokens_do_not_depend_on_what_computes_them(name, quantization):
    target_for(name)
    # Where activations are rounded to int8, a last bit becomes a step, and after many tokens one of them another.
    count = None if quantization is None else 16
    assert tokens_computed_by("xla", quantization)[:count] == tokens_computed_by(name, quantization)[:count]
