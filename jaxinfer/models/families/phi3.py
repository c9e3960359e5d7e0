"""Phi 3, 3.5 and 4-mini: Llama without biases, stretched by longrope, which may rotate a part of each head only."""

from __future__ import annotations

from jaxinfer.config import ModelConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import read_common, windowed_layers
from jaxinfer.models.rope_parameters import RopeRules, read_rope

_ROPE = RopeRules(
    types=("default", "longrope"),
    aliases={"su": "longrope", "yarn": "longrope"},
    partial=True,
    trained_length=4096,
)


def phi3(config: ConfigReader) -> ModelConfig:
    common = read_common(
        config,
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        eos_token_id=32000,
        pad_token_id=32000,
    )
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        config.only(key, False)
    for key in ("full_attn_mod", "interpolate_factor"):
        config.only(key, 1)
    windows = windowed_layers(config, common.num_layers, config.optional_count("sliding_window", None))
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, _ROPE)
    return build(config, common, windows=windows, ropes=[rope] * common.num_layers)
