"""GLM 4.5 to 4.7: experts behind a sigmoid router whose choice is corrected, behind a few dense layers."""

from __future__ import annotations

from jaxinfer.config import ConfigError, FeedForward, MlpConfig, ModelConfig, MoeConfig, RouterConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import Common, full_layers, read_common
from jaxinfer.models.families.experts import count_of
from jaxinfer.models.rope_parameters import RopeRules, read_rope

_ROPE = RopeRules(partial=True, partial_default=0.5)


def glm4_moe(config: ConfigReader) -> ModelConfig:
    common = read_common(
        config,
        vocab_size=151552,
        intermediate_size=10944,
        num_hidden_layers=46,
        num_attention_heads=96,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=None,
    )
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, _ROPE)
    return build(
        config,
        common,
        windows=full_layers(config, common.num_layers),
        ropes=[rope] * common.num_layers,
        qkv_bias=config.switch("attention_bias", False),
        qk_norm="head" if config.switch("use_qk_norm", False) else "none",
        feed_forwards=_feed_forwards(config, common),
    )


def _feed_forwards(config: ConfigReader, common: Common) -> list[FeedForward]:
    # Layers that predict further tokens; nothing uses them yet, and their tensors are passed over by name.
    config.pass_over("num_nextn_predict_layers", "num_mtp_layers")
    width = config.count("moe_intermediate_size", 1408)
    router = RouterConfig(
        config.count("num_experts_per_tok", 8),
        scoring="sigmoid",
        normalize=config.switch("norm_topk_prob", True),
        correction=True,
        groups=config.count("n_group", 1),
        groups_kept=config.count("topk_group", 1),
        scale=config.positive("routed_scaling_factor", 1.0),
    )
    shared = MlpConfig(width * config.count("n_shared_experts", 1), common.activation)
    experts = count_of(config, ("n_routed_experts", "num_local_experts", "num_experts"), 128)
    moe = MoeConfig(experts, router, MlpConfig(width, common.activation), shared)
    dense = config.raw("first_k_dense_replace", 1)
    if type(dense) is not int or not 0 <= dense <= common.num_layers:
        raise ConfigError(
            f"first_k_dense_replace is {dense!r:.200}; it must be a number of layers, 0 to {common.num_layers}"
        )
    mlp = MlpConfig(common.intermediate_size, common.activation)
    return [mlp] * dense + [moe] * (common.num_layers - dense)
