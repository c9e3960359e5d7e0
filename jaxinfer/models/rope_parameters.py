"""Hugging Face RoPE settings, in their old and new spelling, to `RopeConfig`. Standard library only.

Old: `rope_theta` and `rope_scaling` (null for the default) at the top. New: all in `rope_parameters`, which for
Gemma 3 has one entry per layer type. `type` is an older name of `rope_type`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxinfer.config import ConfigError, RopeConfig, UnsupportedModelError
from jaxinfer.models.families import ROPE_KEYS, Family

Values = Mapping[str, Any]
LAYER_TYPES = ("full_attention", "sliding_attention")


def rope_configs(family: Family, config: Values, head_dim: int) -> dict[str, RopeConfig]:
    """{layer type: RopeConfig} of a config.json.

    Raises UnsupportedModelError for an unknown type or key, ConfigError for a missing, malformed or contradictory one.
    """
    find = _per_layer_type if family.rope_by_layer_type else _for_all_layers
    values = {**family.defaults, **{key: value for key, value in config.items() if value is not None}}
    return {
        layer_type: _rope_config(family, name, rope, values, head_dim)
        for layer_type, (name, rope) in find(family, config).items()
    }


def _dictionary(values: Values, name: str) -> dict[str, Any]:
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is {value!r}; it must be an object or null")
    return value


def _for_all_layers(family: Family, config: Values) -> dict[str, tuple[str, dict[str, Any]]]:
    """{layer type: (where the settings stand, the settings with theta)}, the same for each type."""
    scaling, parameters = _dictionary(config, "rope_scaling"), _dictionary(config, "rope_parameters")
    if scaling and parameters and scaling != parameters:
        raise ConfigError(f"rope_scaling {scaling} and rope_parameters {parameters} contradict each other")
    rope = dict(scaling or parameters)
    for key in ("rope_theta", "partial_rotary_factor"):
        _complete(rope, key, key, family, config)
    return dict.fromkeys(LAYER_TYPES, ("rope_scaling" if scaling else "rope_parameters", rope))


def _per_layer_type(family: Family, config: Values) -> dict[str, tuple[str, dict[str, Any]]]:
    """Gemma 3: rope_scaling and rope_theta are those of full layers, rope_local_base_freq is the others' theta."""
    scaling, parameters = _dictionary(config, "rope_scaling"), _dictionary(config, "rope_parameters")
    if scaling and parameters:
        raise ConfigError("rope_scaling and rope_parameters are both given; only one of them can be meant")
    if unknown := sorted(set(parameters) - set(LAYER_TYPES)):
        raise ConfigError(
            f"rope_parameters has {unknown}; {family.architecture} wants one entry per layer type: {LAYER_TYPES}"
        )
    full = dict(scaling or _dictionary(parameters, "full_attention"))
    sliding = dict(_dictionary(parameters, "sliding_attention"))
    _complete(full, "rope_theta", "rope_theta", family, config)
    _complete(sliding, "rope_theta", "rope_local_base_freq", family, config)
    return {
        "full_attention": ("rope_scaling" if scaling else "rope_parameters.full_attention", full),
        "sliding_attention": ("rope_parameters.sliding_attention", sliding),
    }


def _complete(rope: dict[str, Any], key: str, outer: str, family: Family, config: Values) -> None:
    """Fill rope[key] from config[outer] or the family's default; refuse two different values."""
    inside, outside = rope.get(key), config.get(outer)
    if inside is None:
        rope[key] = family.defaults.get(outer) if outside is None else outside
    elif outside is not None and outside != inside:
        raise ConfigError(f"{outer} is {outside!r} at the top of the config and {inside!r} in its rope settings")


