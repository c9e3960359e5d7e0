"""gpt-oss: experts with biases and limits, a sink beside each head's keys, windows in every other layer."""

from __future__ import annotations

from jaxinfer.config import MlpConfig, ModelConfig, MoeConfig, RouterConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import layer_windows, read_common, read_layer_types
from jaxinfer.models.families.experts import count_of
from jaxinfer.models.rope_parameters import FULL, SLIDING, RopeRules, read_rope

# Where a config.json has none.
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 150_000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def gpt_oss(config: ConfigReader) -> ModelConfig:
    common = read_common(
        config,
        vocab_size=201088,
        hidden_size=2880,
        intermediate_size=2880,
        num_hidden_layers=36,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=None,
    )
    config.only("hidden_act", "silu")
    config.only("swiglu_alpha", 1.702)
    config.only("initial_context_length", 4096)
    config.pass_over("max_window_layers")
    attention_bias = config.switch("attention_bias", True)
    active = count_of(config, ("num_experts_per_tok", "experts_per_token"), 4)
    router = RouterConfig(active, scored_first=False, normalize=False, bias=True)
    limit = config.positive("swiglu_limit", 7.0)
    expert = MlpConfig(common.intermediate_size, "swiglu_oai", bias=True, limit=limit)
    moe = MoeConfig(count_of(config, ("num_local_experts", "num_experts"), 128), router, expert)
    derived = [FULL if layer % 2 else SLIDING for layer in range(common.num_layers)]
    windows = layer_windows(read_layer_types(config, derived), config.optional_count("sliding_window", 128))
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules(theta=150000.0, default=_YARN))
    return build(
        config,
        common,
        windows=windows,
        ropes=[rope] * common.num_layers,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        sinks=True,
        feed_forwards=[moe] * common.num_layers,
    )
