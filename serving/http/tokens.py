"""Which characters of an answer's text each of its tokens spells."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from jaxinfer.messages import TokenLogprobs
from jaxinfer.outputs import Delta
from jaxinfer.text import IncrementalDetokenizer, Tokenizer


class Token(NamedTuple):
    """begin, end: its characters in the answer's text; equal for one without text (the end token, a skipped special
    token, the first bytes of a character). open: bytes of the incomplete character before it."""

    token_id: int
    entry: TokenLogprobs | None
    begin: int
    end: int
    open: bytes


class ShownTokens:
    """The text of one answer with its tokens: a token is given out with its text, so not before its text is there.

    open_after: (token id, open bytes) -> open bytes. open_: those at the prompt's end.
    """

    def __init__(self, open_after: Callable[[int, bytes], bytes], open_: bytes = b"") -> None:
        self._open_after, self._open = open_after, open_
        self._waiting: deque[Token] = deque()
        self._end = 0  # of the last token
        self._text = ""  # what came and was not given out
        self._given = 0  # characters

    def add(self, delta: Delta) -> Iterator[tuple[str, Token | None]]:
        """Text and the token that ends with it. With the delta that ends the sequence all that is left is given out:
        tokens behind a stop string have no text, and begin where the text ends."""
        entries = iter(delta.logprobs)
        for token_id, end in zip(delta.token_ids, delta.ends, strict=True):
            begin, self._end = self._end, max(self._end, end)
            self._waiting.append(Token(token_id, next(entries, None), begin, self._end, self._open))
            self._open = self._open_after(token_id, self._open)
        self._text += delta.text
        last = delta.finish_reason is not None
        text, at, shown = self._text, 0, self._given + len(self._text)
        while self._waiting and (last or self._waiting[0].end <= shown):
            token = self._waiting.popleft()
            if last:
                token = token._replace(begin=min(token.begin, shown), end=min(token.end, shown))
            size = max(0, token.end - self._given - at)
            yield text[at : at + size], token
            at += size
        if not self._waiting and at < len(text):
            yield text[at:], None  # withheld tokens, or characters that came out otherwise than it looked
            at = len(text)
        self._text, self._given = text[at:], self._given + at

    def rest(self, delta: Delta) -> str:
        """The text that was not given out and the delta's, when nobody wants to know of tokens any more."""
        text, self._text = self._text, ""
        self._waiting.clear()
        return "".join([text, *delta.texts])


def echoed(
    ids: Sequence[int],
    entries: Sequence[TokenLogprobs | None],
    text: str,
    tokenizer: Tokenizer | None,
    open_after: Callable[[int, bytes], bytes],
) -> Iterator[Token]:
    """A prompt's tokens in its text. A special token has room where the text spells it: those that the tokenizer added,
    or that were left out of the text, have none."""
    detokenizer = None if tokenizer is None else IncrementalDetokenizer(tokenizer, [], skip_special_tokens=False)
    begin, open_ = 0, b""
    for token_id, entry in zip(ids, entries, strict=True):
        end = begin
        if tokenizer is not None and detokenizer is not None:
            added = tokenizer.is_special(token_id) and not text.startswith(tokenizer.token_to_piece(token_id), begin)
            if not added:
                detokenizer.push([token_id])
                end = min(max(begin, detokenizer.position), len(text))
        yield Token(token_id, entry, begin, end, open_)
        begin, open_ = end, open_after(token_id, open_)
