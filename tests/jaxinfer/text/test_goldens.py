"""Every recorded folder gives transformers' ids and texts."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.jaxinfer.text.golden_cases import case, cases, read, tokenizer

NAMES = [entry["name"] for entry in cases()]


def _digest(ids: list[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_encode(name: str) -> None:
    texts, loaded = read("inputs.json")["texts"], tokenizer(name)
    for result in case(name)["results"]:
        text = texts[result["text"]]
        assert loaded.encode(text) == result["ids"], text
        plain = loaded.encode(text, add_special_tokens=False)
        expected: list[int] = result.get("plain", result["ids"])
        if "plain" in result and len(plain) > 3:  # recorded as first, length, last
            plain = [plain[0], len(plain), plain[-1]]
        assert plain == expected, text


@pytest.mark.parametrize("name", NAMES)
def test_decode(name: str) -> None:
    loaded = tokenizer(name)
    for result in case(name)["results"]:
        assert loaded.decode(result["ids"], skip_special_tokens=False) == result["full"]
        assert loaded.decode(result["ids"]) == result.get("skipped", result["full"])
    for ids, full, skipped in case(name)["random"]:
        assert loaded.decode(ids, skip_special_tokens=False) == full
        assert loaded.decode(ids) == skipped


@pytest.mark.parametrize("name", NAMES)
def test_vocabulary(name: str) -> None:
    loaded, recorded = tokenizer(name), case(name)
    assert loaded.vocab_size == recorded["size"]
    assert [index for index in range(loaded.vocab_size) if loaded.is_special(index)] == recorded["special"]
    assert set(loaded.special_tokens) == set(recorded["named"])
    for key in ("bos_token", "eos_token", "pad_token"):
        assert getattr(loaded, f"{key}_id") == recorded["named"].get(key)


@pytest.mark.parametrize("name", NAMES)
def test_long_texts(name: str) -> None:
    loaded = tokenizer(name)
    for (unit, count), (length, ids_digest, text_digest) in zip(
        read("inputs.json")["long_texts"], case(name)["long"], strict=True
    ):
        ids = loaded.encode(unit * count)
        assert len(ids) == length
        assert _digest(ids) == ids_digest
        text = loaded.decode(ids, skip_special_tokens=False)
        assert hashlib.sha256(text.encode()).hexdigest() == text_digest


def test_goldens_cover_every_pipeline() -> None:
    """A case of each class, and cases that differ where the options say they should: else they prove nothing."""
    classes = {entry["class"] for entry in cases()}
    rebuilt = {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer"}
    assert classes == {"TokenizersBackend", *rebuilt}
    texts = read("inputs.json")["texts"]

    def ids(name: str, text: str) -> Any:
        index = texts.index(text)
        return tuple(next(result["ids"] for result in case(name)["results"] if result["text"] == index))

    assert ids("generic_model_bpe", "Hello</s>world") != ids("generic_model_not_legacy", "Hello</s>world")
    for text, names in {
        "<|turn|>user says  <|turn|> hi<|turn|>": ["llama_model", "llama_model_legacy", "llama_model_no_prefix"],
        "text<s>glued<s><s></s>": ["llama_json", "llama_json_legacy", "llama_json_no_prefix"],
        "Hello world": ["llama_model", "generic_model_scores", "byte_level", "byte_level_prefix"],
        " Hello": ["llama_model", "generic_model_bpe", "generic_model_scores"],
        "Hello</s>world": ["llama_model", "generic_model_bpe"],
    }.items():
        assert len({ids(name, text) for name in names}) == len(names), text
