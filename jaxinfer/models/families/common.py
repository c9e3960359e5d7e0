"""What nearly all families read alike: sizes, types and token ids (`read_common`), and which layers have a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.config import Activation, ConfigError, DTypeName, UnsupportedModelError
from jaxinfer.models import known_keys
from jaxinfer.models.config_reader import MAX_COUNT, ConfigReader, check_count
from jaxinfer.models.rope_parameters import FULL, LAYER_TYPES, SLIDING

# Spelling in config.json -> ModelConfig.activation. gelu_new is the same tanh formula as gelu_pytorch_tanh.
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

# float16 has no counterpart here; bfloat16 is as large and covers its range. Ask for float32 to keep all its digits.
DTYPES: Mapping[str, DTypeName] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "bfloat16"}


@dataclass(frozen=True)
class Common:
    """What every family's config.json says, named as in `ModelConfig` and its layers. Sizes in elements, lengths in
    tokens."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    activation: Activation
    norm_eps: float
    tie_word_embeddings: bool
    dtype: DTypeName
    context_length: int | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None


def read_common(
    config: ConfigReader,
    *,
    vocab_size: int = 32000,
    hidden_size: int = 4096,
    intermediate_size: int = 11008,
    num_hidden_layers: int = 32,
    num_attention_heads: int = 32,
    num_key_value_heads: int | None = None,
    head_dim: int | None = None,
    max_position_embeddings: int = 2048,
    activation_key: str = "hidden_act",
    activation: str = "silu",
    activations: Mapping[str, Activation] = ACTIVATIONS,
    rms_norm_eps: float = 1e-6,
    tie_word_embeddings: bool = False,
    bos_token_id: int | None = 1,
    eos_token_id: int | None = 2,
    pad_token_id: int | None = None,
) -> Common:
    """Read the keys that every family has.

    Args: the family's values where config.json has none; those here are Llama's. `num_key_value_heads` None stands for
        as many as query heads, `head_dim` None for hidden_size / num_attention_heads, and so they do in the file.
        `activations` are the names that the family has, and what they mean.

    Raises UnsupportedModelError for an unknown activation or dtype, ConfigError for a value that cannot be meant.
    """
    vocab_size = config.count("vocab_size", vocab_size)
    hidden_size = config.count("hidden_size", hidden_size)
    intermediate_size = config.count("intermediate_size", intermediate_size)
    num_layers = config.count("num_hidden_layers", num_hidden_layers)
    num_heads = config.count("num_attention_heads", num_attention_heads)
    num_kv_heads = config.optional_count("num_key_value_heads", num_key_value_heads)
    head_dim = config.optional_count("head_dim", head_dim)
    max_position_embeddings = config.count("max_position_embeddings", max_position_embeddings)
    return Common(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads or num_heads,
        head_dim=head_dim or _head_dim(hidden_size, num_heads),
        max_position_embeddings=max_position_embeddings,
        activation=config.choice(activation_key, activation, activations),
        norm_eps=config.positive("rms_norm_eps", rms_norm_eps),
        tie_word_embeddings=config.switch("tie_word_embeddings", tie_word_embeddings),
        dtype=_dtype(config),
        context_length=_context_length(config, max_position_embeddings),
        bos_token_id=next(iter(_special_tokens(config, "bos_token_id", bos_token_id, vocab_size)), None),
        eos_token_ids=tuple(_special_tokens(config, "eos_token_id", eos_token_id, vocab_size)),
        pad_token_id=next(iter(_special_tokens(config, "pad_token_id", pad_token_id, vocab_size)), None),
    )


