"""Qwen 2 (with 2.5) and Qwen 3: layers from `max_window_layers` on may have a window. Qwen 2.5 VL and 3 VL.

The text models of the last two have mrope: three positions for each token, of which some pairs of a head take the
first, some the second, some the third. In a text all three are the token's place, so that it is plain RoPE.
"""

from __future__ import annotations

from typing import Any

from jaxinfer.config import ModelConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import Common, full_layers, layer_windows, read_common, read_layer_types
from jaxinfer.models.rope_parameters import FULL, SLIDING, RopeRules, read_rope

# How the pairs of a head are dealt out to the three positions.
_MROPE = ("mrope_section", "mrope_interleaved")


def qwen2(config: ConfigReader) -> ModelConfig:
    """Biases on query, key and value only, whatever the file says."""
    common = read_qwen(config, intermediate_size=22016, num_key_value_heads=32)
    config.only("attention_bias", True)
    config.only("mlp_bias", False)
    windows = _windows(config, common.num_layers)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    return build(
        config,
        common,
        windows=windows,
        ropes=[rope] * common.num_layers,
        qkv_bias=True,
    )


def qwen3(config: ConfigReader) -> ModelConfig:
    """Queries and keys are normalised head by head."""
    common = read_qwen(config, intermediate_size=22016, num_key_value_heads=32, head_dim=128)
    attention_bias = config.switch("attention_bias", False)
    config.only("mlp_bias", False)
    windows = _windows(config, common.num_layers)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    return build(
        config,
        common,
        windows=windows,
        ropes=[rope] * common.num_layers,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        qk_norm="head",
    )


def qwen2_5_vl(config: ConfigReader) -> ModelConfig:
    """Qwen 2.5, of another size where the file is silent."""
    common = read_common(
        config,
        vocab_size=152064,
        hidden_size=8192,
        intermediate_size=29568,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        bos_token_id=151643,
        eos_token_id=151645,
    )
    config.only("attention_bias", True)
    config.only("mlp_bias", False)
    windows = _windows(config, common.num_layers, first=80)
    rules = RopeRules(theta=1_000_000.0, aliases={"su": "longrope", "mrope": "default"}, passed_over=_MROPE)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, rules)
    return build(config, common, windows=windows, ropes=[rope] * common.num_layers, qkv_bias=True)


def qwen3_vl(config: ConfigReader) -> ModelConfig:
    """Qwen 3 without windows."""
    sizes = {"intermediate_size": 22016, "num_key_value_heads": 32, "head_dim": 128}
    common = read_qwen(config, max_position_embeddings=128000, **sizes)
    attention_bias = config.switch("attention_bias", False)
    config.only("mlp_bias", False)
    windows = full_layers(config, common.num_layers)
    rope = read_rope(
        config, common.head_dim, common.max_position_embeddings, RopeRules(theta=500_000.0, passed_over=_MROPE)
    )
    return build(
        config,
        common,
        windows=windows,
        ropes=[rope] * common.num_layers,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        qk_norm="head",
    )


def read_qwen(config: ConfigReader, **sizes: Any) -> Common:
    """What Qwen's text models have alike where a file is silent. sizes: of the family, as `read_common` takes them."""
    alike = {"vocab_size": 151936, "max_position_embeddings": 32768, "bos_token_id": None, "eos_token_id": None}
    return read_common(config, **{**alike, **sizes})


def _windows(config: ConfigReader, num_layers: int, first: int = 28) -> list[int | None]:
    use_sliding_window = config.switch("use_sliding_window", False)
    sliding_window = config.optional_count("sliding_window", 4096)
    first = config.number_of_layers("max_window_layers", first)
    windowed = use_sliding_window and sliding_window is not None
    derived = [SLIDING if windowed and layer >= first else FULL for layer in range(num_layers)]
    return layer_windows(read_layer_types(config, derived), sliding_window, use_sliding_window)
