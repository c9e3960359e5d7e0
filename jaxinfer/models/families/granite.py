"""Granite 3: Llama with four multipliers, dense or with experts."""

from __future__ import annotations

from jaxinfer.config import ConfigError, FeedForward, MlpConfig, ModelConfig, MoeConfig, RouterConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import Common, full_layers, read_common
from jaxinfer.models.rope_parameters import RopeRules, read_rope


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


def _granite(config: ConfigReader, common: Common, feed_forward: FeedForward) -> ModelConfig:
    attention_bias = config.switch("attention_bias", False)
    query_scale = config.positive("attention_multiplier", 1.0)
    embedding_multiplier = config.positive("embedding_multiplier", 1.0)
    residual_multiplier = config.positive("residual_multiplier", 1.0)
    logits_divisor = config.positive("logits_scaling", 1.0)
    windows = full_layers(config, common.num_layers)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    return build(
        config,
        common,
        windows=windows,
        ropes=[rope] * common.num_layers,
        query_scale=query_scale,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        feed_forwards=[feed_forward] * common.num_layers,
        embedding_multiplier=embedding_multiplier,
        residual_multiplier=residual_multiplier,
        logits_divisor=logits_divisor,
    )
