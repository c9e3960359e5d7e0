"""Tokens and their log-probabilities in the shapes of completions, chats and responses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jaxinfer.messages import TokenLogprobs
from jaxinfer.text import Tokenizer


class Spelling:
    """How tokens are written. as_ids: "token_id:15" instead of text."""

    def __init__(self, tokenizer: Tokenizer | None, *, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids or tokenizer is None

    def bytes_of(self, token: int) -> bytes:
        return b"" if self._tokenizer is None else self._tokenizer.token_bytes(token)

    def text(self, token: int) -> str:
        if self._as_ids:
            return f"token_id:{token}"
        return self.bytes_of(token).decode("utf-8", "replace")

    def key(self, token: int) -> str:
        """As completions write tokens, where one of half a character must differ from the others."""
        if self._as_ids:
            return f"token_id:{token}"
        data = self.bytes_of(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def width(self, token: int, *, skip_special: bool) -> int:
        """Characters that the token adds to a text."""
        if self._tokenizer is None or (skip_special and self._tokenizer.is_special(token)):
            return 0
        return len(self.bytes_of(token).decode("utf-8", "replace"))


class CompletionLogprobs:
    """Collects the four lists of a completion's logprobs; `offset` counts the characters of the text so far."""

    def __init__(self, spelling: Spelling, *, skip_special: bool) -> None:
        self._spelling = spelling
        self._skip = skip_special
        self.offset = 0
        self.take()

    def add(self, token: int, entry: TokenLogprobs | None) -> None:
        """entry None: the first token of a prompt, which has none."""
        spelling = self._spelling
        self._tokens.append(spelling.key(token))
        self._offsets.append(self.offset)
        self._values.append(None if entry is None else entry.logprob)
        self._top.append(None if entry is None else _top(entry, spelling))
        self.offset += spelling.width(token, skip_special=self._skip)

    def take(self) -> dict[str, Any]:
        """What was added since the last call."""
        taken = {} if not hasattr(self, "_tokens") else self._lists()
        self._tokens: list[str] = []
        self._offsets: list[int] = []
        self._values: list[float | None] = []
        self._top: list[dict[str, float] | None] = []
        return taken

    def _lists(self) -> dict[str, Any]:
        return {
            "text_offset": self._offsets,
            "token_logprobs": self._values,
            "tokens": self._tokens,
            "top_logprobs": self._top,
        }


def _top(entry: TokenLogprobs, spelling: Spelling) -> dict[str, float]:
    """The alternatives, and the token itself, which may not be among them."""
    top = {spelling.key(token): value for token, value in entry.top}
    top.setdefault(spelling.key(entry.token_id), entry.logprob)
    return top


def chat_logprobs(entries: Iterable[TokenLogprobs], spelling: Spelling) -> list[dict[str, Any]]:
    """The content list of a chat's logprobs; the same objects serve the Responses API."""
    return [
        {
            **_chat_token(entry.token_id, entry.logprob, spelling),
            "top_logprobs": [_chat_token(token, value, spelling) for token, value in entry.top],
        }
        for entry in entries
    ]


def _chat_token(token: int, logprob: float, spelling: Spelling) -> dict[str, Any]:
    return {"token": spelling.text(token), "logprob": logprob, "bytes": list(spelling.bytes_of(token))}


def prompt_logprobs(entries: Sequence[TokenLogprobs], spelling: Spelling, alternatives: int) -> list[Any]:
    """vLLM's shape: null for the first position, then {token id: {logprob, rank, decoded_token}} for each."""
    result: list[Any] = [None]
    for entry in entries:
        position = {entry.token_id: (entry.logprob, entry.rank)}
        for rank, (token, value) in enumerate(entry.top[: max(alternatives, 0)] if alternatives >= 0 else entry.top, 1):
            position.setdefault(token, (value, rank))
        result.append(
            {
                str(token): {"logprob": value, "rank": rank, "decoded_token": spelling.text(token)}
                for token, (value, rank) in position.items()
            }
        )
    return result
