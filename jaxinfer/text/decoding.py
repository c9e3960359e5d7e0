"""How the decoder of a backend turns tokens into text, taken apart so that text can be produced token by token.

A decoder is a chain of steps over the whole token list. For streaming one must know which steps look beyond one token:
ByteLevel joins bytes across tokens; ByteFallback joins runs of <0xNN> tokens; Metaspace and Strip treat the first token
of a text differently. A chain with any other dependence (WordPiece, BPEDecoder, CTC, stripping at the end) is refused
when the tokenizer is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Set
from typing import Any

from tokenizers import Tokenizer as Backend

from jaxinfer.text.errors import TokenizerError

# Spaces that transformers' clean-up removes, in this order.
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
# Characters that may stand anywhere but last in a pattern above: text ending in one may still change.
CLEAN_UP_OPEN = frozenset(" n'vr")

_SLICE = 1 << 14  # ids that one call of the library decodes

_FUSED_ONLY = "works on the joined text, which cannot be streamed"


def clean_up(text: str) -> str:
    """transformers' clean_up_tokenization_spaces: removes spaces before punctuation and English contractions."""
    for pattern, replacement in _CLEAN_UP:
        text = text.replace(pattern, replacement)
    return text


class DecodePlan:
    """What a tokenizer's decoder does, per token id. Tables are filled as ids are met, and shared by all streams.

    Attributes:
        byte_level: tokens stand for bytes, in the byte-level alphabet.
        byte_fallback: tokens of the form <0xNN> stand for bytes.
        clean_up: `clean_up` is applied to the decoded text.
    """

    def __init__(self, backend: Backend, *, byte_level: bool, byte_fallback: bool, clean_up: bool) -> None:
        self.byte_level = byte_level
        self.byte_fallback = byte_fallback
        self.clean_up = clean_up
        self._backend = backend
        self._bytes: dict[int, bytes] = {}
        self._fragments: dict[int, str] = {}
        self._fallback_bytes: dict[int, int | None] = {}
        self._anchor = [] if byte_level else [self._find_anchor()]
        self._anchor_text = self.text(self._anchor)

    @classmethod
    def of(cls, backend: Backend, *, clean_up: bool) -> DecodePlan:
        """Reads the backend's decoder.

        Raises:
            TokenizerError: the decoder has a step whose effect reaches too far to stream; names the step.
        """
        steps = [] if backend.decoder is None else _flatten(json.loads(backend.decoder.__getstate__()))
        kinds = [step["type"] for step in steps]
        if "ByteLevel" in kinds:
            if set(kinds) - {"ByteLevel", "Fuse"} or kinds[0] != "ByteLevel":
                raise TokenizerError(f"decoder {kinds} is not supported: ByteLevel combines only with Fuse")
            return cls(backend, byte_level=True, byte_fallback=False, clean_up=clean_up)
        _check_streamable(steps)
        return cls(backend, byte_level=False, byte_fallback="ByteFallback" in kinds, clean_up=clean_up)

    def piece(self, index: int) -> str | None:
        """The token's spelling in the vocabulary; None for an id without a token."""
        piece: str | None = self._backend.id_to_token(index)
        return piece

    def text(self, ids: Sequence[int]) -> str:
        """The decoder's text for ids, special tokens included, before clean-up."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text

    def text_in_slices(self, ids: Sequence[int], skipped: Set[int], size: int) -> Iterator[str]:
        """`text` of ids without the `skipped` ones, in parts of about `size` ids. Each is one call of the library that
        does not keep the interpreter. What falls apart nowhere, such as one run of byte tokens, is one part."""
        head: list[int] = []  # ids so far, while they have no text: the decoder may strip what comes first
        begun = False
        start = 0
        while start < len(ids):
            end = start + size
            while end < len(ids) and not self._parts_before(ids[end], skipped):
                end += 1
            part = list(ids[start:end])
            start = end
            if not skipped.isdisjoint(part):
                part = [index for index in part if index not in skipped]
            before = self._anchor if begun else head
            whole: str = self._backend.decode_batch([[*before, *part]], skip_special_tokens=False)[0]
            text = whole[len(self._anchor_text) :] if begun else whole
            begun = begun or bool(text)
            head = [] if begun else [*head, *part]
            yield text

    def _parts_before(self, index: int, skipped: Set[int]) -> bool:
        """Whether a text falls apart in front of this token: what follows is the same whatever came before."""
        if index in skipped or self.piece(index) is None:
            return False
        if self.byte_level:
            data = self.token_bytes(index)
            return bool(data) and data[0] & 0xC0 != 0x80  # no byte within a character
        return self.fallback_byte(index) is None

    def token_bytes(self, index: int) -> bytes:
        """The bytes of a token of a byte-level vocabulary."""
        data = self._bytes.get(index)
        if data is None:
            piece = self.piece(index) or ""
            try:
                data = bytes(BYTE_OF[character] for character in piece)
            except KeyError:
                # An added token outside the byte-level alphabet stands for its own UTF-8 bytes.
                data = piece.encode("utf-8")
            self._bytes[index] = data
        return data

    def fallback_byte(self, index: int) -> int | None:
        """The byte that a <0xNN> token stands for; None for any other token."""
        if not self.byte_fallback:
            return None
        try:
            return self._fallback_bytes[index]
        except KeyError:
            found = self._fallback_bytes[index] = self._find_fallback_byte(index)
            return found

    def _find_fallback_byte(self, index: int) -> int | None:
        piece = self.piece(index)
        if piece is None or len(piece) != 6 or not (piece.startswith("<0x") and piece.endswith(">")):
            return None
        try:
            return int(piece[3:5], 16)
        except ValueError:
            return None

    def fragment(self, index: int) -> str:
        """The text that a token adds anywhere but at the start of a text or within a run of byte tokens."""
        text = self._fragments.get(index)
        if text is None:
            text = self._fragments[index] = self.after_anchor([index])
        return text

    def all_bytes(self, size: int) -> list[bytes]:
        """The bytes that each of the ids 0 to size - 1 adds to a text, as `Tokenizer.token_bytes` gives them; b"" for
        an id without a token. Of a large vocabulary at once: the library decodes it without the interpreter."""
        if self.byte_level:
            return [self.token_bytes(index) if self.piece(index) is not None else b"" for index in range(size)]
        found: list[bytes] = []
        for start in range(0, size, _SLICE):
            ids = range(start, min(start + _SLICE, size))
            texts = self._backend.decode_batch([[*self._anchor, index] for index in ids], skip_special_tokens=False)
            for index, text in zip(ids, texts, strict=True):
                byte = self.fallback_byte(index)
                if byte is not None:
                    found.append(bytes((byte,)))
                else:
                    found.append(b"" if self.piece(index) is None else text[len(self._anchor_text) :].encode())
        return found

    def after_anchor(self, ids: Sequence[int]) -> str:
        """The text of ids where they do not start the text."""
        return self.text([*self._anchor, *ids])[len(self._anchor_text) :]

    def _find_anchor(self) -> int:
        """A token with plain text of its own, to stand for "some text came before"."""
        for index in range(self._backend.get_vocab_size(with_added_tokens=True)):
            if self.piece(index) is None or self.fallback_byte(index) is not None:
                continue
            text = self.text([index])
            if text and text == text.strip() and "\ufffd" not in text:
                return index
        raise TokenizerError("the vocabulary has no token with text of its own")


def _check_streamable(steps: list[dict[str, Any]]) -> None:
    fused = False
    for step in steps:
        kind = step["type"]
        if kind == "Fuse":
            fused = True
        elif kind == "ByteFallback":
            if fused:
                raise TokenizerError(f"decoder step ByteFallback after Fuse {_FUSED_ONLY}")
        elif kind == "Strip":
            if fused and step.get("stop", 0) > 0:
                raise TokenizerError(f"decoder step Strip(stop={step['stop']}) {_FUSED_ONLY}")
        elif kind == "Replace":
            pattern = step.get("pattern", {}).get("String")
            if fused and (pattern is None or len(pattern) != 1):
                raise TokenizerError(f"decoder step Replace({step.get('pattern')}) after Fuse {_FUSED_ONLY}")
        elif kind != "Metaspace":
            raise TokenizerError(
                f"decoder {kind} is not supported; supported are ByteLevel, ByteFallback, Fuse, Metaspace, "
                "Replace, Strip, and Sequence of them"
            )


def _flatten(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for inner in decoder["decoders"] for step in _flatten(inner)]


def _byte_alphabet() -> dict[str, int]:
    """character -> byte of the byte-level alphabet of GPT-2.

    Printable Latin-1 characters stand for their own code; the other bytes, in order, for the characters from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + position): byte for position, byte in enumerate(others)})
    return table


BYTE_OF = _byte_alphabet()
