"""Mistral: Llama without biases, whose layers may all have the same window. Ministral 3 scales its queries, too;
Mixtral has experts."""

from __future__ import annotations

from jaxinfer.config import MlpConfig, ModelConfig, MoeConfig, RouterConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import Common, read_common, windowed_layers
from jaxinfer.models.families.experts import count_of
from jaxinfer.models.rope_parameters import RopeRules, read_rope

# Of Ministral 3, where a config.json has none.
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def mistral(config: ConfigReader) -> ModelConfig:
    common = read_common(config, intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072)
    return _build(config, common, RopeRules(), sliding_window=4096)


def ministral3(config: ConfigReader) -> ModelConfig:
    """yarn, with queries that grow with the position."""
    common = read_common(
        config,
        vocab_size=131072,
        intermediate_size=14336,
        num_hidden_layers=34,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=262144,
        rms_norm_eps=1e-5,
        pad_token_id=11,
    )
    rules = RopeRules(theta=1_000_000.0, types=("yarn",), scales_queries=True, default=_YARN)
    return _build(config, common, rules, sliding_window=None)


def _build(config: ConfigReader, common: Common, rules: RopeRules, *, sliding_window: int | None) -> ModelConfig:
    """sliding_window: where config.json has none, tokens."""
    config.only("attention_bias", False)
    config.only("mlp_bias", False)
    windows = windowed_layers(config, common.num_layers, config.optional_count("sliding_window", sliding_window))
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, rules)
    return build(config, common, windows=windows, ropes=[rope] * common.num_layers)


def mixtral(config: ConfigReader) -> ModelConfig:
    """Every layer has experts: softmax over all, then the best, whose weights sum to 1."""
    common = read_common(
        config,
        intermediate_size=14336,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
    )
    config.only("attention_bias", False)
    config.pass_over("router_jitter_noise")  # of training
    router = RouterConfig(config.count("num_experts_per_tok", 2))
    expert = MlpConfig(common.intermediate_size, activation=common.activation)
    moe = MoeConfig(count_of(config, ("num_local_experts", "num_experts"), 8), router, expert)
    windows = windowed_layers(config, common.num_layers, config.optional_count("sliding_window", None))
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules(theta=1_000_000.0))
    layers = common.num_layers
    return build(config, common, windows=windows, ropes=[rope] * layers, feed_forwards=[moe] * layers)
