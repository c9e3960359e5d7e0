"""One square matrix in place of a layer's attention or MLP, as pruning leaves it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.config import LinearConfig, ModelConfig
from jaxinfer.models.layers.linear import Linear, Multiply, product
from jaxinfer.sharding import constrain


class Straight(nnx.Module):
    """x (T, D) times a matrix (D, D), whole on every device."""

    def __init__(self, config: ModelConfig, block: LinearConfig, dtype: jnp.dtype, rngs: nnx.Rngs | None) -> None:
        model = (config.hidden_size,)
        self.linear = Linear(model, model, ("embed", "embed"), dtype, bias=block.bias, rngs=rngs)

    def __call__(self, x: jax.Array, multiply: Multiply = product) -> jax.Array:
        return constrain(self.linear(x, multiply), "batch", "embed")
