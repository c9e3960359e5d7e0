"""EXAONE 4: norms behind attention and MLP only, and of each head.

Where some layers have a window, the others have no rotary positions.
"""

from __future__ import annotations

from jaxinfer.config import ConfigError, ModelConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import layer_windows, read_common, read_layer_types
from jaxinfer.models.rope_parameters import FULL, SLIDING, RopeRules, read_rope


def exaone4(config: ConfigReader) -> ModelConfig:
    common = read_common(
        config,
        vocab_size=102400,
        intermediate_size=16384,
        num_key_value_heads=32,
        rms_norm_eps=1e-5,
        bos_token_id=0,
    )
    config.only("attention_bias", False)
    config.only("mlp_bias", False)
    sliding_window = config.optional_count("sliding_window", 4096)
    layer_types = read_layer_types(config, _derived(config, common.num_layers, sliding_window))
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    return build(
        config,
        common,
        windows=layer_windows(layer_types, sliding_window),
        ropes=[rope if sliding_window is None or layer_type == SLIDING else None for layer_type in layer_types],
        qk_norm="head",
        pre_norm=False,
        post_norm=True,
    )


def _derived(config: ConfigReader, num_layers: int, sliding_window: int | None) -> list[str]:
    """All but every n-th layer have a window; n is `sliding_window_pattern`, a string of which needs `layer_types`."""
    pattern = config.raw("sliding_window_pattern", 4)
    if sliding_window is None:
        return [FULL] * num_layers
    if isinstance(pattern, str) and config.raw("layer_types") is not None:
        return [FULL] * num_layers  # what the list says counts
    if not isinstance(pattern, int) or isinstance(pattern, bool) or pattern < 1:
        raise ConfigError(
            f"sliding_window_pattern is {pattern!r:.80}; without layer_types it must be a positive integer"
        )
    return [SLIDING if (layer + 1) % pattern else FULL for layer in range(num_layers)]
