"""Hugging Face config.json to `ModelConfig`: finds the family by the architecture's name and lets its function read.

Standard library only. No key that could change the network's results is passed over in silence: a family's function
reads a key or names the only values of it that it can mean; what it does not ask for is known to be harmless, is off
(null, false, 0, empty), or is refused by name (`ConfigReader.refuse_unread`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxinfer.config import ConfigError, ModelConfig, UnsupportedModelError
from jaxinfer.models.config_reader import ConfigReader, Values
from jaxinfer.models.families.apertus import apertus
from jaxinfer.models.families.arcee import arcee
from jaxinfer.models.families.decilm import decilm
from jaxinfer.models.families.exaone4 import exaone4
from jaxinfer.models.families.gemma import gemma2, gemma3
from jaxinfer.models.families.glm import glm4_moe
from jaxinfer.models.families.gpt_oss import gpt_oss
from jaxinfer.models.families.granite import granite, granite_moe
from jaxinfer.models.families.hunyuan import hunyuan_dense
from jaxinfer.models.families.llama import llama
from jaxinfer.models.families.mistral import ministral3, mistral, mixtral
from jaxinfer.models.families.multimodal import GEMMA3, MISTRAL3, QWEN2_5_VL, QWEN3_VL
from jaxinfer.models.families.olmo import olmo2, olmo3, olmoe
from jaxinfer.models.families.phi3 import phi3
from jaxinfer.models.families.qwen import qwen2, qwen3
from jaxinfer.models.families.qwen_moe import qwen2_moe, qwen3_moe
from jaxinfer.models.families.seed_oss import seed_oss
from jaxinfer.models.families.smollm3 import smollm3
from jaxinfer.models.low_rank import with_ranks
from jaxinfer.models.wrappers import TEXT_CONFIG, TOKENS, TextModels, text_settings, wrapped

ReadFamily = Callable[[ConfigReader], ModelConfig]


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        architecture: its name in `architectures` of config.json.
        model_type: its name in configs without `architectures`.
        read: makes a model's configuration of its config.json; raises ConfigError for what it does not understand.
        aliases: other spellings of the architecture.
        text_models: of an architecture of several modalities, the text models in it; None: it is a text model.
    """

    architecture: str
    model_type: str
    read: ReadFamily
    aliases: tuple[str, ...] = ()
    text_models: TextModels | None = None


FAMILIES: dict[str, Family] = {}  # by architecture


def register(architecture: str, model_type: str, read: ReadFamily | TextModels, aliases: tuple[str, ...] = ()) -> None:
    """Add a family; see `Family`. Raises ValueError for a name that another family has already."""
    if isinstance(read, TextModels):
        family = Family(architecture, model_type, wrapped(read), aliases, read)
    else:
        family = Family(architecture, model_type, read, aliases)
    for other in FAMILIES.values():
        if taken := {architecture, *aliases} & {other.architecture, *other.aliases}:
            raise ValueError(f"architecture {taken.pop()!r} is registered already, for {other.architecture}")
        if model_type == other.model_type:
            raise ValueError(f"model_type {model_type!r} is registered already, for {other.architecture}")
    FAMILIES[architecture] = family


