"""Projections, QK norm and rotation around an attention function that the caller supplies.

Shapes: T tokens, D model, N query heads, K' KV heads after repetition, G' = N / K', H head_dim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.config import ModelConfig
from jaxinfer.models.context import Attend, KvLayer, StepContext
from jaxinfer.models.layers.linear import Linear, projection
from jaxinfer.models.layers.norm import RMSNorm
from jaxinfer.models.parameters import parameter
from jaxinfer.models.shape import ModelShape
from jaxinfer.sharding import LogicalAxes, constrain


class Attention(nnx.Module):
    """One layer's attention.

    One product gives q, k and v: axis 1 of its weight is G' query heads, then k, then v. Where one of the three is
    stored as two factors, each has products of its own.
    """

    def __init__(
        self, config: ModelConfig, shape: ModelShape, layer: int, dtype: jnp.dtype, rngs: nnx.Rngs | None
    ) -> None:
        mixer, sizes, ranks = config.layers[layer].attention, shape.layers[layer], config.layers[layer].ranks
        assert mixer is not None, f"layer {layer} has no attention"
        self.mixer = mixer
        self.group = sizes.group
        model, heads, head = (config.hidden_size,), (sizes.kv_heads, sizes.group), (mixer.head_dim,)
        self.fused = (ranks.q, ranks.k, ranks.v) == (None, None, None)
        q_axes: LogicalAxes = ("kv_heads", "q_group", "head", "embed")
        if self.fused:
            self.qkv = Linear(
                (sizes.kv_heads, sizes.group + 2, *head), model, q_axes, dtype, bias=mixer.qkv_bias, rngs=rngs
            )
        else:
            kv, kv_axes = (sizes.kv_heads, *head), ("kv_heads", "head", "embed")
            bias = mixer.qkv_bias
            self.q = projection(heads + head, model, q_axes, dtype, rank=ranks.q, bias=bias, rngs=rngs)
            self.k = projection(kv, model, kv_axes, dtype, rank=ranks.k, bias=bias, rngs=rngs)
            self.v = projection(kv, model, kv_axes, dtype, rank=ranks.v, bias=bias, rngs=rngs)
        self.out = projection(
            model,
            heads + head,
            ("embed", "kv_heads", "q_group", "head"),
            dtype,
            rank=ranks.out,
            bias=mixer.out_bias,
            rngs=rngs,
        )
        self.sinks = parameter(jnp.zeros(heads, dtype), ("kv_heads", "q_group")) if mixer.sinks else None
        if mixer.qk_norm != "none":
            whole = mixer.qk_norm == "whole"  # one mean over all heads, else one per head with a shared weight
            q_norm_axes: LogicalAxes = ("kv_heads", "q_group", "head") if whole else ("head",)
            k_norm_axes: LogicalAxes = ("kv_heads", "head") if whole else ("head",)
            self.q_norm = RMSNorm(config, heads + head if whole else head, q_norm_axes, dtype)
            self.k_norm = RMSNorm(config, heads[:1] + head if whole else head, k_norm_axes, dtype)

    def __call__(
        self, x: jax.Array, context: StepContext, attend: Attend, kv_layer: KvLayer
    ) -> tuple[jax.Array, KvLayer]:
        """x (T, D) -> (T, D) and the layer's KV, which `attend` writes and reads."""
        q, k, v = self._project(x, context)
        norms, late = self.mixer.qk_norm != "none", self.mixer.qk_norm_after_rope
        if norms and not late:
            q, k = self.q_norm(q, context.normalize), self.k_norm(k, context.normalize)
        q = q.reshape(q.shape[0], -1, q.shape[-1])  # (T, N, H)
        if self.mixer.rope is not None:
            rotation = context.rotations[self.mixer.rope]
            q, k = rotation.of_queries(q), rotation.of_keys(k)
        if norms and late:
            q = self.q_norm(q.reshape(q.shape[0], -1, self.group, q.shape[-1]), context.normalize).reshape(q.shape)
            k = self.k_norm(k, context.normalize)
        out, kv_layer = attend(
            constrain(q, "batch", "q_heads", "head"),
            constrain(k, "batch", "kv_heads", "head"),
            constrain(v, "batch", "kv_heads", "head"),
            kv_layer,
            sliding_window=self.mixer.sliding_window,
            soft_cap=self.mixer.soft_cap,
            scale=self.mixer.scale,
            sinks=None if self.sinks is None else constrain(self.sinks.get_value().reshape(-1), "q_heads"),
        )
        out = constrain(out, "batch", "q_heads", "head")
        out = out.reshape(out.shape[0], -1, self.group, out.shape[-1])  # (T, K', G', H)
        return constrain(self.out(out, context.multiply), "batch", "embed"), kv_layer

    def _project(self, x: jax.Array, context: StepContext) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (T, K', G', H), keys and values (T, K', H)."""
        if self.fused:
            qkv = constrain(self.qkv(x, context.multiply), "batch", "kv_heads", "q_group", "head")  # (T, K', G' + 2, H)
            return qkv[:, :, : self.group], qkv[:, :, self.group], qkv[:, :, self.group + 1]
        return (
            constrain(self.q(x, context.multiply), "batch", "kv_heads", "q_group", "head"),
            constrain(self.k(x, context.multiply), "batch", "kv_heads", "head"),
            constrain(self.v(x, context.multiply), "batch", "kv_heads", "head"),
        )
