"""Arcee (AFM): Llama whose MLP has no gate, and squares what it lets through."""

from __future__ import annotations

from jaxinfer.config import ModelConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import ACTIVATIONS, full_layers, read_common
from jaxinfer.models.rope_parameters import RopeRules, read_rope


def arcee(config: ConfigReader) -> ModelConfig:
    common = read_common(
        config,
        hidden_size=2560,
        intermediate_size=18432,
        max_position_embeddings=4096,
        activation="relu2",
        activations={**ACTIVATIONS, "relu2": "relu2"},
        rms_norm_eps=1e-5,
        bos_token_id=128000,
        eos_token_id=128001,
    )
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
        mlp_gated=False,
    )
