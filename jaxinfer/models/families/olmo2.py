"""OLMo 2: norms behind attention and MLP only, and over all queries and all keys of a token. OLMoE: norms in front, and
experts."""

from __future__ import annotations

from jaxinfer.config import MlpConfig, ModelConfig, MoeConfig, RouterConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import full_layers, read_common
from jaxinfer.models.families.experts import count_of
from jaxinfer.models.rope_parameters import RopeRules, read_rope


def olmo2(config: ConfigReader) -> ModelConfig:
    common = read_common(
        config, vocab_size=50304, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=50279, pad_token_id=1
    )
    attention_bias = config.switch("attention_bias", False)
    config.only("mlp_bias", False)
    windows = full_layers(config, common.num_layers)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    return build(
        config,
        common,
        windows=windows,
        ropes=[rope] * common.num_layers,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        qk_norm="whole",
        norm_scale_float32=True,
        pre_norm=False,
        post_norm=True,
    )


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
