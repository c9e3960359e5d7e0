"""Tokens by their bytes, for llguidance: every kind of tokenizer that is loaded here."""

from __future__ import annotations

import numpy as np
import pytest

from jaxinfer.constraints.vocabulary import ComingVocabulary, Vocabulary
from jaxinfer.model_path import demo_path
from jaxinfer.text import load_tokenizer
from tests.jaxinfer.text.golden_cases import cases
from tests.jaxinfer.text.golden_cases import tokenizer as load

llguidance = pytest.importorskip("llguidance")

ANY_TEXT = r'{"grammars": [{"lark_grammar": "start: /(.|\\n)*/"}]}'


def let_through(vocabulary: Vocabulary, grammar: str = ANY_TEXT) -> set[int]:
    matcher = llguidance.LLMatcher(vocabulary.tokenizer, grammar)
    assert not matcher.is_error(), matcher.get_error()
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


@pytest.mark.parametrize("name", [entry["name"] for entry in cases()])
def test_every_token_is_its_bytes(name: str) -> None:
    tokenizer = load(name)
    size = tokenizer.vocab_size
    assert tokenizer.decode_plan.all_bytes(size + 3) == [tokenizer.token_bytes(i) for i in range(size + 3)]
    vocabulary = Vocabulary(tokenizer, size + 5, [1])
    found = let_through(vocabulary)
    assert found.isdisjoint(range(size, size + 5))
    assert found & set(vocabulary.special) == {1}
    for index in range(size):
        text = tokenizer.token_bytes(index)
        if index not in vocabulary.special and not starts_no_text(text):
            assert index in found, (index, text)


def starts_no_text(data: bytes) -> bool:
    """No text begins with these bytes: there are none, or they are the rest of a character, or never part of one."""
    return not data or data[0] & 0xC0 == 0x80 or data[0] in (0xC0, 0xC1, *range(0xF5, 0x100)) or whole_error(data)


def whole_error(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return "unexpected end" not in error.reason
    return False


@pytest.mark.parametrize("name", [entry["name"] for entry in cases()])
@pytest.mark.parametrize("text", [' "name": ', "abc", "\n\n  {", "</s><|im_end|>", "é 中 ½ ﬁ"])
def test_a_text_within_another_keeps_its_bytes(name: str, text: str) -> None:
    """Whatever the tokenizer does at the start of a text, or to its characters."""
    tokenizer = load(name)
    ids = Vocabulary(tokenizer, tokenizer.vocab_size, [1]).tokenizer.tokenize_str(text)
    assert not any(tokenizer.is_special(i) for i in ids)
    said = b"".join(tokenizer.token_bytes(i) for i in ids)
    plain = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size) if not tokenizer.is_special(i)}
    if all(bytes((byte,)) in plain for byte in text.encode()):
        assert said == text.encode()
    else:
        assert said in (text.encode(), b"")


def test_a_forced_text_has_the_models_own_tokens() -> None:
    tokenizer = load_tokenizer(demo_path())
    vocabulary = Vocabulary(tokenizer, 4096, [2, 7])
    matcher = llguidance.LLMatcher(
        vocabulary.tokenizer, r'{"grammars": [{"lark_grammar": "start: \"the person is \" /[a-z]/"}]}'
    )
    forced = matcher.compute_ff_tokens()
    assert forced == tokenizer.encode("the person is", add_special_tokens=False)[: len(forced)]
    assert len(forced) >= 2


def test_a_model_without_end_tokens() -> None:
    tokenizer = load_tokenizer(demo_path())
    vocabulary = Vocabulary(tokenizer, 4096, [])
    assert vocabulary.words == 129
    assert max(let_through(vocabulary)) == 4096, "the end is a token that no logits have"


def test_what_the_thread_raises_is_told() -> None:
    def fails() -> Vocabulary:
        raise ValueError("no such file")

    coming = ComingVocabulary(fails)
    assert coming.seconds >= 0
    with pytest.raises(ValueError, match="no such file"):
        coming.get()
