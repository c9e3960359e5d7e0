"""A product picks one of several weights by a number that only the running program knows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.models.layer_choice import LayerChoice
from jaxinfer.models.layers.linear import Linear, product
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.qtensor import quantize
from pallas_kernels.quantized_matmul.layout import for_target

HERE = DeviceTarget("cpu", "cpu")


def matrices(kind: str) -> list[Any]:
    rng = np.random.default_rng(0)
    plain = [jnp.asarray(rng.standard_normal((6, 2, 32)), jnp.float32) for _ in range(3)]
    if kind in ("float32", "bfloat16"):
        return [weight.astype(kind) for weight in plain]
    activations: Any = "int8" if kind == "w8a8" else None
    return [for_target(quantize(w, "int8" if kind == "w8a8" else kind, activations=activations), HERE) for w in plain]


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4", "w8a8", "mxfp4"])
def test_a_choice_gives_the_bits_of_the_weight_that_was_chosen(kind: str) -> None:
    weights = matrices(kind)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((8, 32)), jnp.float32)
    chosen = jax.jit(lambda x, index: product(x, LayerChoice(index, tuple(weights))))
    outputs = [np.asarray(chosen(x, jnp.int32(i))) for i in range(3)]
    for weight, output in zip(weights, outputs, strict=True):
        np.testing.assert_array_equal(output, jax.jit(product)(x, weight))
    assert not np.array_equal(outputs[0], outputs[1])


def test_a_layer_multiplies_with_what_it_is_given() -> None:
    seen = []

    def multiply(x: jax.Array, weight: Any, **options: Any) -> jax.Array:
        seen.append((weight.shape, options))
        return 2 * product(x, weight, **options)

    layer = Linear((6, 2), (3, 4), ("mlp", None, None, None), jnp.dtype("float32"), bias=True)
    layer.weight.set_value(jnp.ones((6, 2, 3, 4)))
    x = jnp.ones((8, 3, 4))
    np.testing.assert_array_equal(layer(x, multiply), 2 * layer(x))
    assert seen == [((6, 2, 3, 4), {"inputs": 2, "merge": True, "axes": ("mlp", None, None, None)})]
