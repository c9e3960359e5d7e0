"""config.json of models of several modalities: the language model's part is read, everything around it by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from jaxinfer.config import ConfigError, UnsupportedModelError
from jaxinfer.models.registry import end_tokens, model_config
from jaxinfer.models.wrappers import NOTE
from tests.jaxinfer.models import hub_configs
from tests.jaxinfer.models.hub_configs import ALL

WRAPPERS = ("gemma-3-4b", "Mistral-Small-3.1", "Ministral-3-8B", "Qwen2.5-VL-7B", "Qwen3-VL-8B")


def nested(name: str, **changes: Any) -> dict[str, Any]:
    """A published config.json whose text_config says something else; ... takes a key away."""
    text = ALL[name]["text_config"] | changes
    return ALL[name] | {"text_config": {key: value for key, value in text.items() if value is not ...}}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_model_says_that_it_is_served_as_a_text_model(name: str) -> None:
    assert model_config(ALL[name]).notes == (NOTE,)
    assert "--language-model-only" in NOTE


def test_a_ministral_is_the_same_alone_and_in_a_mistral_3() -> None:
    alone, inside = model_config(hub_configs.MINISTRAL_3_8B_TEXT), model_config(hub_configs.MINISTRAL_3_8B)
    assert dataclasses.replace(inside, architecture=alone.architecture) == alone
    assert alone.ropes[0].query_scaling == 0.1


def test_ministral_3_has_its_class_rope_where_the_file_has_none() -> None:
    silent = {key: value for key, value in hub_configs.MINISTRAL_3_8B_TEXT.items() if key != "rope_parameters"}
    assert model_config(silent).ropes == model_config(hub_configs.MINISTRAL_3_8B_TEXT).ropes


def test_qwen_2_5_vl_without_text_config_is_the_same() -> None:
    flat = dict(hub_configs.QWEN2_5_VL_7B)
    around = {"architectures", "model_type", "torch_dtype", "vision_config", "tie_word_embeddings"}
    text = {key: value for key, value in flat.items() if key not in around}
    whole = {key: value for key, value in flat.items() if key in around}
    for name in ("qwen2_5_vl", "qwen2_5_vl_text"):
        assert model_config(whole | {"text_config": text | {"model_type": name}}) == model_config(flat)


def test_keys_that_stand_around_text_config_too_are_passed_over_and_told_where_they_differ() -> None:
    """As transformers 4.52 to 4.56 wrote Qwen 2.5 VL."""
    text = {
        key: value for key, value in hub_configs.QWEN2_5_VL_7B.items() if key not in ("architectures", "vision_config")
    }
    rope = {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"}
    config = model_config(
        hub_configs.QWEN2_5_VL_7B | {"text_config": text | {"rope_scaling": rope}, "rms_norm_eps": 1.0}
    )
    assert dataclasses.replace(config, notes=()) == model_config(hub_configs.QWEN2_5_VL_7B)
    assert config.norm_eps == 1e-6
    assert [note.split(" outside")[0] for note in config.notes[1:]] == [
        "config.json: rms_norm_eps = 1.0",
        "config.json: rope_scaling = {'mrope_section': [16, 24, 24], 'type': 'mrope'}",
    ]


def test_what_is_said_around_the_text_model_counts_first() -> None:
    said = {"tie_word_embeddings": True, "dtype": "float32", "torch_dtype": None, "eos_token_id": [7, 8]}
    config = model_config(nested("Ministral-3-8B", dtype="bfloat16", eos_token_id=2, tie_word_embeddings=False) | said)
    assert (config.tie_word_embeddings, config.dtype, config.eos_token_ids) == (True, "float32", (7, 8))


@pytest.mark.parametrize("name", WRAPPERS)
def test_end_tokens_are_those_of_the_whole_config(name: str) -> None:
    config = model_config(ALL[name])
    assert end_tokens(ALL[name], {}, config.vocab_size) == config.eos_token_ids
    assert end_tokens(ALL[name], {"eos_token_id": 9}, config.vocab_size) == (9,)


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({key: v for key, v in hub_configs.GEMMA_3_4B.items() if key != "text_config"}, ["no text_config", "Gemma3For"]),
    (hub_configs.MISTRAL_SMALL_3_1 | {"text_config": None}, ["no text_config", "Mistral3For"]),
    (hub_configs.MISTRAL_SMALL_3_1 | {"text_config": []}, ["text_config is []", "object"]),
    ({"model_type": "qwen2_5_vl", "vision_config": {}}, ["no text_config", "Qwen2_5_VLFor"]),
    (nested("Mistral-Small-3.1", model_type="llama"), ["text_config.model_type is 'llama'", "ministral3", "mistral"]),
    (nested("gemma-3-4b", model_type=["gemma3_text"]), ["text_config.model_type is ['gemma3_text']", "gemma3_text"]),
    (nested("Qwen3-VL-8B", num_experts=8), ["text_config has num_experts", "mixture of experts"]),
    (nested("Qwen3-VL-8B", attention_gate=True), ["text_config has attention_gate = True", "not known"]),
    (nested("Qwen3-VL-8B", hidden_size=0), ["hidden_size is 0"]),
    (hub_configs.QWEN3_VL_8B | {"audio_config": {"d_model": 8}}, ["config.json has audio_config"]),
    (hub_configs.QWEN3_VL_8B | {"deepstack": 3}, ["config.json has deepstack = 3", "not known"]),
    (
        nested("Ministral-3-8B", rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        ["rope_type is 'default'", "yarn"],
    ),
    (
        nested(
            "Ministral-3-8B",
            rope_parameters={"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8},
        ),
        ["lacks ['llama_4_scaling_beta']"],
    ),
    (
        nested(
            "Ministral-3-8B",
            rope_parameters=hub_configs.MINISTRAL_3_8B_TEXT["rope_parameters"] | {"llama_4_scaling_beta": -0.1},
        ),
        ["query_scaling is -0.1", "0 or more"],
    ),
    (
        nested(
            "Ministral-3-8B",
            rope_parameters=hub_configs.MINISTRAL_3_8B_TEXT["rope_parameters"] | {"llama_4_scaling_beta": "x"},
        ),
        ["rope_parameters.llama_4_scaling_beta is 'x'"],
    ),
    (nested("gemma-3-4b", rope_scaling={"rope_type": "default", "mrope_section": [1, 2, 3]}), ["mrope_section"]),
]  # fmt: skip


@pytest.mark.parametrize(("config", "words"), REFUSED)
def test_what_is_not_understood_is_refused_by_name(config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((ConfigError, UnsupportedModelError)) as error:
        model_config(config)
    assert all(word in str(error.value) for word in words), str(error.value)
