"""Words that are never generated, as vLLM's `bad_words` has them: by the tokens that spell them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.errors import InvalidRequest
from jaxinfer.sampling_params import MAX_TOKEN_LIST
from jaxinfer.text import Tokenizer

MAX_WORD = 128  # characters


def with_bad_words(given: Mapping[str, Any], words: Sequence[str], tokenizer: Tokenizer | None) -> Mapping[str, Any]:
    """The sampling fields with the words' tokens among `bad_token_ids`. Raises InvalidRequest."""
    if not words:
        return given
    if len(words) > MAX_TOKEN_LIST:
        raise InvalidRequest("bad_words", f"{len(words)} words", f"at most {MAX_TOKEN_LIST} are allowed")
    if tokenizer is None:
        raise InvalidRequest("bad_words", list(words), "this server runs without a tokenizer")
    tokens = {token for word in words for token in _tokens(word, tokenizer)}
    return {**given, "bad_token_ids": [*(given.get("bad_token_ids") or ()), *sorted(tokens)]}


def _tokens(word: str, tokenizer: Tokenizer) -> list[int]:
    """Of the word at a text's beginning and, where that is a token too, behind a space."""
    if not word.strip() or len(word) > MAX_WORD:
        raise InvalidRequest("bad_words", word, f"a word has 1 to {MAX_WORD} characters, not only white space")
    bare = word.lstrip()
    spellings = [tokenizer.encode(text, add_special_tokens=False) for text in (bare, " " + bare)]
    found = [ids[0] for ids in spellings if len(ids) == 1]
    if not found:
        allowed = f"it is {len(spellings[0])} tokens, and only a word of one token can be held back"
        raise InvalidRequest("bad_words", word, allowed)
    return found