# Other names: of the first conversions to transformers, and of ASVD4LLM (`jaxinfer.models.low_rank`).
register("LlamaForCausalLM", "llama", llama, aliases=("LLaMAForCausalLM", "ASVDLlamaForCausalLM"))
register("MistralForCausalLM", "mistral", mistral)
register("Ministral3ForCausalLM", "ministral3", ministral3)
register("Qwen2ForCausalLM", "qwen2", qwen2, aliases=("ASVDQwen2ForCausalLM",))
register("Qwen3ForCausalLM", "qwen3", qwen3)
register("Gemma2ForCausalLM", "gemma2", gemma2)
register("Gemma3ForCausalLM", "gemma3_text", gemma3)
register("Phi3ForCausalLM", "phi3", phi3)
register("Olmo2ForCausalLM", "olmo2", olmo2)
register("GraniteForCausalLM", "granite", granite)
register("SmolLM3ForCausalLM", "smollm3", smollm3)
register("Exaone4ForCausalLM", "exaone4", exaone4)
register("SeedOssForCausalLM", "seed_oss", seed_oss)
register("Olmo3ForCausalLM", "olmo3", olmo3)
register("ArceeForCausalLM", "arcee", arcee)
register("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", hunyuan_dense)
register("ApertusForCausalLM", "apertus", apertus)
register("DeciLMForCausalLM", "nemotron-nas", decilm)
register("MixtralForCausalLM", "mixtral", mixtral)
register("Qwen2MoeForCausalLM", "qwen2_moe", qwen2_moe)
register("Qwen3MoeForCausalLM", "qwen3_moe", qwen3_moe)
register("OlmoeForCausalLM", "olmoe", olmoe)
register("GraniteMoeForCausalLM", "granitemoe", granite_moe)
register("GraniteMoeSharedForCausalLM", "granitemoeshared", granite_moe)
register("Glm4MoeForCausalLM", "glm4_moe", glm4_moe)
register("GptOssForCausalLM", "gpt_oss", gpt_oss)
register("Gemma3ForConditionalGeneration", "gemma3", GEMMA3)
register("Mistral3ForConditionalGeneration", "mistral3", MISTRAL3)
register("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", QWEN2_5_VL)
register("Qwen3VLForConditionalGeneration", "qwen3_vl", QWEN3_VL)


def supported_architectures() -> list[str]:
    return sorted(FAMILIES)


def model_config(hf_config: dict[str, Any], generation_config: dict[str, Any] | None = None) -> ModelConfig:
    """Translate the parsed config.json (and generation_config.json, for special tokens) of a Hugging Face folder.

    Raises UnsupportedModelError for an architecture, rope type, key or value that is not supported and ConfigError
    for a malformed or contradictory config; both name the field, its value and what is allowed.
    """
    if not isinstance(hf_config, dict):
        raise ConfigError(f"config.json holds {type(hf_config).__name__}; it must be an object")
    family = family_of(hf_config)
    reader = ConfigReader(hf_config, family.architecture, generation_config)
    try:
        config = with_ranks(family.read(reader), reader)
    except ConfigError as error:
        raise type(error)(f"{error}{reader.defaults_in(str(error))}") from error
    reader.refuse_unread(supported_architectures())
    return config


def family_of(hf_config: Values) -> Family:
    """The family that `architectures` names, or `model_type` where a config has no architectures.

    Raises UnsupportedModelError for a name that is not registered, ConfigError for several.
    """
    names = hf_config.get("architectures")
    if names is not None and (not isinstance(names, list) or len(names) > 1):
        raise ConfigError(f"architectures is {names!r}; it must name exactly one of {supported_architectures()}")
    for family in FAMILIES.values():
        if names and names[0] in (family.architecture, *family.aliases):
            return family
        if not names and hf_config.get("model_type") == family.model_type:
            return family
    what = f"architecture {names[0]!r}" if names else f"model_type {hf_config.get('model_type')!r}"
    raise UnsupportedModelError(f"{what} is not supported; supported are {supported_architectures()}")


def end_tokens(hf_config: Values, generation_config: Values, vocab_size: int) -> tuple[int, ...]:
    """End tokens that the two files name: generation_config.json's, or config.json's where that names none; the
    family's default where config.json is silent, too. Raises ConfigError."""
    family = family_of(hf_config)
    named = _tokens(hf_config) | {"vocab_size": vocab_size}
    if family.text_models is not None:
        text = text_settings(hf_config)
        kind = text.get("model_type") if text is not hf_config else None
        named |= {TEXT_CONFIG: _tokens(text) | {"vocab_size": vocab_size} | ({"model_type": kind} if kind else {})}
    return family.read(ConfigReader(named, family.architecture, generation_config)).eos_token_ids


def _tokens(settings: Values) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in TOKENS}
