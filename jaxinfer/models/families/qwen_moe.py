"""Qwen 2 and Qwen 3 with experts."""

from __future__ import annotations

from jaxinfer.config import MlpConfig, ModelConfig, MoeConfig, RouterConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import layer_windows, read_layer_types, windowed_layers
from jaxinfer.models.families.experts import count_of, sparse_layers
from jaxinfer.models.families.qwen import read_qwen
from jaxinfer.models.rope_parameters import FULL, SLIDING, RopeRules, read_rope


def qwen2_moe(config: ConfigReader) -> ModelConfig:
    """Qwen 2 with experts, and an expert that all tokens share, behind a gate of its own."""
    common = read_qwen(
        config, hidden_size=2048, intermediate_size=5632, num_hidden_layers=24, num_attention_heads=16,
        num_key_value_heads=16,
    )  # fmt: skip
    qkv_bias = config.switch("qkv_bias", True)
    router = RouterConfig(config.count("num_experts_per_tok", 4), normalize=config.switch("norm_topk_prob", False))
    shared = MlpConfig(config.count("shared_expert_intermediate_size", 5632), activation=common.activation)
    expert = MlpConfig(config.count("moe_intermediate_size", 1408), activation=common.activation)
    moe = MoeConfig(config.count("num_experts", 60), router, expert, shared, shared_gate=True)
    use_sliding_window = config.switch("use_sliding_window", False)
    sliding_window = config.optional_count("sliding_window", 4096)
    first = config.number_of_layers("max_window_layers", 28)
    derived = [
        SLIDING if use_sliding_window and sliding_window is not None and layer % 2 == 0 and layer < first else FULL
        for layer in range(common.num_layers)
    ]
    windows = layer_windows(read_layer_types(config, derived), sliding_window, use_sliding_window)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    return build(
        config,
        common,
        windows=windows,
        ropes=[rope] * common.num_layers,
        qkv_bias=qkv_bias,
        feed_forwards=sparse_layers(config, common, moe),
    )


def qwen3_moe(config: ConfigReader) -> ModelConfig:
    """Qwen 3 with experts; a window is in all layers or in none."""
    common = read_qwen(
        config, hidden_size=2048, intermediate_size=6144, num_hidden_layers=24, num_attention_heads=32,
        num_key_value_heads=4,
    )  # fmt: skip
    attention_bias = config.switch("attention_bias", False)
    config.pass_over("max_window_layers")
    router = RouterConfig(config.count("num_experts_per_tok", 8), normalize=config.switch("norm_topk_prob", False))
    expert = MlpConfig(config.count("moe_intermediate_size", 768), activation=common.activation)
    moe = MoeConfig(count_of(config, ("num_experts", "num_local_experts"), 128), router, expert)
    sliding_window = config.optional_count("sliding_window", 4096)
    if not config.switch("use_sliding_window", False):
        sliding_window = None
    windows = windowed_layers(config, common.num_layers, sliding_window)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    return build(
        config,
        common,
        windows=windows,
        ropes=[rope] * common.num_layers,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        qk_norm="head",
        feed_forwards=sparse_layers(config, common, moe),
    )
