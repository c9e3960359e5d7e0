"""How many characters so many tokens can stand for at most, read off a tokenizer's pipeline.

It lets a text that cannot fit a context be refused before it is tokenized, which takes seconds for megabytes. The bound
may be loose and must never be too small: a step of the pipeline that can make much text vanish (what it removes, what
it replaces by less, characters it has no token for) widens the bound, or leaves the tokenizer without one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

# Characters of a canonical decomposition at most (Unicode Standard Annex 15, on expansion factors). Composing, NFC and
# NFKC, is the way back: of NFKC's result, too, every character is canonically made of at most four.
_COMPOSED = 4
_SLICE = 1 << 16  # characters that one call of the interpreter looks at

# Steps that leave every character, or make more of it.
_KEEPING_NORMALIZERS = frozenset({"NFD", "NFKD", "Lowercase", "Prepend", "ByteLevel"})
_SPACE_REMOVING_NORMALIZERS = frozenset({"Strip"})
_KEEPING_PRE_TOKENIZERS = frozenset({"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength"})
_SPACE_REMOVING_PRE_TOKENIZERS = frozenset({"Whitespace", "WhitespaceSplit"})


@dataclass(frozen=True, slots=True)
class LengthBound:
    """What `tokens` tokens can stand for: at most tokens * per_token characters.

    per_token: characters. spaces_count: whether white space is among them; a run of it can vanish in one token where
    an added token takes all of it along, or where the pipeline drops it.
    """

    per_token: int
    spaces_count: bool = True

    @classmethod
    def of(cls, backend: Backend) -> LengthBound | None:
        """None for a pipeline of which nothing can be said."""
        factor, spaces_count = 1, True
        for step in _steps(backend.normalizer, "normalizers"):
            found = _normalizer(step)
            if found is None:
                return None
            factor *= found[0]
            spaces_count = spaces_count and found[1]
        for step in _steps(backend.pre_tokenizer, "pretokenizers"):
            if step["type"] in _SPACE_REMOVING_PRE_TOKENIZERS:
                spaces_count = False
            elif not _keeps(step):
                return None
        if not _always_has_tokens(backend):
            return None
        added = list(backend.get_added_tokens_decoder().values())
        spaces_count = spaces_count and not any(token.lstrip or token.rstrip for token in added)
        return cls(factor * _longest(backend, (token.content for token in added)), spaces_count)

    def characters(self, tokens: int) -> int:
        return tokens * self.per_token

    def exceeded(self, text: str, tokens: int) -> bool:
        """Whether the text is certainly more than so many tokens."""
        limit = self.characters(tokens)
        if len(text) <= limit:
            return False
        if self.spaces_count:
            return True
        seen = 0
        for start in range(0, len(text), _SLICE):
            seen += sum(map(len, text[start : start + _SLICE].split()))
            if seen > limit:
                return True
        return False


def _steps(part: Any, inner: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return _flat(json.loads(part.__getstate__()), inner)


def _flat(step: dict[str, Any], inner: str) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [found for each in step[inner] for found in _flat(each, inner)]


def _normalizer(step: dict[str, Any]) -> tuple[int, bool] | None:
    """(how many characters one of its result stands for at most, whether white space counts); None: any number."""
    kind = step["type"]
    if kind in ("NFC", "NFKC"):
        return _COMPOSED, True
    if kind in _KEEPING_NORMALIZERS:
        return 1, True
    if kind in _SPACE_REMOVING_NORMALIZERS:
        return 1, False
    if kind == "Replace":
        pattern, content = step["pattern"].get("String"), step["content"]
        # What becomes a space could be dropped as one afterwards.
        if pattern and content and (content.strip() or not pattern.strip()):
            return -(-len(pattern) // len(content)), True
    return None


def _keeps(step: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer leaves every character in some word."""
    kind = step["type"]
    return kind in _KEEPING_PRE_TOKENIZERS or (kind in ("Split", "Punctuation") and step.get("behavior") != "Removed")


def _always_has_tokens(backend: Backend) -> bool:
    """Whether no run of characters is dropped, or becomes one unknown token."""
    model = backend.model
    kind = type(model).__name__
    if kind == "BPE" and model.unk_token is not None and not model.fuse_unk:
        return True
    if kind == "BPE" and _byte_level(backend):
        return all(model.token_to_id(character) is not None for character in _byte_alphabet())
    if kind == "BPE" and model.byte_fallback:
        return all(model.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
    # A unigram model gives an unknown run as one token; whether it falls back on bytes only its file says.
    return False


def _byte_level(backend: Backend) -> bool:
    steps = [*_steps(backend.normalizer, "normalizers"), *_steps(backend.pre_tokenizer, "pretokenizers")]
    return any(step["type"] == "ByteLevel" for step in steps)


def _byte_alphabet() -> Iterable[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    found: list[str] = ByteLevel.alphabet()
    return found


def _longest(backend: Backend, added: Iterable[str]) -> int:
    """Characters of the longest token; of an added one also as the pipeline looks for it."""
    longest = max(map(len, backend.get_vocab(with_added_tokens=True)), default=1)
    if backend.normalizer is not None:
        longest = max([longest, *(len(backend.normalizer.normalize_str(content)) for content in added)])
    return max(1, longest)
