"""Granite 3: Llama with four multipliers, dense or with experts; and with windows and attention sinks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxinfer.config import ConfigError, FeedForward, MlpConfig, ModelConfig, MoeConfig, RopeConfig, RouterConfig
from jaxinfer.models.config_reader import ConfigReader, is_number
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import Common, full_layers, layer_windows, read_common, read_layer_types
from jaxinfer.models.rope_parameters import FULL, SLIDING, RopeRules, read_rope


def granite(config: ConfigReader) -> ModelConfig:
    common = read_common(config)
    mlp = MlpConfig(common.intermediate_size, common.activation, bias=config.switch("mlp_bias", False))
    return _granite(config, common, mlp)


def granite_moe(config: ConfigReader) -> ModelConfig:
    """Every layer has experts: the best products of the router, and softmax over them alone."""
    common = read_common(config)
    router = RouterConfig(config.count("num_experts_per_tok", 2), scored_first=False, normalize=False)
    expert = MlpConfig(common.intermediate_size, common.activation)
    width = config.raw("shared_intermediate_size", 0)
    if type(width) is not int or width < 0:
        raise ConfigError(f"shared_intermediate_size is {width!r:.200}; it must be a width, or 0 for no shared expert")
    shared = MlpConfig(width, common.activation) if width else None
    return _granite(config, common, MoeConfig(config.count("num_local_experts", 8), router, expert, shared))


def granite_swa(config: ConfigReader) -> ModelConfig:
    """All but every fourth layer have a window; layers may have a theta of their own, or with 0 no positions."""
    common = read_common(
        config,
        vocab_size=100352,
        hidden_size=2560,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=20,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=100257,
        eos_token_id=100257,
    )
    mlp = MlpConfig(common.intermediate_size, common.activation, bias=config.switch("mlp_bias", False))
    derived = [SLIDING if layer % 4 else FULL for layer in range(common.num_layers)]
    windows = layer_windows(read_layer_types(config, derived), config.optional_count("sliding_window", 128))
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    thetas = config.raw("layer_rope_theta", [rope.theta] * common.num_layers)
    if (
        not isinstance(thetas, list)
        or len(thetas) != common.num_layers
        or not all(is_number(theta) and theta >= 0 for theta in thetas)
    ):
        raise ConfigError(
            f"layer_rope_theta is {thetas!r:.200}; it must list a theta, or 0 for no positions, for each of "
            f"{common.num_layers} layers"
        )
    ropes = [dataclasses.replace(rope, theta=float(theta)) if theta else None for theta in thetas]
    return _granite(config, common, mlp, windows, ropes, sinks=True)


def _granite(
    config: ConfigReader,
    common: Common,
    feed_forward: FeedForward,
    windows: Sequence[int | None] | None = None,
    ropes: Sequence[RopeConfig | None] | None = None,
    sinks: bool = False,
) -> ModelConfig:
    """windows, ropes: of each layer; None: no windows, and one rotary embedding for all."""
    attention_bias = config.switch("attention_bias", False)
    query_scale = config.positive("attention_multiplier", 1.0)
    embedding_multiplier = config.positive("embedding_multiplier", 1.0)
    residual_multiplier = config.positive("residual_multiplier", 1.0)
    logits_divisor = config.positive("logits_scaling", 1.0)
    if windows is None:
        windows = full_layers(config, common.num_layers)
    if ropes is None:
        rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
        ropes = [rope] * common.num_layers
    return build(
        config,
        common,
        windows=windows,
        ropes=ropes,
        sinks=sinks,
        query_scale=query_scale,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        feed_forwards=[feed_forward] * common.num_layers,
        embedding_multiplier=embedding_multiplier,
        residual_multiplier=residual_multiplier,
        logits_divisor=logits_divisor,
    )
