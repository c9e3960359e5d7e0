"""Random texts that a constraint lets through, token by token, without a model."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

_CLOSING = frozenset(b'"}]')
_PLAIN = frozenset([*range(32, 127), *b"\n\xc3\xa9\xe4\xb8\xad"])


class Bytes:
    """A vocabulary of all bytes, some special tokens and the end of text, as llguidance wants one."""

    def __init__(self, special: Sequence[str]) -> None:
        self.special = {text: 256 + i for i, text in enumerate(special)}
        self.eos_token_id = 256 + len(special)
        self.bos_token_id = None
        names = [*special, "<eos>"]
        self.tokens = [bytes([i]) for i in range(256)] + [b"\xff" + name.encode() for name in names]
        self.special_token_ids = [256 + i for i in range(len(names))]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)

    def ids(self, parts: Sequence[str]) -> list[int]:
        """A part that is a special token's name is that token; others are their bytes."""
        return [token for part in parts for token in ([self.special[part]] if part in self.special else part.encode())]


@functools.cache
def vocabulary(special: tuple[str, ...] = ()) -> tuple[Bytes, LLTokenizer]:
    words = Bytes(special)
    return words, LLTokenizer(TokenizerWrapper(words))


def matcher(constraint: str, special: tuple[str, ...] = ()) -> LLMatcher:
    found = LLMatcher(vocabulary(special)[1], constraint)
    assert not found.is_error(), found.get_error()
    return found


def accepts(constraint: str, *parts: str, special: tuple[str, ...] = ()) -> bool:
    """Whether a whole answer is let through, and may end there. parts: see `Bytes.ids`."""
    found = matcher(constraint, special)
    ids = vocabulary(special)[0].ids(parts)
    return found.try_consume_tokens(ids) == len(ids) and found.is_accepting()


def walk(
    constraint: str,
    seed: object,
    special: tuple[str, ...] = (),
    *,
    phrases: Sequence[str] = (),
    longest: int = 600,
) -> str | None:
    """A text by chance; None where it has not ended after so many tokens. phrases: texts that are put in at times,
    spelled in bytes, where they may stand: the tags that a parser looks for."""
    words, _ = vocabulary(special)
    found, draw = matcher(constraint, special), random.Random(repr(seed))
    text = bytearray()
    for step in range(longest):
        if phrases and draw.random() < 0.08:
            phrase = draw.choice(phrases).encode()
            if found.validate_tokens(list(phrase)) == len(phrase):
                assert found.consume_tokens(list(phrase))
                text += phrase
        if found.is_stopped():
            return text.decode()
        token = _drawn(_allowed(found), words, draw, in_haste=step > longest // 4)
        if token == words.eos_token_id:
            return text.decode()
        assert found.consume_token(token), found.get_error()
        text += words.tokens[token].removeprefix(b"\xff") if token >= 256 else words.tokens[token]
    return None


def _allowed(found: LLMatcher) -> list[int]:
    mask = found.compute_bitmask()
    assert not found.is_error(), found.get_error()
    return [8 * i + bit for i, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1]


def _drawn(allowed: list[int], words: Bytes, draw: random.Random, *, in_haste: bool) -> int:
    """in_haste: whatever ends something is likelier."""
    assert allowed, "a state without a way out"
    special = [token for token in allowed if token >= 256]
    if special and draw.random() < 0.3:
        return draw.choice(special)
    closing = [token for token in allowed if token in _CLOSING]
    if closing and draw.random() < (0.8 if in_haste else 0.25):
        return draw.choice(closing)
    plain = [token for token in allowed if token in _PLAIN]
    return draw.choice(plain or allowed)


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
