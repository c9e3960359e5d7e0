"""Hugging Face RoPE settings, in their old and new spelling, to `RopeConfig`. Standard library only.

Old: `rope_theta` and `rope_scaling` (null for the default) at the top. New: all in `rope_parameters`, which for
Gemma 3 has one entry per layer type. `type` is an older name of `rope_type`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxinfer.config import ConfigError, RopeConfig, UnsupportedModelError
from jaxinfer.models.families import NULLABLE_ROPE_KEYS, ROPE_KEYS, Family

Values = Mapping[str, Any]
LAYER_TYPES = ("full_attention", "sliding_attention")
MAX_COUNT = 2**31 - 1  # positions and sizes are int32 on devices
_LARGEST = (2 - 2**-23) * 2.0**127  # of float32


def rope_configs(family: Family, config: Values, head_dim: int, notes: list[str]) -> dict[str, RopeConfig]:
    """{layer type: RopeConfig} of a config.json. Adds to `notes` where one of two statements counts.

    Raises UnsupportedModelError for an unknown type or key, ConfigError for a missing, malformed or contradictory one.
    """
    find = _per_layer_type if family.rope_by_layer_type else _for_all_layers
    values = {**family.defaults, **{key: value for key, value in config.items() if value is not None}}
    found: list[str] = []
    ropes = {
        layer_type: _rope_config(family, name, rope, values, head_dim, found)
        for layer_type, (name, rope) in find(family, config, found).items()
    }
    notes += dict.fromkeys(found)  # layer types that share their settings share the notes
    return ropes


def _dictionary(values: Values, name: str) -> dict[str, Any]:
    """A copy of the object of that name, {} where there is none."""
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is {value!r}; it must be an object or null")
    return dict(value)


def _for_all_layers(family: Family, config: Values, notes: list[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """{layer type: (where the settings stand, the settings with theta)}, the same for each type."""
    named = {name: _dictionary(config, name) for name in ("rope_scaling", "rope_parameters")}
    for name, rope in named.items():
        for key in ("rope_theta", "partial_rotary_factor"):
            _complete(rope, key, key, f"{name}.{key}", family, config, notes if rope else [])
    scaling, parameters = named.values()
    if not config.get("rope_scaling"):
        return dict.fromkeys(LAYER_TYPES, ("rope_parameters", parameters))
    if config.get("rope_parameters") and (differing := _differing(scaling, parameters)):
        found = "; ".join(f"{key}: {scaling.get(key)!r} and {parameters.get(key)!r}" for key in differing)
        raise ConfigError(f"rope_scaling and rope_parameters contradict each other ({found})")
    return dict.fromkeys(LAYER_TYPES, ("rope_scaling", scaling))


def _differing(one: Values, other: Values) -> list[str]:
    """Keys in which two descriptions of a rope differ; null is not given, and `type` is `rope_type`."""

    def normal(rope: Values) -> dict[str, Any]:
        given = {key: value for key, value in rope.items() if value is not None and key != "type"}
        return {"rope_type": rope.get("type", "default")} | given

    one, other = normal(one), normal(other)
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def _per_layer_type(family: Family, config: Values, notes: list[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Gemma 3: rope_scaling and rope_theta are those of full layers, rope_local_base_freq is the others' theta."""
    scaling, parameters = _dictionary(config, "rope_scaling"), _dictionary(config, "rope_parameters")
    if unknown := sorted(set(parameters) - set(LAYER_TYPES)):
        raise ConfigError(
            f"rope_parameters has {unknown}; {family.architecture} wants one entry per layer type: {LAYER_TYPES}"
        )
    full, sliding = _dictionary(parameters, "full_attention"), _dictionary(parameters, "sliding_attention")
    where = "rope_scaling" if scaling else "rope_parameters.full_attention"
    if full and scaling and (differing := [key for key in _differing(full, {**full, **scaling}) if key in full]):
        found = "; ".join(f"{key}: {scaling.get(key)!r} and {full[key]!r}" for key in differing)
        raise ConfigError(f"rope_scaling and rope_parameters.full_attention contradict each other ({found})")
    full |= scaling
    home = "rope_scaling" if "rope_theta" in scaling else "rope_parameters.full_attention"
    _complete(full, "rope_theta", "rope_theta", f"{home}.rope_theta", family, config, notes)
    inner = "rope_parameters.sliding_attention.rope_theta"
    _complete(sliding, "rope_theta", "rope_local_base_freq", inner, family, config, notes)
    return {
        "full_attention": (where, full),
        "sliding_attention": ("rope_parameters.sliding_attention", sliding),
    }


