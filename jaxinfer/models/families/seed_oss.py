"""Seed-OSS: Llama with biases on query, key and value, and a switch of its own for attention's output."""

from __future__ import annotations

from jaxinfer.config import ModelConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import full_layers, read_common
from jaxinfer.models.rope_parameters import RopeRules, read_rope


def seed_oss(config: ConfigReader) -> ModelConfig:
    common = read_common(
        config,
        vocab_size=155136,
        intermediate_size=27648,
        num_hidden_layers=64,
        num_attention_heads=80,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=524288,
        bos_token_id=0,
        pad_token_id=1,
    )
    qkv_bias = config.switch("attention_bias", True)
    out_bias = config.switch("attention_out_bias", False)
    mlp_bias = config.switch("mlp_bias", False)
    windows = full_layers(config, common.num_layers)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    return build(
        config,
        common,
        windows=windows,
        ropes=[rope] * common.num_layers,
        qkv_bias=qkv_bias,
        attention_out_bias=out_bias,
        mlp_bias=mlp_bias,
    )
