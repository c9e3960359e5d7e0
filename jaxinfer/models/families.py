"""The families of models as data: how each Hugging Face architecture names, defaults and uses its config keys.

`registry.model_config` reads these tables. A family is the Llama decoder plus what its entry says; a new one that fits
into `ModelConfig` is a new entry here and nothing else. Defaults are those of transformers 5 (`configuration_*.py`),
which apply where config.json leaves a key out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# How `layer_types` follow from the other keys when config.json does not list them:
#   full     every layer sees everything; a window cannot be configured
#   window   every layer has `sliding_window` unless that is null
#   upper    layers from `max_window_layers` on have it, if `use_sliding_window`
#   period   all but every n-th layer have it; n is `sliding_window_pattern`
#   no_rope  layers without rotary positions have it, if `use_sliding_window`
LayerRule = Literal["full", "window", "upper", "period", "no_rope"]


@dataclass(frozen=True)
class Family:
    """One architecture. `defaults`: every key that is read, with its value where config.json has none."""

    architecture: str
    model_type: str
    defaults: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)  # ModelConfig fields that never vary in this family
    copies: Mapping[str, str] = field(default_factory=dict)  # ModelConfig field <- key
    powers: Mapping[str, tuple[str, float]] = field(default_factory=dict)  # ModelConfig field <- key ** exponent
    activation_key: str = "hidden_act"
    layer_rule: LayerRule = "full"
    rope_types: tuple[str, ...] = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
    rope_by_layer_type: bool = False  # rope_parameters has one entry per layer type (Gemma 3)
    linear_rope_counted: bool = False  # max_position_embeddings is the length that linear RoPE has stretched to
    partial_rotary: bool = False  # partial_rotary_factor other than 1 is understood
    rope_aliases: Mapping[str, str] = field(default_factory=lambda: {"su": "longrope"})  # older names of rope types
    aliases: tuple[str, ...] = ()  # other spellings of the architecture
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # keys that are known, but not in all values
    harmless: tuple[str, ...] = ()  # keys that change nothing in this family


# Keys that all families read, and the ModelConfig fields they become.
SIZES: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",  # null: as many as query heads
    "head_dim": "head_dim",  # null: hidden_size / num_attention_heads
    "max_position_embeddings": "max_position_embeddings",
}

# Spelling in config.json -> ModelConfig.activation. gelu_new is the same tanh formula as gelu_pytorch_tanh.
ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

# float16 has no counterpart here; bfloat16 is as large and covers its range. Ask for float32 to keep all its digits.
DTYPES: Mapping[str, str] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "bfloat16"}

# Required keys whose null says something: yarn's factor is then how far max_position_embeddings is beyond the trained.
NULLABLE_ROPE_KEYS = ("yarn.factor",)

# What each RoPE type reads besides rope_type, rope_theta and partial_rotary_factor: (required, optional).
ROPE_KEYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
    "longrope": (
        ("short_factor", "long_factor"),
        ("factor", "original_max_position_embeddings", "attention_factor"),
    ),
}


def _llama_like(**changes: Any) -> dict[str, Any]:
    """The keys of the Llama config with its defaults, overlaid with those of another family."""
    return {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": None,  # where a stretched rope's trained length may stand as well
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    } | changes


_QUERY_SCALE = {"query_scale": ("head_dim", -0.5)}
_ATTENTION_BIAS = {"qkv_bias": "attention_bias", "attention_out_bias": "attention_bias"}
_ALL_BIASES = {**_ATTENTION_BIAS, "mlp_bias": "mlp_bias"}

LLAMA = Family(
    architecture="LlamaForCausalLM",
    aliases=("LLaMAForCausalLM",),  # of the first conversions to transformers
    model_type="llama",
    defaults=_llama_like(attention_bias=False, mlp_bias=False),
    copies=_ALL_BIASES,
    powers=_QUERY_SCALE,
)

MISTRAL = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    defaults=_llama_like(
        intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072, sliding_window=4096
    ),
    powers=_QUERY_SCALE,
    layer_rule="window",
    only={"attention_bias": (False,), "mlp_bias": (False,)},
)

_QWEN = _llama_like(
    vocab_size=151936,
    intermediate_size=22016,
    num_key_value_heads=32,
    max_position_embeddings=32768,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
    bos_token_id=None,
    eos_token_id=None,
)

QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    defaults=_QWEN,
    settings={"qkv_bias": True},
    powers=_QUERY_SCALE,
    layer_rule="upper",
    only={"attention_bias": (True,), "mlp_bias": (False,)},
)

QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    defaults={**_QWEN, "head_dim": 128, "attention_bias": False},
    settings={"qk_norm": "head"},
    copies=_ATTENTION_BIAS,
    powers=_QUERY_SCALE,
    layer_rule="upper",
    only={"mlp_bias": (False,)},
)

_GEMMA = {
    **{key: value for key, value in _llama_like().items() if key != "hidden_act"},
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_GEMMA_SETTINGS = {
    "norm_offset": 1.0,
    "norm_scale_float32": True,
    "post_norm": True,
    "embedding_multiplier_rounded": True,
}
_GEMMA_POWERS = {"query_scale": ("query_pre_attn_scalar", -0.5), "embedding_multiplier": ("hidden_size", 0.5)}

GEMMA2 = Family(
    architecture="Gemma2ForCausalLM",
    model_type="gemma2",
    defaults={
        **_GEMMA,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window_pattern": 2,
    },
    settings=_GEMMA_SETTINGS,
    copies={
        **_ATTENTION_BIAS,
        "attention_softcap": "attn_logit_softcapping",
        "final_softcap": "final_logit_softcapping",
    },
    powers=_GEMMA_POWERS,
    layer_rule="period",
    harmless=("hidden_act",),  # stands beside hidden_activation in files of the first releases, and is not read
    activation_key="hidden_activation",
    only={"mlp_bias": (False,), "sliding_window_pattern": (2,)},
)

GEMMA3 = Family(
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    defaults={
        **_GEMMA,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "final_logit_softcapping": None,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
    settings={**_GEMMA_SETTINGS, "qk_norm": "head"},
    copies={**_ATTENTION_BIAS, "final_softcap": "final_logit_softcapping"},
    powers=_GEMMA_POWERS,
    layer_rule="period",
    harmless=("hidden_act",),
    rope_by_layer_type=True,
    linear_rope_counted=True,
    activation_key="hidden_activation",
    only={"mlp_bias": (False,), "attn_logit_softcapping": ()},  # transformers reads it and then leaves it out
)

PHI3 = Family(
    architecture="Phi3ForCausalLM",
    model_type="phi3",
    defaults=_llama_like(
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        eos_token_id=32000,
        pad_token_id=32000,
        sliding_window=None,
        partial_rotary_factor=1.0,
    ),
    powers=_QUERY_SCALE,
    layer_rule="window",
    rope_types=("default", "longrope"),
    rope_aliases={"su": "longrope", "yarn": "longrope"},
    partial_rotary=True,
    only={
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "lm_head_bias": (False,),
        "full_attn_mod": (1,),
        "interpolate_factor": (1,),
    },
)

OLMO2 = Family(
    architecture="Olmo2ForCausalLM",
    model_type="olmo2",
    defaults=_llama_like(
        vocab_size=50304,
        rms_norm_eps=1e-5,
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=50279,
        pad_token_id=1,
    ),
    settings={"qk_norm": "whole", "pre_norm": False, "post_norm": True, "norm_scale_float32": True},
    copies=_ATTENTION_BIAS,
    powers=_QUERY_SCALE,
    only={"mlp_bias": (False,)},
)

GRANITE = Family(
    architecture="GraniteForCausalLM",
    model_type="granite",
    defaults=_llama_like(
        attention_bias=False,
        mlp_bias=False,
        embedding_multiplier=1.0,
        residual_multiplier=1.0,
        attention_multiplier=1.0,
        logits_scaling=1.0,
    ),
    copies={
        **_ALL_BIASES,
        "query_scale": "attention_multiplier",
        "embedding_multiplier": "embedding_multiplier",
        "residual_multiplier": "residual_multiplier",
        "logits_divisor": "logits_scaling",
    },
)

SMOLLM3 = Family(
    architecture="SmolLM3ForCausalLM",
    model_type="smollm3",
    defaults=_llama_like(
        vocab_size=128256,
        hidden_size=2048,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        rope_theta=2_000_000.0,
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        use_sliding_window=False,
        sliding_window=None,
        no_rope_layers=None,
        no_rope_layer_interval=4,
        bos_token_id=128000,
        eos_token_id=128001,
        pad_token_id=128004,
    ),
    copies=_ALL_BIASES,
    powers=_QUERY_SCALE,
    layer_rule="no_rope",
    harmless=("max_window_layers",),
)

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA2,
    GEMMA3,
    PHI3,
    OLMO2,
    GRANITE,
    SMOLLM3,
)
