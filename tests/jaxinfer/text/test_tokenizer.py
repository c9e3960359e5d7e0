"""The Tokenizer object beyond the recorded ids: arguments, ids of names, special tokens once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from jaxinfer.text import TextError, load_tokenizer
from tests.jaxinfer.text.golden_cases import GOLDENS, cases, tokenizer

CHAT = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("text", ["a\ud800b", "\udc00", "ok\ud83d"])
def test_lone_surrogates_are_refused_by_name(text: str) -> None:
    loaded = tokenizer("byte_level")
    position = next(index for index, character in enumerate(text) if "\ud800" <= character <= "\udfff")
    with pytest.raises(TextError, match=rf"surrogate U\+{ord(text[position]):04X} at character {position}"):
        loaded.encode(text)


def test_encode_wants_a_string() -> None:
    with pytest.raises(TextError, match="text must be a string, not list"):
        tokenizer("byte_level").encode(["a", "b"])  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3"])
def test_truncation_is_checked(value: Any) -> None:
    loaded = tokenizer("byte_level")
    message = "truncate_prompt_tokens must be an integer >= 1 or None, got"
    with pytest.raises(TextError, match=message):
        loaded.encode("hello", truncate_prompt_tokens=value)
    with pytest.raises(TextError, match=message):
        loaded.encode_chat(CHAT, template="x", truncate_prompt_tokens=value)


@pytest.mark.parametrize("name", [entry["name"] for entry in cases()])
@pytest.mark.parametrize("text", ["the quick brown fox", "a quick brown fox " * 200, ""], ids=["short", "long", "none"])
def test_truncation_is_the_librarys_on_the_left(name: str, text: str) -> None:
    loaded = tokenizer(name)
    library = Backend.from_str(loaded._backend.to_str())
    added = library.num_special_tokens_to_add(is_pair=False)
    for special in (True, False):
        ids = loaded.encode(text, add_special_tokens=special)
        for count in {added, added + 1, added + 2, len(ids) - 1, len(ids), len(ids) + 2}:
            if count < max(1, added):  # where the library forgets its limit
                continue
            library.enable_truncation(count, direction="left")
            expected = library.encode(text, add_special_tokens=special).ids
            found = loaded.encode(text, add_special_tokens=special, truncate_prompt_tokens=count)
            assert found == expected, (special, count)
            assert len(found) <= count
    if added > 1:
        assert loaded.encode("the quick", truncate_prompt_tokens=1) == loaded.encode("the quick")[-1:]


def test_truncation_of_a_chat_keeps_the_last_ids() -> None:
    loaded = tokenizer("llama_json")
    chat = loaded.encode_chat(CHAT, template="{{ messages[0].content }} there")
    assert loaded.encode_chat(CHAT, template="{{ messages[0].content }} there", truncate_prompt_tokens=2) == chat[-2:]


def test_special_tokens_once_in_chats_and_as_spelled_in_prompts() -> None:
    loaded = tokenizer("byte_level")
    bos = loaded.bos_token_id
    assert bos is not None
    assert loaded.encode("hello").count(bos) == 1
    assert loaded.encode("hello", add_special_tokens=False).count(bos) == 0
    # As transformers does it: what is spelled counts, and the post-processor adds its own.
    assert loaded.encode("<|begin|>hello").count(bos) == 2
    template = "{{ bos_token }}{{ messages[0].content }}"
    assert loaded.encode_chat(CHAT, template=template) == [bos, *loaded.encode("hi", add_special_tokens=False)]


def test_pieces_and_special_ids() -> None:
    loaded = tokenizer("llama_model")
    assert [loaded.token_to_piece(index) for index in range(5)] == ["<unk>", "<s>", "</s>", "<|turn|>", "<0x00>"]
    assert [loaded.is_special(index) for index in range(4)] == [True, True, True, False]
    assert loaded.bos_token_id == 1
    assert loaded.eos_token_id == 2
    assert loaded.pad_token_id is None
    assert loaded.special_tokens["eos_token"] == "</s>"
    # Embeddings are often padded beyond the vocabulary.
    assert loaded.token_to_piece(loaded.vocab_size) == ""
    assert not loaded.is_special(loaded.vocab_size)
    assert loaded.decode([loaded.vocab_size, 10**9]) == ""


@pytest.mark.parametrize("bad", [-1, 1 << 32, 1.5, True, "1", None])
def test_ids_are_checked(bad: Any) -> None:
    loaded = tokenizer("byte_level")
    with pytest.raises(TextError, match=r"ids\[1\] must be an integer in 0\.\.4294967295, got"):
        loaded.decode([1, bad])
    with pytest.raises(TextError, match="token id"):
        loaded.token_to_piece(bad)


def test_a_text_that_the_vocabulary_cannot_express(tmp_path: Path) -> None:
    document = json.loads((GOLDENS / "vocabularies" / "word_level.json").read_text(encoding="utf-8"))
    document["model"]["unk_token"] = "<nothing>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("hello world")
    with pytest.raises(TextError, match="cannot be encoded"):
        loaded.encode("zyzzyva")
