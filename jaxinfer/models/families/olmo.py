"""OLMo 2 and 3: norms behind attention and MLP only, and over all queries and all keys of a token.

OLMoE: norms in front, and experts.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxinfer.config import MlpConfig, ModelConfig, MoeConfig, RopeConfig, RouterConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import Common, full_layers, layer_windows, read_common, read_layer_types
from jaxinfer.models.families.experts import count_of
from jaxinfer.models.rope_parameters import FULL, SLIDING, RopeRules, read_rope, read_ropes_by_layer_type

_THETA = 500_000.0  # of OLMo 3


def olmo2(config: ConfigReader) -> ModelConfig:
    common = _read_common(config)
    windows = full_layers(config, common.num_layers)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    return _build(config, common, windows, [rope] * common.num_layers)


def olmo3(config: ConfigReader) -> ModelConfig:
    """All but every fourth layer have a window; what stretches the rotary embedding is for the others."""
    common = _read_common(config)
    derived = [SLIDING if (layer + 1) % 4 else FULL for layer in range(common.num_layers)]
    layer_types = read_layer_types(config, derived)
    windows = layer_windows(layer_types, config.optional_count("sliding_window", 4096))
    theta = config.positive("rope_theta", _THETA)
    if theta != _THETA and config.raw("rope_parameters") is None:
        config.notes.append(
            f"config.json: rope_theta = {theta!r} counts for all layers; transformers 5.24 gives {_THETA!r} to those "
            "with a window"
        )
    ropes = read_ropes_by_layer_type(
        config,
        common.head_dim,
        common.max_position_embeddings,
        RopeRules(theta=_THETA),
        local_theta=_THETA,
        local_key="rope_theta",
    )
    return _build(config, common, windows, [ropes[layer_type] for layer_type in layer_types])


def olmoe(config: ConfigReader) -> ModelConfig:
    common = read_common(
        config,
        vocab_size=50304,
        hidden_size=2048,
        intermediate_size=2048,
        num_hidden_layers=16,
        num_attention_heads=16,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=50279,
        pad_token_id=1,
    )
    attention_bias = config.switch("attention_bias", False)
    config.only("clip_qkv")
    router = RouterConfig(config.count("num_experts_per_tok", 8), normalize=config.switch("norm_topk_prob", False))
    expert = MlpConfig(common.intermediate_size, activation=common.activation)
    moe = MoeConfig(count_of(config, ("num_experts", "num_local_experts"), 64), router, expert)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    return build(
        config,
        common,
        windows=full_layers(config, common.num_layers),
        ropes=[rope] * common.num_layers,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        qk_norm="whole",
        feed_forwards=[moe] * common.num_layers,
    )


def _read_common(config: ConfigReader) -> Common:
    return read_common(
        config, vocab_size=50304, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=50279, pad_token_id=1
    )


def _build(
    config: ConfigReader, common: Common, windows: Sequence[int | None], ropes: Sequence[RopeConfig]
) -> ModelConfig:
    """`build` with what both generations have."""
    attention_bias = config.switch("attention_bias", False)
    config.only("mlp_bias", False)
    return build(
        config,
        common,
        windows=windows,
        ropes=ropes,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        qk_norm="whole",
        norm_scale_float32=True,
        pre_norm=False,
        post_norm=True,
    )
