"""Checkpoints of several modalities whose language model alone is served: what their config.json says of it.

The text model's keys stand in an object `text_config`; what is around it is of other modalities and passed over by
name. `wrapped` makes the function that `jaxinfer.models.registry` wants of a family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.config import ConfigError, ModelConfig, UnsupportedModelError
from jaxinfer.models.config_reader import ConfigReader

TEXT_CONFIG = "text_config"
NOTE = (
    "language model only (--language-model-only): images, audio and video are refused, and the tensors of other "
    "modalities are not read"
)
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Both may say these. As in transformers and vLLM the outer one counts where it says something.
OUTER_FIRST = (*TOKENS, "tie_word_embeddings")
DTYPES = ("dtype", "torch_dtype")

ReadText = Callable[[ConfigReader], ModelConfig]


@dataclass(frozen=True)
class TextModels:
    """Which text models an architecture wraps.

    Attributes:
        reads: `model_type` of text_config -> reads it.
        default: the `model_type` of a text_config that names none.
        others: keys that say something of the other modalities, wherever they stand.
        flat: whether older files have no text_config, and its keys beside the others.
    """

    reads: Mapping[str, ReadText]
    default: str
    others: Sequence[str]
    flat: bool = False


def wrapped(models: TextModels) -> ReadText:
    """What reads a config.json around one of these text models.

    It raises UnsupportedModelError for a text_config of another model_type and for keys that are not understood, inside
    of it or around it, ConfigError for a text_config that is missing or malformed, and what the text model's own
    function raises.
    """

    def read(config: ConfigReader) -> ModelConfig:
        _pass_over(config, models.others)
        text = config.raw(TEXT_CONFIG)
        if text is None and models.flat and "hidden_size" in config:
            config.notes.append(NOTE)
            return models.reads[models.default](config)
        if text is None:
            raise ConfigError(
                f"config.json has no {TEXT_CONFIG}; {config.architecture} describes its language model there"
            )
        if not isinstance(text, dict):
            raise ConfigError(f"{TEXT_CONFIG} is {text!r:.200}; it must be an object")
        return _read_text(config, dict(text), models)

    return read


def text_settings(hf_config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`text_config` of a config.json, or all of one that has none."""
    text = hf_config.get(TEXT_CONFIG)
    return text if isinstance(text, dict) else hf_config


def _read_text(config: ConfigReader, text: dict[str, Any], models: TextModels) -> ModelConfig:
    name = text.get("model_type", models.default)
    if not isinstance(name, str) or name not in models.reads:
        allowed = sorted(models.reads)
        raise UnsupportedModelError(f"{TEXT_CONFIG}.model_type is {name!r:.200}; it must be one of {allowed}")
    inner = ConfigReader(
        text | _outer_values(config, text), config.architecture, config.generation_config, where=TEXT_CONFIG
    )
    _pass_over(inner, models.others)
    inner.notes.append(NOTE)
    try:
        model = models.reads[name](inner)
    except ConfigError as error:
        raise type(error)(f"{error}{inner.defaults_in(str(error))}") from error
    inner.refuse_unread(sorted(models.reads))
    return dataclasses.replace(model, notes=(*model.notes, *_twins(config, inner, text, models)))


def _outer_values(config: ConfigReader, text: dict[str, Any]) -> dict[str, Any]:
    """What is said around the text model's keys and counts before them."""
    found = {key: config.raw(key) for key in OUTER_FIRST if config.raw(key) is not None}
    dtypes = {key: config.raw(key) for key in DTYPES}
    if any(value is not None for value in dtypes.values()):
        found |= dtypes
    return found


def _pass_over(config: ConfigReader, keys: Sequence[str]) -> None:
    for key in keys:
        config.raw(key)


def _twins(config: ConfigReader, inner: ConfigReader, text: Mapping[str, Any], models: TextModels) -> list[str]:
    """Notes of keys that stand around text_config, too, as some releases of transformers wrote them.

    They are passed over, whatever they say.
    """
    notes = []
    for key in sorted(inner.keys_read - {*OUTER_FIRST, *DTYPES, *models.others}):
        if key in config and config.raw(key) != text.get(key):
            notes.append(
                f"config.json: {key} = {config.raw(key)!r:.80} outside of {TEXT_CONFIG} is passed over, as in "
                "transformers"
            )
    return notes
