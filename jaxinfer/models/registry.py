"""Hugging Face config.json to `ModelConfig`. Standard library only; what families differ in stands in `families`.

No key that could change the network's results is passed over in silence. A key of config.json is
 * read (it is in the family's `defaults`, or it is one of the rope keys, `layer_types`, ids and dtype), or
 * checked against the one value that the family can mean (`known_keys.ONLY`, `Family.only`), or
 * known to be harmless (`known_keys.HARMLESS`, private names, version and dropout keys, `Family.harmless`), or
 * unknown: ignored if it is off (null, false, 0, empty), else refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxinfer.config import ConfigError, LayerConfig, ModelConfig, RopeConfig, UnsupportedModelError
from jaxinfer.models import families, known_keys
from jaxinfer.models.families import FAMILIES, Family
from jaxinfer.models.rope_parameters import LAYER_TYPES, MAX_COUNT, is_number, rope_configs

FULL, SLIDING = LAYER_TYPES
Values = Mapping[str, Any]

_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
_BOOLEANS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_COUNTS = (*families.SIZES, "sliding_window", "sliding_window_pattern", "no_rope_layer_interval")
_MAX_LAYERS = 10_000  # each has an entry of its own here: a wrong number must not fill the memory
_SPEAKING_NULLS = (
    "sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "num_key_value_heads",
    "head_dim",
)


def supported_architectures() -> list[str]:
    return sorted(family.architecture for family in FAMILIES)


def model_config(hf_config: dict[str, Any], generation_config: dict[str, Any] | None = None) -> ModelConfig:
    """Translate the parsed config.json (and generation_config.json, for special tokens) of a Hugging Face folder.

    Raises UnsupportedModelError for an architecture, rope type, key or value that is not supported and ConfigError
    for a malformed or contradictory config; both name the field, its value and what is allowed.
    """
    if not isinstance(hf_config, dict):
        raise ConfigError(f"config.json holds {type(hf_config).__name__}; it must be an object")
    family = family_of(hf_config)
    _check_keys(family, hf_config)
    try:
        return _translate(family, hf_config, generation_config or {})
    except ConfigError as error:
        raise type(error)(f"{error}{_defaults_in(str(error), family, hf_config)}") from error


def _defaults_in(message: str, family: Family, config: Values) -> str:
    """Words for the values in a message that stand in no file: they are the family's defaults."""
    named = []
    for key, value in family.defaults.items():
        words = {key, families.SIZES.get(key, key)}
        silent = config.get(key) is None and value is not None
        if silent and any(re.search(rf"\b{word}\b", message) for word in words) and repr(value) in message:
            named.append(f"{key} {value!r}")
    if not named:
        return ""
    return f" (config.json does not give {', '.join(named)}: the default of {family.architecture} in transformers)"


def _translate(family: Family, hf_config: Values, generation_config: Values) -> ModelConfig:
    values = _values(family, hf_config)
    fields = {field: values[key] for key, field in families.SIZES.items()}
    fields["num_kv_heads"] = fields["num_kv_heads"] or values["num_attention_heads"]
    fields["head_dim"] = fields["head_dim"] or _head_dim(values)
    fields |= {field: values[key] for field, key in family.copies.items()}
    known = values | {"head_dim": fields["head_dim"]}
    fields |= {field: float(known[key]) ** exponent for field, (key, exponent) in family.powers.items()}
    layer_types = _layer_types(family, hf_config, values)
    notes: list[str] = []
    by_type = rope_configs(family, hf_config, fields["head_dim"], notes)
    ropes, layers = _layers(family, values, layer_types, by_type)
    if any(rope.kind == "dynamic" for rope in ropes):
        notes.append("dynamic RoPE is served inside the trained length only, where it equals the default")
    return ModelConfig(
        architecture=family.architecture,
        layers=layers,
        ropes=ropes,
        dtype=_dtype(hf_config),  # type: ignore[arg-type]
        norm_eps=_positive(values, "rms_norm_eps"),
        activation=_activation(family, values),  # type: ignore[arg-type]
        tie_word_embeddings=values["tie_word_embeddings"],
        linear_rope_counted=family.linear_rope_counted,
        context_length=_context_length(hf_config, values["max_position_embeddings"]),
        notes=tuple(notes),
        **_special_tokens(family, hf_config, generation_config, values["vocab_size"]),
        **family.settings,
        **fields,
    )


def family_of(hf_config: Values) -> Family:
    """The family that `architectures` names, or `model_type` where a config has no architectures."""
    names = hf_config.get("architectures")
    if names is not None and (not isinstance(names, list) or len(names) > 1):
        raise ConfigError(f"architectures is {names!r}; it must name exactly one of {supported_architectures()}")
    for family in FAMILIES:
        if names and names[0] in (family.architecture, *family.aliases):
            return family
        if not names and hf_config.get("model_type") == family.model_type:
            return family
    what = f"architecture {names[0]!r}" if names else f"model_type {hf_config.get('model_type')!r}"
    raise UnsupportedModelError(f"{what} is not supported; supported are {supported_architectures()}")


