"""SmolLM3: Llama in which some layers have no rotary positions; those may have a window."""

from __future__ import annotations

from jaxinfer.config import ConfigError, ModelConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import layer_windows, read_common, read_layer_types
from jaxinfer.models.rope_parameters import FULL, SLIDING, RopeRules, read_rope


def smollm3(config: ConfigReader) -> ModelConfig:
    config.pass_over("max_window_layers")
    common = read_common(
        config,
        vocab_size=128256,
        hidden_size=2048,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        bos_token_id=128000,
        eos_token_id=128001,
        pad_token_id=128004,
    )
    attention_bias = config.switch("attention_bias", False)
    mlp_bias = config.switch("mlp_bias", False)
    use_sliding_window = config.switch("use_sliding_window", False)
    sliding_window = config.optional_count("sliding_window", None)
    rotating = _rotating(config, common.num_layers)
    windowed = use_sliding_window and sliding_window is not None
    layer_types = read_layer_types(config, [SLIDING if windowed and not rotates else FULL for rotates in rotating])
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules(theta=2_000_000.0))
    return build(
        config,
        common,
        windows=layer_windows(layer_types, sliding_window, use_sliding_window),
        ropes=[rope if rotates else None for rotates in rotating],
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        mlp_bias=mlp_bias,
    )


def _rotating(config: ConfigReader, num_layers: int) -> list[bool]:
    """Which layers have rotary positions: those with a 1 in `no_rope_layers`, or all but every n-th."""
    interval = config.count("no_rope_layer_interval", 4)
    listed = config.raw("no_rope_layers")
    if listed is None:
        return [(layer + 1) % interval != 0 for layer in range(num_layers)]
    if not isinstance(listed, list) or len(listed) < num_layers or not all(entry in (0, 1) for entry in listed):
        raise ConfigError(f"no_rope_layers is {listed!r}; it must list 0 or 1 for each of {num_layers} layers")
    return [bool(entry) for entry in listed[:num_layers]]
