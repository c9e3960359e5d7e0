"""Which tokenizer class a folder means."""

from __future__ import annotations

import pytest

from jaxinfer.text.pipelines import GENERIC, class_name, recipe_for


@pytest.mark.parametrize(
    ("tokenizer_class", "config_class", "model_type", "byte_level", "expected"),
    [
        ("LlamaTokenizer", None, "llama", False, "LlamaTokenizer"),
        ("LlamaTokenizerFast", None, "llama", False, "LlamaTokenizer"),
        ("LlamaTokenizerFast", None, "llama", True, GENERIC),  # Llama 3 files under the Llama 2 name
        ("LlamaTokenizerFast", None, "qwen2", True, "Qwen2Tokenizer"),  # distillations onto Qwen 2
        ("LlamaTokenizer", None, "mistral", False, GENERIC),
        ("LlamaTokenizer", None, "phi3", False, GENERIC),
        ("GPT2TokenizerFast", None, "phi3", True, GENERIC),
        ("GPT2Tokenizer", None, "granite", True, GENERIC),
        ("GPT2Tokenizer", None, "olmo2", True, GENERIC),
        ("GPT2Tokenizer", None, "llama", True, "GPT2Tokenizer"),
        ("PreTrainedTokenizerFast", None, "llama", True, GENERIC),
        ("PreTrainedTokenizerFast", None, "qwen2", True, "Qwen2Tokenizer"),
        ("PreTrainedTokenizerFast", None, "qwen3", True, GENERIC),
        ("Qwen2Tokenizer", None, "qwen3", True, "Qwen2Tokenizer"),
        ("GemmaTokenizerFast", None, "gemma3_text", False, "GemmaTokenizer"),
        ("GemmaTokenizer", None, "gemma2", False, "GemmaTokenizer"),
        ("LlamaTokenizer", None, "gemma2", False, "LlamaTokenizer"),
        (None, "LlamaTokenizer", "llama", False, "LlamaTokenizer"),
        ("GPT2Tokenizer", "LlamaTokenizer", "llama", False, "GPT2Tokenizer"),
        (None, None, "qwen3", True, "Qwen2Tokenizer"),
        (None, None, "gemma", False, "GemmaTokenizer"),
        (None, None, "llama", False, GENERIC),
        (None, None, None, False, GENERIC),
        ("LlamaTokenizer", None, None, False, "LlamaTokenizer"),
        ("SomebodysTokenizer", None, "llama", False, "SomebodysTokenizer"),
        ("Phi3Tokenizer", None, "llama", False, "LlamaTokenizer"),  # an alias in transformers 5.24
        ("Phi3TokenizerFast", None, "gemma3_text", False, "LlamaTokenizer"),
        ("Phi3Tokenizer", None, "phi3", False, GENERIC),
        ("BloomTokenizerFast", None, "llama", True, GENERIC),
    ],
)
def test_class_name(
    tokenizer_class: str | None, config_class: str | None, model_type: str | None, byte_level: bool, expected: str
) -> None:
    found = class_name(
        tokenizer_class=tokenizer_class, config_class=config_class, model_type=model_type, byte_level_json=byte_level
    )
    assert found == expected


def test_only_rebuilding_classes_have_a_recipe() -> None:
    assert recipe_for(GENERIC) is None
    assert recipe_for("SomebodysTokenizer") is None
    for name in ("LlamaTokenizer", "GemmaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer"):
        recipe = recipe_for(name)
        assert recipe is not None
        assert recipe.name == name


@pytest.mark.parametrize(
    ("tokenizer_class", "model_type", "expected"),
    [
        ("LlamaTokenizerFast", "llama", "LlamaTokenizer"),
        ("LlamaTokenizer", "phi3", "LlamaTokenizer"),
        ("PreTrainedTokenizerFast", "qwen2", GENERIC),
        (None, "qwen2", "Qwen2Tokenizer"),
    ],
)
def test_with_code_of_its_own_the_declared_class_counts(
    tokenizer_class: str | None, model_type: str, expected: str
) -> None:
    found = class_name(
        tokenizer_class=tokenizer_class, config_class=None, model_type=model_type, byte_level_json=True, own_code=True
    )
    assert found == expected
