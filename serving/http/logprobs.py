"""Tokens and their log-probabilities in the shapes of completions, chats and responses.

An answer can have hundreds of thousands of entries, so each is written as JSON right away, out of fragments that are
made once for each token of the vocabulary, and other tasks run in between.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import msgspec

from jaxinfer.messages import TokenLogprobs
from jaxinfer.text import Tokenizer
from serving.http.models import TextSampling
from serving.http.tokens import Token
from serving.pace import Pace

LOWEST = -9999.0  # JSON has no infinity; OpenAI and vLLM write this
_SLICE = 1024  # alternatives between two looks at the pace
_MOST_KNOWN = 1 << 16  # tokens whose spelling is remembered


class _Spelled(NamedTuple):
    """text: None where the token's bytes are no whole characters. The others are JSON: the text, and what stands before
    and behind a log-probability in a chat's entry (without the closing brace)."""

    text: str | None
    data: bytes
    quoted: str
    head: str
    tail: str


_KNOWN: WeakKeyDictionary[Tokenizer, dict[int, _Spelled]] = WeakKeyDictionary()


class Spelling:
    """How tokens are written. as_ids: "token_id:15" instead of text.

    As vLLM does it, a token that leaves a character incomplete is "" and the one that completes it has the character:
    the texts of an answer's tokens add up to the answer. `open_` are the bytes of the incomplete character before a
    token. A token's bytes are always its own.
    """

    def __init__(self, tokenizer: Tokenizer | None, *, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids or tokenizer is None
        self._known: dict[int, _Spelled] = {}
        if tokenizer is not None and not self._as_ids:
            self._known = _KNOWN.setdefault(tokenizer, {})

    def bytes_of(self, token: int) -> bytes:
        return b"" if self._tokenizer is None else self._tokenizer.token_bytes(token)

    def text(self, token: int, open_: bytes = b"") -> str:
        return self._of(token, open_).text or ""

    def open_after(self, token: int, open_: bytes = b"") -> bytes:
        """The bytes of the incomplete character behind a token."""
        found = self._find(token)
        if not found.data:
            return open_
        return b"" if found.text is not None and not self._as_ids else _complete(open_ + found.data)[1]

    def open_at_end(self, tokens: Sequence[int]) -> bytes:
        """The bytes of the incomplete character at the end of a prompt."""
        open_ = b""
        for token in tokens[-4:]:  # no character has more bytes
            open_ = self.open_after(token, open_)
        return open_

    def chat(self, token: int, logprob: float, open_: bytes = b"") -> str:
        """JSON of an entry of a chat's logprobs, without the closing brace."""
        found = self._known.get(token)
        if found is None or found.text is None:
            found = self._of(token, open_)
        return f"{found.head}{_number(logprob)!r}{found.tail}"

    def quoted(self, token: int, open_: bytes = b"") -> str:
        """JSON of the text."""
        found = self._known.get(token)
        if found is None or found.text is None:
            found = self._of(token, open_)
        return found.quoted

    def quoted_bytes(self, token: int) -> str:
        """JSON of what OpenAI writes for a token that is no text: it differs from all others'."""
        return json.dumps("bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes_of(token)))

    def _of(self, token: int, open_: bytes) -> _Spelled:
        found = self._find(token)
        return found if found.text is not None else _spelled(_complete(open_ + found.data)[0], found.data)

    def _find(self, token: int) -> _Spelled:
        found = self._known.get(token)
        if found is None:
            found = self._spell(token)
            if len(self._known) < _MOST_KNOWN:
                self._known[token] = found
        return found

    def _spell(self, token: int) -> _Spelled:
        data = self.bytes_of(token)
        if self._as_ids:
            return _spelled(f"token_id:{token}", data)
        try:
            return _spelled(data.decode(), data)
        except UnicodeDecodeError:
            return _spelled(None, data)


def _spelled(text: str | None, data: bytes) -> _Spelled:
    quoted = json.dumps(text or "")
    return _Spelled(text, data, quoted, f'{{"token":{quoted},"logprob":', f',"bytes":{json.dumps(list(data))}')


def _number(logprob: float) -> float:
    return logprob if logprob > LOWEST else LOWEST


def _complete(data: bytes) -> tuple[str, bytes]:
    """The whole characters of bytes, and what is left at their end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(data), decoder.getstate()[0]


class CompletionLogprobs:
    """Collects the four lists of a completion's logprobs. alternatives: how many a token may have. only: the tokens
    that are told of instead, where the client named them."""

    def __init__(self, spelling: Spelling, alternatives: int, only: frozenset[int] | None = None) -> None:
        self._spelling = spelling
        self._alternatives = alternatives
        self._only = only
        self._pace = Pace()
        self._clear()

    def put(self, lists: dict[str, list[Any]]) -> None:
        """Adds what another gave to `take`."""
        self._offsets += lists["text_offset"]
        self._values += lists["token_logprobs"]
        self._tokens += lists["tokens"]
        self._top += lists["top_logprobs"]

    async def add(self, token: Token, offset: int) -> None:
        """offset: of the token's text, in characters of the choice's text."""
        await self._pace.spend(8)
        self._tokens.append(self._spelling.text(token.token_id, token.open))
        self._offsets.append(offset)
        entry = token.entry
        self._values.append(None if entry is None else _number(entry.logprob))
        self._top.append(None if entry is None else await self._alternatives_of(entry, token.open))

    async def _alternatives_of(self, entry: TokenLogprobs, open_: bytes) -> msgspec.Raw:
        """By text, the token itself among them. Of alternatives with one text the likelier is kept. The token keeps its
        own: one that is likelier and is spelled the same has its bytes as its name, so that the largest value stays."""
        spelling, own = self._spelling, self._spelling.quoted(entry.token_id, open_)
        found: dict[str, float] = {}
        top = await chosen(entry, self._only, self._pace)
        if self._only is None and self._alternatives >= 0:
            top = top[: self._alternatives]
        for start in range(0, len(top), _SLICE):
            part = top[start : start + _SLICE]
            for token, value in part:
                name = own if token == entry.token_id else spelling.quoted(token, open_)
                if name == '""' and token != entry.token_id:
                    name = spelling.quoted_bytes(token)
                elif name == own and token != entry.token_id:
                    if value <= entry.logprob:
                        continue
                    name = spelling.quoted_bytes(token)
                if found.setdefault(name, value) < value:
                    found[name] = value
            await self._pace.spend(len(part))
        found[own] = entry.logprob
        members = [f"{name}:{_number(value)!r}" for name, value in found.items()]
        await self._pace.spend(len(members))
        return msgspec.Raw(f"{{{','.join(members)}}}".encode())

    def take(self) -> dict[str, list[Any]]:
        """What was added since the last call."""
        taken: dict[str, list[Any]] = {
            "text_offset": self._offsets,
            "token_logprobs": self._values,
            "tokens": self._tokens,
            "top_logprobs": self._top,
        }
        self._clear()
        return taken

    def _clear(self) -> None:
        self._tokens: list[str] = []
        self._offsets: list[int] = []
        self._values: list[float | None] = []
        self._top: list[msgspec.Raw | None] = []


def named_tokens(request: TextSampling) -> frozenset[int] | None:
    """Those that the client wants to hear of at every position; None: the likeliest."""
    return frozenset(request.logprob_token_ids) if request.logprob_token_ids else None


async def chosen(entry: TokenLogprobs, only: frozenset[int] | None, pace: Pace) -> Sequence[tuple[int, float]]:
    """The alternatives of a token, likeliest first: all, or those that the client named."""
    if only is None:
        return entry.top
    found: list[tuple[int, float]] = []
    for start in range(0, len(entry.top), _SLICE):
        found += [(token, value) for token, value in entry.top[start : start + _SLICE] if token in only]
        await pace.spend(_SLICE // 8)
    return found


async def chat_logprobs(
    tokens: Sequence[Token], spelling: Spelling, pace: Pace, only: frozenset[int] | None = None
) -> list[msgspec.Raw]:
    """The content list of a chat's logprobs; the same objects serve the Responses API. only: see `chosen`."""
    result = []
    for token in tokens:
        entry = token.entry
        if entry is None:
            continue
        top: list[str] = []
        alternatives = await chosen(entry, only, pace)
        for start in range(0, len(alternatives), _SLICE):
            part = alternatives[start : start + _SLICE]
            top += [spelling.chat(other, value, token.open) + "}" for other, value in part]
            await pace.spend(len(part))
        own = spelling.chat(entry.token_id, entry.logprob, token.open)
        result.append(msgspec.Raw(f'{own},"top_logprobs":[{",".join(top)}]}}'.encode()))
        await pace.spend(1)
    return result


async def prompt_logprobs(
    prompt: Sequence[int], entries: Sequence[TokenLogprobs], spelling: Spelling, alternatives: int
) -> list[msgspec.Raw | None]:
    """vLLM's shape: null for the first position, then {token id: {logprob, rank, decoded_token}} for each."""
    pace = Pace()
    result: list[msgspec.Raw | None] = [None]
    open_ = spelling.open_after(prompt[0]) if prompt else b""
    for entry in entries:
        cut = entry if alternatives < 0 else entry._replace(top=entry.top[:alternatives])
        result.append(msgspec.Raw((await ranked(cut, spelling, open_, pace)).encode()))
        open_ = spelling.open_after(entry.token_id, open_)
    return result


async def ranked(entry: TokenLogprobs, spelling: Spelling, open_: bytes, pace: Pace) -> str:
    """JSON of {token id: {logprob, rank, decoded_token}} of a token and its alternatives."""
    members = [_ranked(entry.token_id, entry.logprob, entry.rank, spelling, open_)]
    for start in range(0, len(entry.top), _SLICE):
        part = entry.top[start : start + _SLICE]
        members += [
            _ranked(token, value, rank, spelling, open_)
            for rank, (token, value) in enumerate(part, start + 1)
            if token != entry.token_id
        ]
        await pace.spend(len(part))
    await pace.spend(1)
    return f"{{{','.join(members)}}}"


def _ranked(token: int, logprob: float, rank: int, spelling: Spelling, open_: bytes) -> str:
    return f'"{token}":{{"logprob":{_number(logprob)!r},"rank":{rank},"decoded_token":{spelling.quoted(token, open_)}}}'
