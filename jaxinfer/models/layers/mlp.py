"""The MLP: down(activation(gate(x)) * up(x)), or without a gate down(activation(up(x))).

Shapes: T tokens, D model, F' padded width. `down` has zeros where the width is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.config import WHOLE, MlpConfig, RankConfig
from jaxinfer.models.layers.linear import Linear, Multiply, product, projection
from jaxinfer.models.parameters import parameter
from jaxinfer.sharding import constrain


def gelu(x: jax.Array) -> jax.Array:
    """x * normal cdf(x) through erf, not its tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


def relu2(x: jax.Array) -> jax.Array:
    """relu(x)^2 (So et al. 2021, arXiv:2109.08668)."""
    return jnp.square(jax.nn.relu(x))


# Those without parameters of their own.
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {"silu": jax.nn.silu, "gelu": gelu, "gelu_tanh": gelu_tanh, "relu2": relu2}
)


class Xielu(nnx.Module):
    """xIELU (Huang and Schlag 2024, arXiv:2411.13010), whose parts above and below zero have learned strengths.

    All four parameters are (1,), as checkpoints have them: `alpha_p` and `alpha_n` before softplus, `beta` the slope
    at zero, `eps` a negative number next to zero that stands for what is between it and zero.
    """

    def __init__(self, dtype: jnp.dtype) -> None:
        self.alpha_p = parameter(jnp.zeros(1, dtype), (None,))
        self.alpha_n = parameter(jnp.zeros(1, dtype), (None,))
        self.beta = parameter(jnp.full(1, 0.5, dtype), (None,))
        self.eps = parameter(jnp.full(1, -1e-6, dtype), (None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        """float32 of any shape to the same."""
        beta = self.beta.get_value().astype(jnp.float32)
        positive = jax.nn.softplus(self.alpha_p.get_value().astype(jnp.float32))
        negative = beta + jax.nn.softplus(self.alpha_n.get_value().astype(jnp.float32))
        below = jnp.expm1(jnp.minimum(x, self.eps.get_value().astype(jnp.float32))) - x
        return jnp.where(x > 0, positive * x * x, negative * below) + beta * x


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
    """hidden: D. padded_width: F', of `ModelShape`. tp: over how many devices it is split. ranks: which of its matrices
    are two factors; gate and up then have products of their own."""

    def __init__(
        self,
        mlp: MlpConfig,
        hidden: int,
        padded_width: int,
        tp: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs | None,
        ranks: RankConfig = WHOLE,
    ) -> None:
        self.gated, self.activation, self.limit = mlp.gated, mlp.activation, mlp.limit
        width, model, axes = (padded_width,), (hidden,), ("mlp", "embed")
        self.fused = mlp.gated and (ranks.gate, ranks.up) == (None, None)
        if self.fused:
            self.gate_up = Linear(
                (2, *width),
                model,
                ("gate_up", *axes),
                dtype,
                bias=mlp.bias,
                merge=tp == 1,  # the width is split, and it is not the first axis
                rngs=rngs,
            )
        else:
            if mlp.gated:
                self.gate = projection(width, model, axes, dtype, rank=ranks.gate, bias=mlp.bias, rngs=rngs)
            self.up = projection(width, model, axes, dtype, rank=ranks.up, bias=mlp.bias, rngs=rngs)
        if mlp.activation == "xielu":
            self.xielu = Xielu(dtype)
        self.down = projection(model, width, axes[::-1], dtype, rank=ranks.down, bias=mlp.bias, rngs=rngs)

    def __call__(self, x: jax.Array, multiply: Multiply = product, gate: Gate = gated) -> jax.Array:
        """(T, D) -> (T, D)."""
        if self.gated:
            gate_up = (
                self.gate_up(x, multiply)
                if self.fused
                else jnp.stack((self.gate(x, multiply), self.up(x, multiply)), axis=1)
            )
            gate_up = constrain(gate_up, "batch", "gate_up", "mlp")  # (T, 2, F')
            inner = gate(gate_up, self.activation, self.limit)
        else:
            up = constrain(self.up(x, multiply), "batch", "mlp")  # (T, F')
            activate = self.xielu if self.activation == "xielu" else ACTIVATIONS[self.activation]
            inner = activate(up.astype(jnp.float32)).astype(up.dtype)
        return constrain(self.down(inner, multiply), "batch", "embed")