def _complete(
    rope: dict[str, Any], key: str, outer: str, inner: str, family: Family, config: Values, notes: list[str]
) -> None:
    """Fill rope[key] from config[outer] or the family's default. Of two values the inner counts, as in transformers."""
    inside, outside = rope.get(key), config.get(outer)
    if inside is None:
        rope[key] = family.defaults.get(outer) if outside is None else outside
    elif outside is not None and outside != inside:
        notes.append(f"config.json: {inner} = {inside!r} counts, as in transformers, and not {outer} = {outside!r}")


def _rope_config(
    family: Family,
    name: str,
    rope: dict[str, Any],
    values: Values,
    head_dim: int,
    notes: list[str],
) -> RopeConfig:
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
    if missing := sorted(key for key in required if _missing(rope, key, f"{kind}.{key}")):
        raise ConfigError(f"{name} lacks {missing}, which rope type {kind} needs")
    read = _Reader(name, rope)
    share = read.number("partial_rotary_factor", 1.0)
    if share != 1.0 and not family.partial_rotary:
        raise UnsupportedModelError(
            f"partial_rotary_factor is {share}; {family.architecture} rotates whole heads, so it must be 1.0"
        )
    if not 0 < share <= 1:
        raise ConfigError(f"{name}: partial_rotary_factor is {share}; it must be above 0 and at most 1")
    theta = read.number("rope_theta", 0.0)
    if theta <= 0:
        raise ConfigError(f"{name}: rope_theta is {theta}; it must be positive")
    common: dict[str, Any] = {
        "kind": kind,
        "theta": theta,
        "rotary_dim": int(head_dim * share),
    }
    if kind == "default":
        return RopeConfig(**common)
    longest = values["max_position_embeddings"]
    trained = longest if kind == "dynamic" else _trained_length(family, name, rope, values)
    if kind == "longrope":
        return RopeConfig(**common, **_longrope(read, longest, trained))
    factor = read.number("factor", longest / trained)
    if kind == "yarn":
        truncate = read.flag("truncate", True)
        if family.rope_by_layer_type and not truncate:
            truncate = True
            notes.append(
                f"config.json: {name}.truncate is passed over, as transformers 5.24 reads it for no layer type"
            )
        return RopeConfig(**common, factor=factor, truncate=truncate, **_yarn(read, factor, trained))
    if kind == "llama3":
        low, high = read.number("low_freq_factor", 0.0), read.number("high_freq_factor", 0.0)
        if not 0 < low < high:
            raise ConfigError(f"{name} has low_freq_factor {low} and high_freq_factor {high}; 0 < low < high is needed")
        common |= {"low_freq_factor": low, "high_freq_factor": high}
    if kind in ("llama3", "dynamic"):
        common["original_max_position_embeddings"] = trained
    return RopeConfig(**common, factor=factor)


def _missing(rope: Values, key: str, path: str) -> bool:
    return key not in rope if path in NULLABLE_ROPE_KEYS else rope.get(key) is None


def _trained_length(family: Family, name: str, rope: Values, values: Values) -> int:
    """The length before stretching, tokens: given at the top of the config, in the rope settings, or twice the same.

    As in transformers the one at the top, even a family's default for it, would count before the other; where the two
    differ that may not be what was meant. With ropes by layer type it is not looked at.
    """
    key = "original_max_position_embeddings"
    outer, inner = None if family.rope_by_layer_type else values.get(key), rope.get(key)
    if outer is not None and inner is not None and outer != inner:
        raise ConfigError(f"{key} is {outer!r} at the top of the config and {inner!r} in {name}; they must be the same")
    length = next((value for value in (outer, inner) if value is not None), values["max_position_embeddings"])
    if not isinstance(length, int) or isinstance(length, bool) or not 0 < length <= MAX_COUNT:
        raise ConfigError(f"{name}: {key} is {length!r:.200}; it must be a positive integer of at most {MAX_COUNT}")
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
        if not is_number(value):
            raise ConfigError(f"{self.name}.{key} is {value!r:.200}; it must be a finite number")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self.rope[key]
        if not isinstance(value, list) or not all(is_number(item) and item > 0 for item in value):
            raise ConfigError(f"{self.name}.{key} is {value!r:.200}; it must be a list of positive numbers")
        return tuple(float(item) for item in value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.rope.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{self.name}.{key} is {value!r}; it must be true or false")
        return value


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number that float32 can hold, which integers of any length need not be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
