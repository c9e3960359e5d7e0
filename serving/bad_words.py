"""Words that are never generated, as vLLM's `bad_words` has them: by the tokens that spell them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.errors import InvalidRequest
from jaxinfer.sampling_params import MAX_TOKEN_LIST
from jaxinfer.text import Tokenizer

MAX_WORD = 128  # characters


def with_bad_words(given: Mapping[str, Any], words: Sequence[str], tokenizer: Tokenizer | None) -> Mapping[str, Any]:
    """The sampling fields with those of the words that are one token among `bad_token_ids`. Raises InvalidRequest."""
    if not words:
        return given
    if len(words) > MAX_TOKEN_LIST:
        raise InvalidRequest("bad_words", f"{len(words)} words", f"at most {MAX_TOKEN_LIST} are allowed")
    if tokenizer is None:
        raise InvalidRequest("bad_words", list(words), "this server runs without a tokenizer")
    tokens = {ids[0] for word in words for ids in _spellings(word, tokenizer) if len(ids) == 1}
    return {**given, "bad_token_ids": [*(given.get("bad_token_ids") or ()), *sorted(tokens)]}


def bad_sequences(words: Sequence[str], tokenizer: Tokenizer | None) -> tuple[tuple[int, ...], ...]:
    """The words that are several tokens, for the engine. Raises InvalidRequest."""
    if tokenizer is None:
        return ()
    spelled = [ids for word in words for ids in _spellings(word, tokenizer) if len(ids) > 1]
    return tuple(dict.fromkeys(spelled))


def _spellings(word: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The word's tokens at a text's beginning and behind a space, where those are others."""
    if not word.strip() or len(word) > MAX_WORD:
        raise InvalidRequest("bad_words", word, f"a word has 1 to {MAX_WORD} characters, not only white space")
    bare = word.lstrip()
    first, behind = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (bare, " " + bare))
    return [first] if behind[-len(first) :] == first else [first, behind]
