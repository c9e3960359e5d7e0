"""Gemma 2 and 3: four norms a layer, whose weights are stored less 1; every n-th layer sees everything."""

from __future__ import annotations

from collections.abc import Sequence

from jaxinfer.config import ModelConfig, QkNorm, RopeConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import Common, layer_windows, read_common, read_layer_types
from jaxinfer.models.rope_parameters import FULL, SLIDING, RopeRules, read_rope, read_ropes_by_layer_type


def gemma2(config: ConfigReader) -> ModelConfig:
    """Logits and attention scores are capped."""
    common = _read_common(config, vocab_size=256000, max_position_embeddings=8192)
    config.only("sliding_window_pattern", 2)
    layer_types = _layer_types(config, common.num_layers, period=2)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    return _build(
        config,
        common,
        layer_types,
        ropes=[rope] * common.num_layers,
        attention_softcap=config.optional_positive("attn_logit_softcapping", 50.0),
        final_softcap=config.optional_positive("final_logit_softcapping", 30.0),
    )


def gemma3(config: ConfigReader) -> ModelConfig:
    """Queries and keys are normalised, scores are not capped; layers with a window have a rotary embedding of their
    own."""
    common = _read_common(config, vocab_size=262208, max_position_embeddings=131072)
    config.only("attn_logit_softcapping")  # transformers reads it and then leaves it out
    layer_types = _layer_types(config, common.num_layers, period=6)
    ropes = read_ropes_by_layer_type(
        config, common.head_dim, common.max_position_embeddings, RopeRules(theta=1_000_000.0), local_theta=10_000.0
    )
    return _build(
        config,
        common,
        layer_types,
        ropes=[ropes[layer_type] for layer_type in layer_types],
        final_softcap=config.optional_positive("final_logit_softcapping", None),
        qk_norm="head",
        linear_rope_counted=True,
    )


def _read_common(config: ConfigReader, vocab_size: int, max_position_embeddings: int) -> Common:
    config.pass_over("hidden_act")  # stands beside hidden_activation in the first releases' files, and is not read
    return read_common(
        config,
        vocab_size=vocab_size,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        max_position_embeddings=max_position_embeddings,
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )


def _layer_types(config: ConfigReader, num_layers: int, period: int) -> list[str]:
    """All but every n-th layer have a window; n is `sliding_window_pattern`."""
    period = config.count("sliding_window_pattern", period)
    return read_layer_types(config, [SLIDING if (layer + 1) % period else FULL for layer in range(num_layers)])


def _build(
    config: ConfigReader,
    common: Common,
    layer_types: Sequence[str],
    *,
    ropes: Sequence[RopeConfig],
    final_softcap: float | None,
    attention_softcap: float | None = None,
    qk_norm: QkNorm = "none",
    linear_rope_counted: bool = False,
) -> ModelConfig:
    """`build` with what both generations have."""
    attention_bias = config.switch("attention_bias", False)
    config.only("mlp_bias", False)
    return build(
        config,
        common,
        windows=layer_windows(layer_types, config.optional_count("sliding_window", 4096)),
        ropes=ropes,
        query_scale=config.positive("query_pre_attn_scalar", 256) ** -0.5,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        qk_norm=qk_norm,
        norm_offset=1.0,
        norm_scale_float32=True,
        post_norm=True,
        attention_softcap=attention_softcap,
        final_softcap=final_softcap,
        embedding_multiplier=common.hidden_size**0.5,
        embedding_multiplier_rounded=True,
        linear_rope_counted=linear_rope_counted,
    )
