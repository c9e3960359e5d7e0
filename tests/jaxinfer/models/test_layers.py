"""Norms, products, embedding and MLP against numpy, with the rounding of each family."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxinfer.config import MlpConfig, ModelConfig
from jaxinfer.models.layers.embedding import VocabularyMatrix
from jaxinfer.models.layers.linear import Linear, product, scale
from jaxinfer.models.layers.mlp import ACTIVATIONS, Mlp, Xielu
from jaxinfer.models.layers.norm import RMSNorm, rms_norm
from jaxinfer.models.registry import model_config

BF16 = ml_dtypes.bfloat16


def config(**changes: Any) -> ModelConfig:
    sizes = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 13, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return dataclasses.replace(model_config({"model_type": "llama"} | sizes | heads), **changes)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_rms_norm_float32() -> None:
    x, weight = normal(9, 32), normal(32, seed=1)
    wanted = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
    for offset in (0.0, 1.0):
        for late in (False, True):
            ours = rms_norm(jnp.asarray(x), jnp.asarray(weight), eps=1e-5, offset=offset, scale_float32=late)
            np.testing.assert_allclose(ours, wanted * (weight + offset), rtol=1e-5)


def test_rms_norm_over_all_heads() -> None:
    """A weight of two axes: one mean over both (OLMo 2's QK norm)."""
    x, weight = normal(9, 3, 8), normal(3, 8, seed=1)
    flat = rms_norm(jnp.asarray(x.reshape(9, 24)), jnp.asarray(weight.ravel()), eps=1e-6, offset=0, scale_float32=True)
    ours = rms_norm(jnp.asarray(x), jnp.asarray(weight), eps=1e-6, offset=0, scale_float32=True)
    np.testing.assert_allclose(np.asarray(ours).reshape(9, 24), flat, rtol=1e-6)


def test_rms_norm_rounds_where_the_family_does() -> None:
    """Llama: round, multiply, round. Gemma and OLMo 2: multiply in float32, round once. They differ in bfloat16."""
    x, weight = normal(64, 32).astype(BF16), (1 + 0.3 * normal(32, seed=1)).astype(BF16)
    wide = x.astype(np.float32)
    normed = (wide / np.sqrt((wide**2).mean(-1, keepdims=True) + np.float32(1e-6))).astype(np.float32)
    early = (normed.astype(BF16).astype(np.float32) * weight.astype(np.float32)).astype(BF16)
    late = (normed * weight.astype(np.float32)).astype(BF16)
    gemma = (normed * (1 + (weight.astype(np.float32) - 1))).astype(BF16)
    assert (early != late).mean() > 0.1
    args = {"eps": 1e-6, "offset": 0.0}
    x, weight = jnp.asarray(x), jnp.asarray(weight)
    # One element in a thousand may sit on a rounding border that the last bit of the mean decides.
    ours = rms_norm(x, weight, scale_float32=False, **args)
    assert (np.asarray(ours) != early).mean() < 1e-3
    assert (np.asarray(rms_norm(x, weight, scale_float32=True, **args)) != late).mean() < 1e-3
    offset = jnp.asarray((np.asarray(weight).astype(np.float32) - 1).astype(BF16))
    exact = np.asarray(offset).astype(np.float32) + 1 == np.asarray(weight).astype(np.float32)
    ours = np.asarray(rms_norm(x, offset, eps=1e-6, offset=1.0, scale_float32=True))
    assert exact.mean() > 0.3
    assert (ours != gemma)[:, exact].mean() < 1e-3


def test_a_fresh_norm_is_the_identity_for_every_family() -> None:
    x = jnp.asarray(normal(8, 16))
    for offset in (0.0, 1.0):
        norm = RMSNorm(config(norm_offset=offset), (16,), (None,), jnp.dtype("float32"))
        plain = rms_norm(x, jnp.ones(16), eps=1e-6, offset=0.0, scale_float32=False)
        np.testing.assert_allclose(norm(x), plain, rtol=1e-6)


def test_product_contracts_the_last_axes() -> None:
    x, weight = normal(5, 3, 4), normal(2, 6, 3, 4, seed=1)
    ours = product(jnp.asarray(x), jnp.asarray(weight), inputs=2)
    np.testing.assert_allclose(ours, np.einsum("tkh,opkh->top", x, weight), rtol=1e-5, atol=1e-5)


def test_bfloat16_products_are_summed_in_float32_and_rounded_once() -> None:
    x, weight, bias = (normal(*s, seed=i).astype(BF16) for i, s in enumerate(((16, 512), (24, 512), (24,))))
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    assert product(jnp.asarray(x), jnp.asarray(weight)).dtype == jnp.float32
    # float32 sums of 512 terms of order 1: 1e-4; bfloat16 sums would be off by 0.1 and more
    np.testing.assert_allclose(product(jnp.asarray(x), jnp.asarray(weight)), exact, atol=1e-3)
    layer = Linear((24,), (512,), (None, "embed"), jnp.dtype("bfloat16"), bias=True)
    layer.weight.set_value(jnp.asarray(weight))
    assert layer.bias is not None
    layer.bias.set_value(jnp.asarray(bias))
    ours = layer(jnp.asarray(x))
    assert ours.dtype == jnp.bfloat16
    wanted = (exact + bias.astype(np.float64)).astype(np.float32).astype(BF16)
    assert (np.asarray(ours) != wanted).mean() < 0.01  # rounding borders


def test_float32_products_ask_for_full_precision() -> None:
    """GPU and TPU multiply float32 in fewer bits unless asked not to; CPU could not tell."""
    text = jax.jit(product).lower(jnp.zeros((8, 4)), jnp.zeros((6, 4))).as_text()
    assert "HIGHEST" in text


def test_activations() -> None:
    x = np.linspace(-6, 6, 101)
    wanted = {
        "silu": x / (1 + np.exp(-x)),
        "gelu": x * np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]),
        "gelu_tanh": 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    }
    wanted["relu2"] = np.maximum(x, 0) ** 2
    assert set(wanted) == set(ACTIVATIONS)
    for name, values in wanted.items():
        np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), values, atol=2e-6)


