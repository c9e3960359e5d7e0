"""The last step of every family: plain values to a `ModelConfig`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxinfer.config import AttentionConfig, FeedForward, LayerConfig, MlpConfig, ModelConfig, QkNorm, RopeConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.common import Common

# What `Common` says of layers, not of the model around them.
_OF_LAYERS = ("intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "activation")


def build(
    config: ConfigReader,
    common: Common,
    *,
    windows: Sequence[int | None],
    ropes: Sequence[RopeConfig | None],
    query_scale: float | None = None,
    qkv_bias: bool = False,
    attention_out_bias: bool = False,
    mlp_bias: bool = False,
    mlp_gated: bool = True,
    qk_norm: QkNorm = "none",
    qk_norm_after_rope: bool = False,
    sinks: bool = False,
    norm_offset: float = 0.0,
    norm_scale_float32: bool = False,
    pre_norm: bool = True,
    post_norm: bool = False,
    attention_softcap: float | None = None,
    final_softcap: float | None = None,
    embedding_multiplier: float = 1.0,
    embedding_multiplier_rounded: bool = False,
    residual_multiplier: float = 1.0,
    logits_divisor: float = 1.0,
    linear_rope_counted: bool = False,
    feed_forwards: Sequence[FeedForward] | None = None,
) -> ModelConfig:
    """The configuration of a model, of what its family has read.

    Args:
        config: whose architecture and notes become the model's.
        common: what `read_common` has read.
        windows: of each layer, tokens that a query sees, itself included; None for all.
        ropes: of each layer, its rotary embedding; None for a layer without positions.
        query_scale: multiplies the product of query and key; None: the usual head_dim ** -0.5.
        feed_forwards: of each layer, what works on each token alone; None: the MLP that `common` describes.

    The other arguments are fields of `ModelConfig`, `AttentionConfig` and `MlpConfig`.

    Raises ConfigError for values that contradict each other.
    """
    distinct = tuple(dict.fromkeys(rope for rope in ropes if rope is not None))
    mixer = AttentionConfig(
        common.num_heads,
        common.num_kv_heads,
        common.head_dim,
        scale=common.head_dim**-0.5 if query_scale is None else query_scale,
        qk_norm=qk_norm,
        qk_norm_after_rope=qk_norm_after_rope,
        sinks=sinks,
        soft_cap=attention_softcap,
        qkv_bias=qkv_bias,
        out_bias=attention_out_bias,
    )
    mlp = MlpConfig(common.intermediate_size, activation=common.activation, bias=mlp_bias, gated=mlp_gated)
    parts = [mlp] * common.num_layers if feed_forwards is None else feed_forwards
    places = [None if rope is None else distinct.index(rope) for rope in ropes]
    mixers = (dataclasses.replace(mixer, sliding_window=w, rope=r) for w, r in zip(windows, places, strict=True))
    if any(rope.kind == "dynamic" for rope in distinct):
        config.notes.append("dynamic RoPE is served inside the trained length only, where it equals the default")
    return ModelConfig(
        architecture=config.architecture,
        layers=tuple(LayerConfig(mixer, part) for mixer, part in zip(mixers, parts, strict=True)),
        ropes=distinct,
        norm_offset=norm_offset,
        norm_scale_float32=norm_scale_float32,
        pre_norm=pre_norm,
        post_norm=post_norm,
        final_softcap=final_softcap,
        embedding_multiplier=embedding_multiplier,
        embedding_multiplier_rounded=embedding_multiplier_rounded,
        residual_multiplier=residual_multiplier,
        logits_divisor=logits_divisor,
        linear_rope_counted=linear_rope_counted,
        notes=tuple(config.notes),
        **{name: value for name, value in dataclasses.asdict(common).items() if name not in _OF_LAYERS},
    )