def _check_keys(family: Family, config: Values) -> None:
    """Refuse what is neither read nor harmless; see the rules at the top of the module."""
    only = {key: values for key, values in known_keys.ONLY.items() if key not in family.defaults} | dict(family.only)
    read = {*family.defaults, *_ROPE_KEYS, "layer_types", "bos_token_id", "eos_token_id", "pad_token_id"}
    for key, kind in known_keys.KINDS.items():
        if config.get(key):
            raise UnsupportedModelError(
                f"config.json has {key}: this is {kind}, which is not supported; supported are dense text models of "
                f"{supported_architectures()}"
            )
    for key, value in config.items():
        if key in only:
            if value is not None and value not in only[key]:
                allowed = [*only[key], None]
                raise UnsupportedModelError(f"{key} is {value!r}; {family.architecture} supports {allowed} only")
        elif key not in read and value and not _harmless(family, key):
            raise UnsupportedModelError(
                f"config.json has {key} = {value!r}, which is not known for {family.architecture}; a key that is not "
                f"understood may change the results. Known keys: {sorted(read | set(only))}"
            )


def _harmless(family: Family, key: str) -> bool:
    return (
        key in known_keys.HARMLESS
        or key in family.harmless
        or key.startswith(known_keys.HARMLESS_PREFIXES)
        or key.endswith(known_keys.HARMLESS_SUFFIXES)
    )


def _values(family: Family, config: Values) -> dict[str, Any]:
    """The config over the family's defaults, with the types of numbers and switches checked.

    A null means "not given" except for keys whose null says something: windows, caps, KV heads and head_dim.
    """
    values = dict(family.defaults)
    for key in values:
        if key in config and (config[key] is not None or key in _SPEAKING_NULLS):
            values[key] = config[key]
    for key in _BOOLEANS:
        if not isinstance(values.get(key, False), bool):
            raise ConfigError(f"{key} is {values[key]!r}; it must be true or false")
    for key in _COUNTS:
        value = values.get(key)
        if value is not None:
            _check_count(key, value)
    layers = values.get("max_window_layers", 0)
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 0:
        raise ConfigError(f"max_window_layers is {layers!r}; it must be a number of layers, 0 or more")
    for key in {*family.copies.values(), *(key for key, _ in family.powers.values())} - {*_BOOLEANS, *_COUNTS}:
        if values[key] is not None:
            values[key] = _positive(values, key)
    return values


