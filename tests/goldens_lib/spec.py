"""The words in which a golden case is written down, and what most cases share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]
FlagData = dict[str, Any]

LAYER_NORMS = r"(input_layernorm|post_attention_layernorm)\.weight$"


@dataclass(frozen=True)
class CaseSpec:
    """One case before transformers has seen it. `prompt_lengths` in tokens.

    `flags` are entries of `golden_recipe.flag_from_json` without `error`, which is measured. `scales` maps regular
    expressions (`re.search`) for tensor names to `TensorSpec.scale`; the first match wins, then `DEFAULT_SCALES`, then
    1 for what is no matrix. `norm_offset` says that the family stores norm weights as (weight - 1). `others`: a regular
    expression (`re.match`) for tensors of other modalities than text.
    """

    name: str
    config: Config
    flags: tuple[FlagData, ...]
    config_alt: Config | None = None
    generation_config: Config | None = None
    prompt_lengths: tuple[int, ...] = (5, 37, 90)  # within a page of 16, over three of them, over six
    scales: Mapping[str, float] | None = None
    norm_offset: bool = False
    others: str = r"(?!)"
    tensor_parallel: tuple[int, ...] = ()


# With hidden size 64 and unit-RMS inputs, 0.15 gives query and key elements of about 1.2: attention logits spread by
# 1 to 2, so that it prefers some tokens (rope, windows and scales matter) without collapsing onto one.
DEFAULT_SCALES: Mapping[str, float] = {
    r"embed_tokens": 0.2,
    r"lm_head": 0.2,
    r"proj": 0.15,
}


def flag(name: str, **changes: Any) -> FlagData:
    return {"name": name, **changes}


def set_flag(key: str, value: Any, name: str | None = None) -> FlagData:
    """The mistake of reading `value` where the config has another one under the dotted `key`."""
    return {"name": name or key, "set": {key: value}}


def base(architecture: str, model_type: str, **overrides: Any) -> Config:
    """The keys that nearly all families share, with odd sizes; a value of `...` leaves the key out of config.json."""
    config: Config = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": 131,
        "hidden_size": 64,
        "intermediate_size": 145,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "use_cache": True,
    }
    config |= overrides
    return {key: value for key, value in config.items() if value is not ...}


def old(config: Config, *, theta: float | None, scaling: Config | None = None, **more: Any) -> Config:
    """Spelled as up to transformers 4: `rope_theta` and `rope_scaling` at the top, `torch_dtype`."""
    spelled = dict(config) | {"torch_dtype": "float32", "rope_scaling": scaling} | more
    return spelled if theta is None else spelled | {"rope_theta": theta}


def new(config: Config, rope: Config, **more: Any) -> Config:
    """Spelled as since transformers 5: one `rope_parameters`, `dtype`."""
    return dict(config) | {"dtype": "float32", "rope_parameters": rope} | more


def untie(vocab_size: int, hidden_size: int) -> FlagData:
    """The mistake of reading a head of its own where the embedding is meant."""
    head = {"lm_head.weight": [[vocab_size, hidden_size], "matrix", 0.2]}
    return {"name": "tie_word_embeddings", "set": {"tie_word_embeddings": False}, "add": head}


def tie() -> FlagData:
    """The mistake of using the embedding where there is a head of its own."""
    return {"name": "tie_word_embeddings", "set": {"tie_word_embeddings": True}, "drop": ["lm_head.weight"]}
