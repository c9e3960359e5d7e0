"""Mistral: Llama without biases, whose layers may all have the same window."""

from __future__ import annotations

from jaxinfer.config import ModelConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import read_common, windowed_layers
from jaxinfer.models.rope_parameters import RopeRules, read_rope


def mistral(config: ConfigReader) -> ModelConfig:
    common = read_common(config, intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072)
    config.only("attention_bias", False)
    config.only("mlp_bias", False)
    windows = windowed_layers(config, common.num_layers, config.optional_count("sliding_window", 4096))
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    return build(config, common, windows=windows, ropes=[rope] * common.num_layers)
