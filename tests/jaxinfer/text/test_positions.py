"""Where each token ends in the text: judged by decoding every beginning at once."""

from __future__ import annotations

import random

import pytest

from jaxinfer.text import IncrementalDetokenizer, Tokenizer
from tests.jaxinfer.text.golden_cases import tokenizer

KINDS = ["byte_level", "byte_level_prefix", "llama_json", "llama_json_no_prefix", "gemma_json", "metaspace_unigram"]
TEXTS = ["the cat 🙂 sat", "漢字 и ё 👩‍👩‍👧 x", "a\n\n😀😀\tb", "né €5"]
BAD = "\ufffd"


def positions(loaded: Tokenizer, prompt: list[int], ids: list[int]) -> tuple[list[int], str]:
    detokenizer = IncrementalDetokenizer(loaded, prompt)
    ends, text = [], ""
    for index in ids:
        text += detokenizer.push([index])
        ends.append(detokenizer.position)
    text += detokenizer.finish()
    assert detokenizer.position == len(text)
    return ends, text


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_token_ends_where_the_text_of_all_so_far_does(name: str, text: str) -> None:
    """As in vLLM 0.32, a token that leaves a character incomplete adds nothing and the one that completes it has it."""
    loaded = tokenizer(name)
    prompt = loaded.encode("word", add_special_tokens=False)
    ids = loaded.encode(text, add_special_tokens=False)
    ends, whole = positions(loaded, prompt, ids)
    before = len(loaded.decode(prompt))
    expected, last = [], 0
    for i in range(1, len(ids) + 1):
        so_far = loaded.decode([*prompt, *ids[:i]])
        if not so_far.endswith(BAD):
            last = len(so_far) - before
        expected.append(last)
    assert ends == expected
    assert BAD not in whole


@pytest.mark.parametrize("name", KINDS)
def test_positions_of_any_ids_rise_to_the_texts_end(name: str) -> None:
    loaded = tokenizer(name)
    random_ = random.Random(7)
    for _ in range(50):
        ids = [random_.randrange(min(600, loaded.vocab_size)) for _ in range(40)]
        ends, whole = positions(loaded, ids[:5], ids[5:])
        assert ends == sorted(ends)
        assert ends[-1] <= len(whole)
