"""The gated MLP: down(activation(gate(x)) * up(x)). Shapes: T tokens, D model, F' padded width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.config import MlpConfig
from jaxinfer.models.layers.linear import Linear, Multiply, product
from jaxinfer.sharding import constrain


def gelu(x: jax.Array) -> jax.Array:
    """x * normal cdf(x) through erf, not its tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {"silu": jax.nn.silu, "gelu": gelu, "gelu_tanh": gelu_tanh}
)


class Gate(Protocol):
    """How gate and up become one: `gated`, or another function that keeps its contract."""

    def __call__(
        self,
        gate_up: jax.Array,  # (T, 2, F')
        activation: str,  # of `ACTIVATIONS`, or swiglu_oai
        limit: float | None = None,  # see `MlpConfig`
        count: jax.Array | None = None,  # () int32, rows from here on are padding; None: as for the step's tokens
    ) -> jax.Array:  # (T, F') in the type of gate_up
        ...


SWIGLU_SLOPE = 1.702  # of swiglu_oai's sigmoid: x * sigmoid(1.702 x) is near gelu (Hendrycks and Gimpel 2016)


def gated(gate_up: jax.Array, activation: str, limit: float | None = None, count: jax.Array | None = None) -> jax.Array:
    """activation(gate) times up, (T, 2, F') -> (T, F'). The activation is computed in float32 and rounded before it
    meets `up`. swiglu_oai (gpt-oss) limits both and adds 1 to `up`; all of it is computed in float32."""
    del count
    gate, up = gate_up[:, 0], gate_up[:, 1]
    if activation == "swiglu_oai":
        low, high = jnp.minimum(gate.astype(jnp.float32), limit), jnp.clip(up.astype(jnp.float32), -limit, limit)
        return (low * jax.nn.sigmoid(SWIGLU_SLOPE * low) * (high + 1.0)).astype(gate_up.dtype)
    return ACTIVATIONS[activation](gate.astype(jnp.float32)).astype(gate_up.dtype) * up


class Mlp(nnx.Module):
    """hidden: D. padded_width: F', of `ModelShape`. tp: over how many devices it is split."""

    def __init__(
        self, mlp: MlpConfig, hidden: int, padded_width: int, tp: int, dtype: jnp.dtype, rngs: nnx.Rngs | None
    ) -> None:
        self.activation, self.limit = mlp.activation, mlp.limit
        width, model = (padded_width,), (hidden,)
        self.gate_up = Linear(
            (2, *width),
            model,
            ("gate_up", "mlp", "embed"),
            dtype,
            bias=mlp.bias,
            merge=tp == 1,  # the width is split, and it is not the first axis
            rngs=rngs,
        )
        self.down = Linear(model, width, ("embed", "mlp"), dtype, bias=mlp.bias, rngs=rngs)

    def __call__(self, x: jax.Array, multiply: Multiply = product, gate: Gate = gated) -> jax.Array:
        """(T, D) -> (T, D)."""
        gate_up = constrain(self.gate_up(x, multiply), "batch", "gate_up", "mlp")  # (T, 2, F')
        return constrain(self.down(gate(gate_up, self.activation, self.limit), multiply), "batch", "embed")