def _rope_config(family: Family, name: str, rope: dict[str, Any], values: Values, head_dim: int) -> RopeConfig:
    given = rope.get("rope_type", rope.get("type", "default"))
    kind = family.rope_aliases.get(given, given) if isinstance(given, str) else given
    if kind not in family.rope_types:
        raise UnsupportedModelError(
            f"{name}.rope_type is {given!r}; for {family.architecture} it must be one of {sorted(family.rope_types)}"
        )
    required, optional = ROPE_KEYS[kind]
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *required, *optional}
    if unknown := sorted(key for key, value in rope.items() if key not in known and value is not None):
        found = ", ".join(f"{key} = {rope[key]!r}" for key in unknown)
        raise UnsupportedModelError(f"{name} has {found}; rope type {kind} knows {sorted(known)}")
    if missing := sorted(key for key in required if rope.get(key) is None):
        raise ConfigError(f"{name} lacks {missing}, which rope type {kind} needs")
    read = _Reader(name, rope)
    share = read.number("partial_rotary_factor", 1.0)
    if share != 1.0 and not family.partial_rotary:
        raise UnsupportedModelError(
            f"partial_rotary_factor is {share}; {family.architecture} rotates whole heads, so it must be 1.0"
        )
    common: dict[str, Any] = {
        "kind": kind,
        "theta": read.number("rope_theta", 0.0),
        "rotary_dim": int(head_dim * share),
    }
    if kind == "default":
        return RopeConfig(**common)
    longest = values["max_position_embeddings"]
    trained = longest if kind == "dynamic" else _trained_length(name, rope, values)
    if kind == "longrope":
        return RopeConfig(**common, **_longrope(read, longest, trained))
    factor = read.number("factor", longest / trained)
    if kind == "yarn":
        return RopeConfig(**common, factor=factor, **_yarn(read, factor, trained))
    if kind == "llama3":
        low, high = read.number("low_freq_factor", 0.0), read.number("high_freq_factor", 0.0)
        if not 0 < low < high:
            raise ConfigError(f"{name} has low_freq_factor {low} and high_freq_factor {high}; 0 < low < high is needed")
        common |= {"low_freq_factor": low, "high_freq_factor": high}
    if kind in ("llama3", "dynamic"):
        common["original_max_position_embeddings"] = trained
    return RopeConfig(**common, factor=factor)


def _trained_length(name: str, rope: Values, values: Values) -> int:
    """The length before stretching, tokens: given at the top of the config, in the rope settings, or twice the same."""
    outer, inner = values.get("original_max_position_embeddings"), rope.get("original_max_position_embeddings")
    if outer is not None and inner is not None and outer != inner:
        raise ConfigError(f"original_max_position_embeddings is {outer!r} for the model and {inner!r} in {name}")
    length = next((value for value in (outer, inner) if value is not None), values["max_position_embeddings"])
    if not isinstance(length, int) or isinstance(length, bool) or length <= 0:
        raise ConfigError(f"{name}: original_max_position_embeddings is {length!r}; it must be a positive integer")
    return length


def _longrope(read: _Reader, longest: int, trained: int) -> dict[str, Any]:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753); `factor` serves only to find the magnitude of cos and sin."""
    factor = read.number("factor", longest / trained)
    default = 1.0 if factor <= 1.0 or trained == 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    return {
        "factor": factor,
        "attention_factor": read.number("attention_factor", default),
        "original_max_position_embeddings": trained,
        "short_factor": read.numbers("short_factor"),
        "long_factor": read.numbers("long_factor"),
    }


def _yarn(read: _Reader, factor: float, trained: int) -> dict[str, Any]:
    """YaRN's magnitude 0.1 ln(factor) + 1, or the quotient of two such where mscale and mscale_all_dim are given."""

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    mscale, mscale_all_dim = read.number("mscale", 0.0), read.number("mscale_all_dim", 0.0)
    default = magnitude(mscale) / magnitude(mscale_all_dim) if mscale and mscale_all_dim else magnitude(1.0)
    return {
        "attention_factor": read.number("attention_factor", default),
        "original_max_position_embeddings": trained,
        "beta_fast": read.number("beta_fast", 32.0) or 32.0,  # zero means "not given", as in transformers
        "beta_slow": read.number("beta_slow", 1.0) or 1.0,
        "truncate": read.flag("truncate", True),
    }


class _Reader:
    """Typed access to one rope dictionary; null means the default."""

    def __init__(self, name: str, rope: Values) -> None:
        self.name = name
        self.rope = rope

    def number(self, key: str, default: float) -> float:
        value = self.rope.get(key)
        if value is None:
            return float(default)
        if not _is_number(value):
            raise ConfigError(f"{self.name}.{key} is {value!r}; it must be a finite number")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self.rope[key]
        if not isinstance(value, list) or not all(_is_number(item) and item > 0 for item in value):
            raise ConfigError(f"{self.name}.{key} is {value!r}; it must be a list of positive numbers")
        return tuple(float(item) for item in value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.rope.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{self.name}.{key} is {value!r}; it must be true or false")
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
