"""Apertus: queries and keys normalised head by head, and an MLP without a gate whose activation is learned (xIELU)."""

from __future__ import annotations

from jaxinfer.config import ModelConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import ACTIVATIONS, full_layers, read_common
from jaxinfer.models.rope_parameters import RopeRules, read_rope

_THETA = 12_000_000.0
_ROPE = RopeRules(
    theta=_THETA,
    default={
        "rope_type": "llama3",
        "rope_theta": _THETA,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
)


def apertus(config: ConfigReader) -> ModelConfig:
    common = read_common(
        config,
        vocab_size=131072,
        intermediate_size=14336,
        max_position_embeddings=65536,
        activation="xielu",
        activations={**ACTIVATIONS, "xielu": "xielu"},
        rms_norm_eps=1e-5,
        pad_token_id=3,
    )
    attention_bias = config.switch("attention_bias", False)
    config.only("mlp_bias", False)
    config.only("post_norm", False)
    config.only("qk_norm", True)
    windows = full_layers(config, common.num_layers)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, _ROPE)
    return build(
        config,
        common,
        windows=windows,
        ropes=[rope] * common.num_layers,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        mlp_gated=False,
        qk_norm="head",
    )