def test_xielu() -> None:
    """Its definition in float64; below zero it joins in `eps`, and its slope at zero is beta."""
    x = np.linspace(-6, 6, 101)
    values = {"alpha_p": 0.3, "alpha_n": -0.2, "beta": 0.5, "eps": -1e-6}
    module = Xielu(jnp.dtype("float32"))
    for name, value in values.items():
        getattr(module, name).set_value(jnp.full(1, value, jnp.float32))
    positive, negative = np.log1p(np.exp(0.3)), 0.5 + np.log1p(np.exp(-0.2))
    wanted = np.where(x > 0, positive * x * x, negative * (np.expm1(np.minimum(x, -1e-6)) - x)) + 0.5 * x
    np.testing.assert_allclose(module(jnp.asarray(x, jnp.float32)), wanted, rtol=2e-6, atol=2e-6)


def test_mlp_gates_with_the_first_half_and_ignores_padding() -> None:
    rng = np.random.default_rng(3)
    gate, up, down = (0.5 * rng.standard_normal(s).astype(np.float32) for s in ((13, 16), (13, 16), (16, 13)))
    x = normal(8, 16, seed=4)
    wanted = (gate @ x.T / (1 + np.exp(-(gate @ x.T))) * (up @ x.T)).T @ down.T
    for tp, width in ((1, 13), (2, 14)):
        mlp = Mlp(MlpConfig(13), 16, width, tp, jnp.dtype("float32"), None)
        pad = [(0, width - 13), (0, 0)]
        mlp.gate_up.weight.set_value(jnp.asarray(np.stack((np.pad(gate, pad), np.pad(up, pad)))))
        mlp.down.weight.set_value(jnp.asarray(np.pad(down, pad[::-1])))
        np.testing.assert_allclose(mlp(jnp.asarray(x)), wanted, atol=1e-5)


def vocabulary(dtype: str = "float32", rows: int = 11, **changes: Any) -> VocabularyMatrix:
    matrix = VocabularyMatrix(config(**changes), rows, "vocab_in", jnp.dtype(dtype), None)
    matrix.weight.set_value(jnp.asarray(normal(rows, 16, seed=5), dtype))
    return matrix


def test_embedding_multipliers_round_as_their_family_does() -> None:
    """Gemma rounds the multiplier to bfloat16 first, Granite multiplies in float32: 33.94 against 34."""
    ids = jnp.asarray([3, 0, 10, 3])
    table = np.asarray(vocabulary("bfloat16").weight.get_value()).astype(np.float32)[np.asarray(ids)]
    for rounded, factor in ((True, np.float32(BF16(33.94))), (False, np.float32(33.94))):
        matrix = vocabulary("bfloat16", embedding_multiplier=33.94, embedding_multiplier_rounded=rounded)
        np.testing.assert_array_equal(matrix.embed(ids), (table * factor).astype(BF16))
    np.testing.assert_array_equal(vocabulary("bfloat16").embed(ids), table.astype(BF16))


def test_scale_does_not_round_the_multiplier() -> None:
    x = normal(64).astype(BF16)
    wanted = (x.astype(np.float32) * np.float32(0.22)).astype(BF16)
    np.testing.assert_array_equal(scale(jnp.asarray(x), 0.22), wanted)
    assert (np.asarray(jnp.asarray(x) * 0.22) != wanted).any(), "the plain product would have done"


def test_logits_are_divided_capped_and_cut_at_the_vocabulary() -> None:
    hidden = normal(8, 16, seed=6)
    raw = hidden @ normal(11, 16, seed=5).T
    np.testing.assert_allclose(vocabulary().logits(jnp.asarray(hidden)), raw, atol=1e-5)
    both = vocabulary(logits_divisor=8.0, final_softcap=0.5).logits(jnp.asarray(hidden))
    np.testing.assert_allclose(both, 0.5 * np.tanh(raw / 8 / 0.5), atol=1e-6)
    padded = np.asarray(vocabulary(rows=14, final_softcap=0.5).logits(jnp.asarray(hidden)))
    assert padded.shape == (8, 14)
    assert (padded[:, 11:] == -np.inf).all()
    assert np.isfinite(padded[:, :11]).all()
    assert vocabulary("bfloat16").logits(jnp.asarray(hidden, jnp.bfloat16)).dtype == jnp.float32
