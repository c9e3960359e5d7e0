"""generation_config.json: what sets a default, and what is named because it has no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jaxinfer.generation_config import generation_defaults, generation_notes, passed_over
from serving.commands.options import generation_config_notes
from tests.fakes import write_model


def test_defaults_are_those_of_vllm() -> None:
    """get_diff_sampling_param of vLLM 0.32; do_sample is not among them."""
    given = {
        "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 0.5, "frequency_penalty": 0.25, "max_new_tokens": 100, "do_sample": False,
    }  # fmt: skip
    assert generation_defaults(given) == {
        "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 0.5, "frequency_penalty": 0.25, "max_tokens": 100,
    }  # fmt: skip
    assert generation_defaults({"temperature": None, "eos_token_id": 3}) == {}


@pytest.mark.parametrize(
    ("name", "value", "neutral"),
    [
        ("no_repeat_ngram_size", 3, 0),
        ("suppress_tokens", [1, 2], []),
        ("begin_suppress_tokens", [1], None),
        ("do_sample", False, True),
        ("num_beams", 4, 1),
        ("forced_bos_token_id", 0, None),
        ("forced_eos_token_id", [1], None),
        ("bad_words_ids", [[1, 2]], None),
        ("typical_p", 0.9, 1.0),
        ("min_new_tokens", 5, None),
        ("min_length", 5, 0),
        ("max_length", 4096, None),
        ("stop_strings", ["x"], None),
        ("guidance_scale", 1.5, 1),
        ("exponential_decay_length_penalty", [10, 1.5], None),
        ("a_field_of_tomorrow", "x", None),
    ],
)
def test_what_has_no_effect_is_named_unless_it_says_nothing(name: str, value: Any, neutral: Any) -> None:
    assert passed_over({"temperature": 0.5, name: value}) == [f"{name} = {value!r}"]
    assert passed_over({name: neutral}) == []
    assert passed_over({name: None}) == []


def test_what_changes_no_text_is_not_worth_a_word() -> None:
    plain = {
        "_from_model_config": True, "transformers_version": "4.40.0", "bos_token_id": 1, "eos_token_id": [2],
        "pad_token_id": 0, "use_cache": True, "cache_implementation": "hybrid", "do_sample": True, "top_k": 50,
    }  # fmt: skip
    assert generation_notes(plain) == ()


def test_one_sentence_with_long_values_cut() -> None:
    (note,) = generation_notes({"suppress_tokens": list(range(100)), "num_beams": 2})
    assert note.startswith("generation_config.json: without effect here: suppress_tokens = [0, 1, 2, ")
    assert note.endswith("..., num_beams = 2")
    assert len(note) < 140


def test_a_server_is_told_unless_the_file_is_left_out(tmp_path: Path) -> None:
    folder = write_model(tmp_path, temperature=0.5, no_repeat_ngram_size=3)
    note = "generation_config.json: without effect here: no_repeat_ngram_size = 3"
    assert generation_config_notes(folder, "auto") == (note,)
    assert generation_config_notes(folder, "none") == ()
