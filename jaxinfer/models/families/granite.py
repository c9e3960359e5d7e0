"""Granite 3: Llama with four multipliers."""

from __future__ import annotations

from jaxinfer.config import ModelConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import full_layers, read_common
from jaxinfer.models.rope_parameters import RopeRules, read_rope


def granite(config: ConfigReader) -> ModelConfig:
    common = read_common(config)
    attention_bias = config.switch("attention_bias", False)
    mlp_bias = config.switch("mlp_bias", False)
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
        mlp_bias=mlp_bias,
        embedding_multiplier=embedding_multiplier,
        residual_multiplier=residual_multiplier,
        logits_divisor=logits_divisor,
    )
