"""Hugging Face RoPE settings, in their old and new spelling, to `RopeConfig`. Standard library only.

Old: `rope_theta` and `rope_scaling` (null for the default) at the top. New: all in `rope_parameters`, which for
Gemma 3 has one entry per layer type. `type` is an older name of `rope_type`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxinfer.config import ConfigError, RopeConfig, UnsupportedModelError
from jaxinfer.models.config_reader import MAX_COUNT, ConfigReader, is_number

Values = Mapping[str, Any]
LAYER_TYPES = ("full_attention", "sliding_attention")
FULL, SLIDING = LAYER_TYPES

# Required keys whose null says something: yarn's factor is then how far max_position_embeddings is beyond the trained.
_NULLABLE_KEYS = ("yarn.factor",)

_QUERY_SCALING = "llama_4_scaling_beta"

# What each RoPE type reads besides rope_type, rope_theta and partial_rotary_factor: (required, optional).
_KEYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
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


@dataclass(frozen=True)
class RopeRules:
    """What a family means by its RoPE settings.

    Attributes:
        theta: `rope_theta` where config.json has none.
        types: the values of `rope_type` that the family has.
        aliases: older names of types, and the types that they mean.
        partial: whether a `partial_rotary_factor` other than 1 is understood.
        partial_default: what it is where config.json has none.
        trained_length: `original_max_position_embeddings` at the top where config.json has none, tokens.
        default: all settings where config.json has none.
        scales_queries: whether queries grow with the position, by `llama_4_scaling_beta`, which must be given.
        passed_over: keys that change nothing.
        alpha: whether `dynamic` may have a fixed `alpha`, which stretches theta once and for all; its other keys then
            say nothing.
    """

    theta: float = 10000.0
    types: tuple[str, ...] = tuple(_KEYS)
    aliases: Mapping[str, str] = field(default_factory=lambda: {"su": "longrope"})
    partial: bool = False
    partial_default: float = 1.0
    trained_length: int | None = None
    default: Mapping[str, Any] = field(default_factory=dict)
    scales_queries: bool = False
    passed_over: tuple[str, ...] = ()
    alpha: bool = False


@dataclass(frozen=True)
class _Model:
    """What else of a model its ropes depend on. Lengths in tokens.

    Attributes:
        head_dim: elements of a head.
        longest: `max_position_embeddings`.
        trained: `original_max_position_embeddings` at the top of config.json, of any type.
        by_layer_type: whether every layer type has its own settings.
    """

    config: ConfigReader
    rules: RopeRules
    head_dim: int
    longest: int
    trained: Any
    by_layer_type: bool


def read_rope(config: ConfigReader, head_dim: int, max_position_embeddings: int, rules: RopeRules) -> RopeConfig:
    """The one rotary embedding of a model. Adds a note where one of two statements counts.

    Args:
        head_dim: elements of a head.
        max_position_embeddings: the longest sequence, tokens.

    Raises UnsupportedModelError for an unknown type or key, ConfigError for a missing, malformed or contradictory one.
    """
    defaults: dict[str, Any] = {"rope_theta": rules.theta, "partial_rotary_factor": None}
    if rules.partial:
        defaults["partial_rotary_factor"] = rules.partial_default
    else:
        config.only("partial_rotary_factor", 1.0)
    trained = config.raw("original_max_position_embeddings", rules.trained_length)
    model = _Model(config, rules, head_dim, max_position_embeddings, trained, by_layer_type=False)
    named = {name: _dictionary(config, name) for name in ("rope_scaling", "rope_parameters")}
    if not any(named.values()):
        named["rope_parameters"] = dict(rules.default)
    for name, rope in named.items():
        for key, default in defaults.items():
            _complete(rope, key, key, f"{name}.{key}", config, default)
    scaling, parameters = named.values()
    if not config.raw("rope_scaling"):
        return _rope_config(model, "rope_parameters", parameters)
    if config.raw("rope_parameters") and (differing := _differing(scaling, parameters)):
        words = "; ".join(f"{key}: {scaling.get(key)!r} and {parameters.get(key)!r}" for key in differing)
        raise ConfigError(f"rope_scaling and rope_parameters contradict each other ({words})")
    return _rope_config(model, "rope_scaling", scaling)


def read_ropes_by_layer_type(
    config: ConfigReader,
    head_dim: int,
    max_position_embeddings: int,
    rules: RopeRules,
    local_theta: float,
    local_key: str = "rope_local_base_freq",
) -> dict[str, RopeConfig]:
    """{layer type: its rotary embedding}, as Gemma 3 has it: `rope_scaling` and `rope_theta` are those of full layers,
    `rope_local_base_freq` is the theta of the others.

    Args:
        local_theta: theta of the others where config.json has none.
        local_key: what it is called.

    The other arguments, notes and errors are those of `read_rope`.
    """
    config.only("partial_rotary_factor", 1.0)
    config.raw("original_max_position_embeddings")  # known, and as in transformers not looked at
    model = _Model(config, rules, head_dim, max_position_embeddings, trained=None, by_layer_type=True)
    scaling, parameters = _dictionary(config, "rope_scaling"), _dictionary(config, "rope_parameters")
    if unknown := sorted(set(parameters) - set(LAYER_TYPES)):
        raise ConfigError(
            f"rope_parameters has {unknown}; {config.architecture} wants one entry per layer type: {LAYER_TYPES}"
        )
    full, sliding = (_object(parameters.get(layer_type), layer_type) for layer_type in LAYER_TYPES)
    where = "rope_scaling" if scaling else "rope_parameters.full_attention"
    if full and scaling and (differing := [key for key in _differing(full, {**full, **scaling}) if key in full]):
        words = "; ".join(f"{key}: {scaling.get(key)!r} and {full[key]!r}" for key in differing)
        raise ConfigError(f"rope_scaling and rope_parameters.full_attention contradict each other ({words})")
    full |= scaling
    home = "rope_scaling" if "rope_theta" in scaling else "rope_parameters.full_attention"
    inner = "rope_parameters.sliding_attention"
    _complete(full, "rope_theta", "rope_theta", f"{home}.rope_theta", config, rules.theta)
    _complete(sliding, "rope_theta", local_key, f"{inner}.rope_theta", config, local_theta)
    return {FULL: _rope_config(model, where, full), SLIDING: _rope_config(model, inner, sliding)}


def _dictionary(config: ConfigReader, name: str) -> dict[str, Any]:
    """A copy of the object of that name, {} where there is none."""
    return _object(config.raw(name), name)


def _object(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is {value!r}; it must be an object or null")
    return dict(value)


def _differing(one: Values, other: Values) -> list[str]:
    """Keys in which two descriptions of a rope differ; null is not given, and `type` is `rope_type`."""

    def normal(rope: Values) -> dict[str, Any]:
        given = {key: value for key, value in rope.items() if value is not None and key != "type"}
        return {"rope_type": rope.get("type", "default")} | given

    one, other = normal(one), normal(other)
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def _complete(
    rope: dict[str, Any], key: str, outer: str, inner: str, config: ConfigReader, default: float | None
) -> None:
    """Fill rope[key] from config[outer] or else the default. Of two values the inner counts, as in transformers."""
    inside, outside = rope.get(key), config.raw(outer)
    if inside is None:
        rope[key] = config.raw(outer, default)
    elif outside is not None and outside != inside:
        config.notes.append(
            f"config.json: {inner} = {inside!r} counts, as in transformers, and not {outer} = {outside!r}"
        )


def _rope_config(model: _Model, name: str, rope: dict[str, Any]) -> RopeConfig:
    kind = _kind(model, name, rope)
    settings = _Settings(name, rope)
    rotary_dim = int(model.head_dim * _share(model, settings))
    theta = settings.number("rope_theta", 0.0)
    if theta <= 0:
        raise ConfigError(f"{name}: rope_theta is {theta}; it must be positive")
    if kind == "dynamic" and _has_alpha(model.rules, rope):
        kind, theta = "default", _stretched_by_alpha(settings, theta, rotary_dim)
    common: dict[str, Any] = {"kind": kind, "theta": theta, "rotary_dim": rotary_dim}
    if model.rules.scales_queries:
        common["query_scaling"] = settings.number(_QUERY_SCALING, 0.0)
    if kind == "default":
        return RopeConfig(**common)
    trained = model.longest if kind == "dynamic" else _trained_length(model, name, rope)
    if kind == "longrope":
        return RopeConfig(**common, **_longrope(settings, model.longest, trained))
    factor = settings.number("factor", model.longest / trained)
    if kind == "yarn":
        truncate = settings.flag("truncate", True)
        if model.by_layer_type and not truncate:
            truncate = True
            model.config.notes.append(
                f"config.json: {name}.truncate is passed over, as transformers 5.24 reads it for no layer type"
            )
        return RopeConfig(**common, factor=factor, truncate=truncate, **_yarn(settings, factor, trained))
    if kind == "llama3":
        low, high = settings.number("low_freq_factor", 0.0), settings.number("high_freq_factor", 0.0)
        if not 0 < low < high:
            raise ConfigError(f"{name} has low_freq_factor {low} and high_freq_factor {high}; 0 < low < high is needed")
        common |= {"low_freq_factor": low, "high_freq_factor": high}
    if kind in ("llama3", "dynamic"):
        common["original_max_position_embeddings"] = trained
    return RopeConfig(**common, factor=factor)


def _kind(model: _Model, name: str, rope: Values) -> str:
    """The RoPE type, once its keys are known and those that it needs are there."""
    given = rope.get("rope_type", rope.get("type", "default"))
    kind = model.rules.aliases.get(given, given) if isinstance(given, str) else given
    if kind not in model.rules.types:
        raise UnsupportedModelError(
            f"{name}.rope_type is {given!r}; for {model.config.architecture} it must be one of "
            f"{sorted(model.rules.types)}"
        )
    required, optional = _KEYS[kind]
    if kind == "dynamic" and _has_alpha(model.rules, rope):
        required, optional = ("alpha",), ("factor", *_KEYS["yarn"][1])
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *required, *optional, *model.rules.passed_over}
    if model.rules.scales_queries:
        known |= {_QUERY_SCALING, "max_position_embeddings"}  # the latter says again what is at the top
        required = (*required, _QUERY_SCALING)
    if unknown := sorted(key for key, value in rope.items() if key not in known and value is not None):
        found = ", ".join(f"{key} = {rope[key]!r}" for key in unknown)
        raise UnsupportedModelError(f"{name} has {found}; rope type {kind} knows {sorted(known)}")
    if missing := sorted(key for key in required if _missing(rope, key, f"{kind}.{key}")):
        raise ConfigError(f"{name} lacks {missing}, which rope type {kind} needs")
    return str(kind)


def _has_alpha(rules: RopeRules, rope: Values) -> bool:
    return rules.alpha and bool(rope.get("alpha"))


def _stretched_by_alpha(settings: _Settings, theta: float, rotary_dim: int) -> float:
    """Theta by NTK-aware scaling with a fixed alpha, which as transformers 5.24 has it is theta alpha^(d / (d - 2))."""
    alpha = settings.number("alpha", 1.0)
    if alpha <= 0 or rotary_dim <= 2:
        raise ConfigError(f"{settings.name}.alpha is {alpha} with heads of {rotary_dim}; it must be positive, beyond 2")
    return float(theta * alpha ** (rotary_dim / (rotary_dim - 2)))


def _share(model: _Model, settings: _Settings) -> float:
    """Which part of a head is rotated."""
    share = settings.number("partial_rotary_factor", 1.0)
    if share != 1.0 and not model.rules.partial:
        raise UnsupportedModelError(
            f"partial_rotary_factor is {share}; {model.config.architecture} rotates whole heads, so it must be 1.0"
        )
    if not 0 < share <= 1:
        raise ConfigError(f"{settings.name}: partial_rotary_factor is {share}; it must be above 0 and at most 1")
    return share


def _missing(rope: Values, key: str, path: str) -> bool:
    return key not in rope if path in _NULLABLE_KEYS else rope.get(key) is None


def _trained_length(model: _Model, name: str, rope: Values) -> int:
    """The length before stretching, tokens: given at the top of the config, in the rope settings, or twice the same.

    As in transformers the one at the top, even a family's default for it, would count before the other; where the two
    differ that may not be what was meant. With ropes by layer type it is not looked at.
    """
    key = "original_max_position_embeddings"
    outer, inner = model.trained, rope.get(key)
    if outer is not None and inner is not None and outer != inner:
        raise ConfigError(f"{key} is {outer!r} at the top of the config and {inner!r} in {name}; they must be the same")
    length = next((value for value in (outer, inner) if value is not None), model.longest)
    if not isinstance(length, int) or isinstance(length, bool) or not 0 < length <= MAX_COUNT:
        raise ConfigError(f"{name}: {key} is {length!r:.200}; it must be a positive integer of at most {MAX_COUNT}")
    return length


def _longrope(settings: _Settings, longest: int, trained: int) -> dict[str, Any]:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753); `factor` serves only to find the magnitude of cos and sin."""
    factor = settings.number("factor", longest / trained)
    default = 1.0 if factor <= 1.0 or trained == 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    return {
        "factor": factor,
        "attention_factor": settings.number("attention_factor", default),
        "original_max_position_embeddings": trained,
        "short_factor": settings.numbers("short_factor"),
        "long_factor": settings.numbers("long_factor"),
    }


def _yarn(settings: _Settings, factor: float, trained: int) -> dict[str, Any]:
    """YaRN's magnitude 0.1 ln(factor) + 1, or the quotient of two such where mscale and mscale_all_dim are given."""

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    mscale, mscale_all_dim = settings.number("mscale", 0.0), settings.number("mscale_all_dim", 0.0)
    default = magnitude(mscale) / magnitude(mscale_all_dim) if mscale and mscale_all_dim else magnitude(1.0)
    return {
        "attention_factor": settings.number("attention_factor", default),
        "original_max_position_embeddings": trained,
        "beta_fast": settings.number("beta_fast", 32.0) or 32.0,  # zero means "not given", as in transformers
        "beta_slow": settings.number("beta_slow", 1.0) or 1.0,
    }


class _Settings:
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