def read_layer_types(config: ConfigReader, derived: Sequence[str], alike: bool = False) -> list[str]:
    """One of `LAYER_TYPES` for each layer, as config.json lists them.

    Args:
        derived: those that follow from the other keys; they count where there is no list.
        alike: whether a list must say the same, since all layers of this family are alike.

    Raises UnsupportedModelError, or ConfigError if this is no list of one name per layer.
    """
    listed = config.raw("layer_types")
    if listed is None:
        return list(derived)
    if not isinstance(listed, list) or len(listed) != len(derived):
        raise ConfigError(f"layer_types is {listed!r}; it must be a list of num_hidden_layers = {len(derived)} names")
    if unknown := sorted({str(name) for name in listed} - set(LAYER_TYPES)):
        raise UnsupportedModelError(f"layer_types has {unknown}; supported are {list(LAYER_TYPES)}")
    if alike and listed != list(derived):
        raise UnsupportedModelError(
            f"layer_types is {listed}; all layers of {config.architecture} are alike, here {derived[0]!r}"
        )
    return listed


def layer_windows(
    layer_types: Sequence[str], sliding_window: int | None, use_sliding_window: bool | None = None
) -> list[int | None]:
    """The window of each layer, tokens; None for those that see everything.

    Args:
        use_sliding_window: None for a family that does not have this key.

    Raises ConfigError if a layer is to slide and there is no window.
    """
    for index, layer_type in enumerate(layer_types):
        if layer_type == SLIDING and (sliding_window is None or use_sliding_window is False):
            raise ConfigError(
                f"layer {index} is {SLIDING}, but sliding_window is {sliding_window!r}"
                + ("" if use_sliding_window is None else f" and use_sliding_window {use_sliding_window}")
            )
    return [sliding_window if layer_type == SLIDING else None for layer_type in layer_types]


def full_layers(config: ConfigReader, num_layers: int) -> list[int | None]:
    """The windows of a family that has none."""
    return layer_windows(read_layer_types(config, [FULL] * num_layers, alike=True), None)


def windowed_layers(config: ConfigReader, num_layers: int, sliding_window: int | None) -> list[int | None]:
    """The windows of a family where all layers have the same one, or none."""
    derived = [FULL if sliding_window is None else SLIDING] * num_layers
    return layer_windows(read_layer_types(config, derived, alike=True), sliding_window)


def _head_dim(hidden_size: int, num_heads: int) -> int:
    if hidden_size % num_heads:
        raise ConfigError(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}, and no head_dim is given"
        )
    return hidden_size // num_heads


def _dtype(config: ConfigReader) -> DTypeName:
    """The checkpoint's type: `dtype`, or `torch_dtype` in older files; float32 where neither says.

    Of a folder whose config.json does not say, `checkpoints.folder` asks the tensors.
    """
    key = "dtype" if config.raw("dtype") is not None else "torch_dtype"
    name = config.raw(key)
    name = "float32" if name in (None, "auto") else str(name).removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedModelError(f"{key} is {name!r:.200}; it must be one of {sorted(DTYPES)}")
    return DTYPES[name]


def _context_length(config: ConfigReader, positions: int) -> int | None:
    """The length that a key other than max_position_embeddings sets; None where that one decides.

    As in vLLM 0.32: model_max_length decides where it is given, else the shortest of all keys for a length does.
    """
    given = {key: value for key in known_keys.LENGTHS if (value := config.raw(key)) is not None}
    for key, value in given.items():
        check_count(key, value)
    shortest: int = given.get("model_max_length") or min([positions, *given.values()])
    return None if shortest == positions else shortest


def _special_tokens(config: ConfigReader, key: str, default: int | None, vocab_size: int) -> list[int]:
    """Token ids of one kind. Of end tokens generation_config.json's count before config.json's, else the other way.

    The family's default counts only where config.json is silent and generation_config.json names none (and only if the
    vocabulary has it).
    """
    own = _token_ids(config.raw(key), key)
    other = _token_ids(config.generation_config.get(key), f"{key} in generation_config.json")
    found = (other or own) if key == "eos_token_id" else (own or other)
    if not found and key not in config:
        fallback = config.raw(key, default)
        return [fallback] if fallback is not None and fallback < vocab_size else []
    return found


def _token_ids(value: Any, name: str) -> list[int]:
    """A file's token ids, each once; some files write "none" as -1."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token <= MAX_COUNT for token in listed):
        raise ConfigError(f"{name} is {value!r:.200}; it must be a token id or a list of them")
    return [token for token in dict.fromkeys(listed) if token >= 0]
