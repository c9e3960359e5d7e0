"""Budgets of reasoning and words to hold back, without a model: by the tokens that are let through."""

from __future__ import annotations

import random

import numpy as np
import pytest

from jaxinfer.constraints.guide import BadWords, Guide
from jaxinfer.constraints.thinking import Pieces, Thinking
from jaxinfer.messages import ThinkingBudget

CLOSE, OPEN, END, ANALYSIS, CHANNEL = 256, 257, 258, 259, 260
TOKENS = [*(bytes([i]) for i in range(256)), b"</think>", b"<think>", b"<|end|>", b"analysis", b"<|channel|>", b"anal"]
PIECES = Pieces(TOKENS)
WORDS = -(-len(TOKENS) // 32)


def tags(tokens: int, closing: tuple[int, ...] = (CLOSE,), *, begun: bool = False) -> Guide:
    budget = ThinkingBudget(tokens, begun, (b"<think>", b"Hmm:"), (b"</think>", b"So:"), closing)
    return Guide(thinking=Thinking(budget, PIECES))


def given(guide: Guide, *parts: int | bytes) -> list[int]:
    """What is forced after these tokens."""
    for part in parts:
        for token in [part] if isinstance(part, int) else part:
            assert not guide.forced, "nothing is forced meanwhile"
            guide.accept(token)
    return list(guide.forced)


def allowed(guide: Guide) -> list[int]:
    mask = np.full(WORDS, 0xFFFFFFFF, np.uint32)
    guide.bar(mask)
    return [i for i in range(len(TOKENS)) if mask[i >> 5] >> np.uint32(i & 31) & 1]


def test_the_reasoning_is_closed_when_its_tokens_are_spent() -> None:
    guide = tags(3)
    assert given(guide, OPEN, b"ab") == []
    assert given(guide, b"c") == [CLOSE]
    assert not guide.done
    guide.accept(CLOSE)
    assert guide.done
    assert not guide.forced


@pytest.mark.parametrize("parts", [(OPEN,), (b" \n<think>",), (b"Hmm:",)])
def test_every_opening_counts_and_none_is_closed_at_once(parts: tuple[int | bytes, ...]) -> None:
    spelled = tuple(b"</think>")
    guide = tags(0, spelled)
    assert given(guide, *parts) == list(spelled)
    for token in spelled[:-1]:
        guide.accept(token)
        assert not guide.done
    guide.accept(spelled[-1])
    assert guide.done
    assert given(tags(2, spelled), *parts, b"xy") == list(spelled)


def test_what_the_prompt_has_opened_counts_from_the_beginning() -> None:
    assert list(tags(0, begun=True).forced) == [CLOSE]
    assert given(tags(2, begun=True), b"ab") == [CLOSE]


@pytest.mark.parametrize("close", [(CLOSE,), (b"</think>",), (b"So:",), (b"</th</think>",)])
def test_a_model_that_closes_it_is_left_alone(close: tuple[int | bytes, ...]) -> None:
    guide = tags(30)
    assert given(guide, OPEN, b"ab", *close) == []
    assert guide.done


@pytest.mark.parametrize("text", [b"a", b" <thin.", b"< think>"])
def test_an_answer_without_reasoning_is_free(text: bytes) -> None:
    guide = tags(0)
    assert given(guide, text) == []
    assert guide.done


def test_the_last_tokens_begin_no_character_that_they_cannot_end() -> None:
    guide = tags(5, begun=True)
    assert len(allowed(guide)) == len(TOKENS)
    given(guide, b"a")
    assert len(allowed(guide)) == len(TOKENS), "four bytes are left"
    given(guide, b"\xf0")
    left = allowed(guide)
    assert all(token in left for token in b"a\x9f\x80")
    assert not any(token in left for token in b"\xc3\xe2\xf0")
    assert given(guide, b"\x9f\x98\x80") == [CLOSE]


def test_messages_share_one_budget_and_none_reasons_again() -> None:
    name = b"<|channel|>"
    budget = ThinkingBudget(4, False, (name + b"analysis",), (b"<|end|>",), (END, CHANNEL), name)
    guide = Guide(thinking=Thinking(budget, PIECES))
    assert given(guide, CHANNEL, ANALYSIS, b"ab", END, b"x", CHANNEL) == []
    assert ANALYSIS in allowed(guide)
    assert given(guide, b"analysis", b"cd") == [END, CHANNEL]
    guide.accept(END)
    guide.accept(CHANNEL)
    assert not {ANALYSIS, ord("a"), TOKENS.index(b"anal")} & set(allowed(guide))
    assert ord("f") in allowed(guide)
    assert given(guide, b"final, which is analysis", END) == []
    assert ANALYSIS in allowed(guide), "where no channel is named"
    assert given(guide, CHANNEL) == []
    assert ANALYSIS not in allowed(guide)
    assert not guide.done, "another message may come"


def test_words_of_several_tokens_are_never_whole() -> None:
    """Whatever is drawn of what is let through, no word is in it; and only a word's last token is ever barred."""
    draw = random.Random(0)
    words = [b"ab", b"aab", b"abc", b"ca", b"bcb", b"ccc"]
    for _ in range(50):
        guide, text = Guide(bad_words=BadWords([tuple(word) for word in words])), b""
        for _ in range(40):
            let = [token for token in allowed(guide) if token in set(b"abc")]
            barred = {word[-1] for word in words if text.endswith(word[:-1])}
            assert set(let) == set(b"abc") - barred
            if not let:
                break
            token = draw.choice(let)
            guide.accept(token)
            text += bytes([token])
        assert not any(word in text for word in words)
    assert len(allowed(Guide(bad_words=BadWords([(1, 2)])))) == len(TOKENS)
    assert not guide.done