def _check_count(key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ConfigError(f"{key} is {value!r:.200}; it must be a positive integer")
    if value > (limit := _MAX_LAYERS if key == "num_hidden_layers" else MAX_COUNT):
        raise ConfigError(f"{key} is {value!r:.200}; it must be at most {limit}")


def _positive(values: Values, key: str) -> float:
    value = values[key]
    if not is_number(value) or value <= 0:
        raise ConfigError(f"{key} is {value!r:.200}; it must be a positive number")
    return float(value)


def _head_dim(values: Values) -> int:
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    if hidden % heads:
        raise ConfigError(
            f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and no head_dim is given"
        )
    return hidden // heads


def _activation(family: Family, values: Values) -> str:
    name = values[family.activation_key]
    if not isinstance(name, str) or name not in families.ACTIVATIONS:
        raise UnsupportedModelError(
            f"{family.activation_key} is {name!r:.200}; it must be one of {sorted(families.ACTIVATIONS)}"
        )
    return families.ACTIVATIONS[name]


def _dtype(config: Values) -> str:
    """The checkpoint's type: `dtype`, or `torch_dtype` in older files; float32 where neither says.

    Of a folder whose config.json does not say, `checkpoints.folder` asks the tensors.
    """
    key = "dtype" if config.get("dtype") is not None else "torch_dtype"
    name = config.get(key)
    name = "float32" if name in (None, "auto") else str(name).removeprefix("torch.")
    if name not in families.DTYPES:
        raise UnsupportedModelError(f"{key} is {name!r:.200}; it must be one of {sorted(families.DTYPES)}")
    return families.DTYPES[name]


def _context_length(config: Values, positions: int) -> int | None:
    """The length that a key other than max_position_embeddings sets; None where that one decides.

    As in vLLM 0.32: model_max_length decides where it is given, else the shortest of all keys for a length does.
    """
    given = {key: config[key] for key in known_keys.LENGTHS if config.get(key) is not None}
    for key, value in given.items():
        _check_count(key, value)
    shortest = given.get("model_max_length") or min([positions, *given.values()])
    return None if shortest == positions else shortest


def _layer_types(family: Family, config: Values, values: Values) -> list[str]:
    """One of `LAYER_TYPES` for each layer: listed in the config, or derived by the family's rule."""
    derived = _derived_layer_types(family, values)
    listed = config.get("layer_types")
    if listed is None:
        return derived
    if not isinstance(listed, list) or len(listed) != len(derived):
        raise ConfigError(f"layer_types is {listed!r}; it must be a list of num_hidden_layers = {len(derived)} names")
    if unknown := sorted({str(name) for name in listed} - set(LAYER_TYPES)):
        raise UnsupportedModelError(f"layer_types has {unknown}; supported are {list(LAYER_TYPES)}")
    if family.layer_rule in ("full", "window") and listed != derived:
        raise UnsupportedModelError(
            f"layer_types is {listed}; all layers of {family.architecture} are alike, here {derived[0]!r}"
        )
    return listed


def _derived_layer_types(family: Family, values: Values) -> list[str]:
    """See `families.LayerRule`."""
    window = values.get("sliding_window") is not None and values.get("use_sliding_window", True)
    rule = family.layer_rule
    if rule == "full":
        slides = [False] * values["num_hidden_layers"]
    elif rule == "window":
        slides = [window] * values["num_hidden_layers"]
    elif rule == "upper":
        slides = [window and layer >= values["max_window_layers"] for layer in range(values["num_hidden_layers"])]
    elif rule == "period":
        slides = [(layer + 1) % values["sliding_window_pattern"] != 0 for layer in range(values["num_hidden_layers"])]
    else:
        slides = [window and not rotates for rotates in _rotating(family, values)]
    return [SLIDING if slide else FULL for slide in slides]


def _rotating(family: Family, values: Values) -> list[bool]:
    """Which layers have rotary positions: all, but for families with `no_rope_layers` (where 1 means that it has)."""
    count = values["num_hidden_layers"]
    if family.layer_rule != "no_rope":
        return [True] * count
    listed = values["no_rope_layers"]
    if listed is None:
        return [(layer + 1) % values["no_rope_layer_interval"] != 0 for layer in range(count)]
    if not isinstance(listed, list) or len(listed) < count or not all(entry in (0, 1) for entry in listed):
        raise ConfigError(f"no_rope_layers is {listed!r}; it must list 0 or 1 for each of {count} layers")
    return [bool(entry) for entry in listed[:count]]


def _layers(
    family: Family, values: Values, layer_types: list[str], by_type: Mapping[str, RopeConfig]
) -> tuple[tuple[RopeConfig, ...], tuple[LayerConfig, ...]]:
    """The distinct rotary embeddings that are used, and every layer's window and embedding."""
    window = values.get("sliding_window") if values.get("use_sliding_window", True) else None
    ropes: list[RopeConfig] = []
    layers = []
    for index, (layer_type, rotates) in enumerate(zip(layer_types, _rotating(family, values), strict=True)):
        if layer_type == SLIDING and window is None:
            raise ConfigError(
                f"layer {index} is {SLIDING}, but sliding_window is {values.get('sliding_window')!r}"
                + (f" and use_sliding_window {values['use_sliding_window']}" if "use_sliding_window" in values else "")
            )
        if rotates and by_type[layer_type] not in ropes:
            ropes.append(by_type[layer_type])
        layers.append(
            LayerConfig(
                sliding_window=window if layer_type == SLIDING else None,
                rope=ropes.index(by_type[layer_type]) if rotates else None,
            )
        )
    return tuple(ropes), tuple(layers)


def end_tokens(hf_config: Values, generation_config: Values, vocab_size: int) -> tuple[int, ...]:
    """End tokens that the two files name: generation_config.json's, or config.json's where that names none; the
    family's default where config.json is silent, too. Raises ConfigError."""
    tokens: tuple[int, ...] = _special_tokens(family_of(hf_config), hf_config, generation_config, vocab_size)[
        "eos_token_ids"
    ]
    return tokens


def _special_tokens(family: Family, config: Values, generation: Values, vocab_size: int) -> dict[str, Any]:
    """BOS, EOS and padding ids; the family's default counts only where config.json is silent and generation_config.json
    names none (and only if the vocabulary has it)."""
    found = {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        own, more = _token_ids(config, key), _token_ids(generation, key, " in generation_config.json")
        found[key] = (more or own) if key == "eos_token_id" else (own or more)
        if not found[key] and key not in config:
            found[key] = [token for token in _token_ids(family.defaults, key) if token < vocab_size]
    return {
        "bos_token_id": next(iter(found["bos_token_id"]), None),
        "eos_token_ids": tuple(found["eos_token_id"]),
        "pad_token_id": next(iter(found["pad_token_id"]), None),
    }


def _token_ids(source: Values, key: str, where: str = "") -> list[int]:
    """A file's token ids, each once; some files write "none" as -1."""
    value = source.get(key)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token <= MAX_COUNT for token in listed):
        raise ConfigError(f"{key}{where} is {value!r:.200}; it must be a token id or a list of them")
    return [token for token in dict.fromkeys(listed) if token >= 0]
