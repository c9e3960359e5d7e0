"""Root mean square norm (Zhang and Sennrich 2019, arXiv:1910.07467), with the rounding of each family.

Shapes: x (..., *weight.shape); the mean runs over all the axes that the weight has.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.config import ModelConfig
from jaxinfer.models.parameters import parameter
from jaxinfer.sharding import LogicalAxes, constrain

FAN_IN = 16  # pieces that one fused loop adds up


class Normalize(Protocol):
    """How rows are normalized: `rms_norm`, or another function that keeps its contract."""

    def __call__(
        self, x: jax.Array, weight: jax.Array, *, eps: float, offset: float, scale_float32: bool
    ) -> jax.Array: ...


def rms_norm(x: jax.Array, weight: jax.Array, *, eps: float, offset: float, scale_float32: bool) -> jax.Array:
    """x / rms(x) * (weight + offset), computed in float32, in x's dtype.

    `scale_float32` says where the one rounding to x's dtype happens: after the scale (Gemma, OLMo 2) or before it,
    which rounds twice (Llama and the rest). The two agree in float32.
    """
    wide = x.astype(jnp.float32)
    mean = _sum(jnp.square(wide), weight.ndim) / weight.size
    normed = wide * jax.lax.rsqrt(mean + eps)
    if scale_float32:
        return (normed * (weight.astype(jnp.float32) + offset)).astype(x.dtype)
    return normed.astype(x.dtype) * (weight + offset if offset else weight)


def _sum(x: jax.Array, axes: int) -> jax.Array:
    """The sum over the last `axes` axes, which are kept with size 1.

    On CPU the order of the additions is spelled out. A plain reduction has none: XLA:CPU takes another one for arrays
    below some thousand elements, and a token's result would depend on how many others share its step.
    """
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: _ordered(x, axes),
        default=lambda x: jnp.sum(x, axis=tuple(range(-axes, 0)), keepdims=True),
    )


def _ordered(x: jax.Array, axes: int) -> jax.Array:
    total = x
    for _ in range(axes):
        total = _ordered_sum(total)
    return jax.lax.optimization_barrier(total).reshape(*total.shape, *(1,) * axes)


def _ordered_sum(x: jax.Array) -> jax.Array:
    """(T, ..., n) -> (T, ...) by additions of equal pieces, up to `FAN_IN` at a time, pairwise among them."""
    if x.ndim == 2:  # what is left of (T, K', G', H) is one number per head: gathered from all devices
        x = constrain(x, "batch", None)
    while x.shape[-1] > 1:
        count = min(FAN_IN, x.shape[-1])
        width = -(-x.shape[-1] // count)
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count * width - x.shape[-1])])
        pieces = jax.lax.split(x, [width] * count, axis=x.ndim - 1)
        while len(pieces) > 1:
            pairs = [a + b for a, b in zip(pieces[::2], pieces[1::2], strict=False)]
            pieces = [*pairs, *pieces[2 * len(pairs) :]]
        x = pieces[0]
    return x[..., 0]


class RMSNorm(nnx.Module):
    """One norm; `shape` is (D,) or the heads' shape for whole QK norm. The weight starts as the identity."""

    def __init__(self, config: ModelConfig, shape: tuple[int, ...], axes: LogicalAxes, dtype: jnp.dtype) -> None:
        self.eps = config.norm_eps
        self.offset = config.norm_offset
        self.scale_float32 = config.norm_scale_float32
        self.weight = parameter(jnp.full(shape, 1.0 - config.norm_offset, dtype), axes)

    def __call__(self, x: jax.Array, normalize: Normalize = rms_norm) -> jax.Array:
        return normalize(x, self.weight.get_value(), eps=self.eps, offset=self.offset, scale_float32=self.scale_float32)
