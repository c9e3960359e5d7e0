"""Hunyuan (dense, version 1): Llama whose queries and keys are normalised head by head once they are rotated."""

from __future__ import annotations

from jaxinfer.config import ModelConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import full_layers, read_common
from jaxinfer.models.rope_parameters import RopeRules, read_rope


def hunyuan_dense(config: ConfigReader) -> ModelConfig:
    common = read_common(config, vocab_size=290943, rms_norm_eps=1e-5, pad_token_id=0)
    attention_bias = config.switch("attention_bias", False)
    config.only("mlp_bias", False)
    for key, meant in (("use_qk_norm", True), ("use_cla", False), ("norm_type", "rms"), ("num_experts", 1)):
        config.only(key, meant)
    config.only("attention_head_dim", common.head_dim)
    config.pass_over("cla_share_factor", *_TASKS)
    windows = full_layers(config, common.num_layers)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules(alpha=True))
    return build(
        config,
        common,
        windows=windows,
        ropes=[rope] * common.num_layers,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        qk_norm="head",
        qk_norm_after_rope=True,
    )


# Heads for other tasks and tokens of tools, which transformers' class has no use for.
_TASKS = (
    "add_classification_head", "class_num", "dense_list", "pool_type", "eod_token_id", "im_start_id", "im_end_id",
    "im_newline_id", "text_start_id", "text_end_id", "image_token_id", "video_start_id", "video_end_id",
    "mask_init_id", "org_vocab_size",
)  # fmt: skip
