"""Llama 1 to 3, and the many models that call themselves one."""

from __future__ import annotations

from jaxinfer.config import ModelConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import full_layers, read_common
from jaxinfer.models.rope_parameters import RopeRules, read_rope


def llama(config: ConfigReader) -> ModelConfig:
    common = read_common(config)
    attention_bias = config.switch("attention_bias", False)
    mlp_bias = config.switch("mlp_bias", False)
    windows = full_layers(config, common.num_layers)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    return build(
        config,
        common,
        windows=windows,
        ropes=[rope] * common.num_layers,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        mlp_bias=mlp_bias,
    )
