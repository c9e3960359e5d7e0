"""A model's tokens as llguidance takes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxinfer.constraints.thinking import Pieces
from jaxinfer.text import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_MARK = b"\xff"  # llguidance's mark of a special token, which stands for no text; no UTF-8 holds this byte


class _Tokens:
    """What LLTokenizer's constructor reads of a tokenizer, and the function that it calls for texts that a grammar
    leaves no choice about. Names are llguidance's (`TokenizerWrapper`)."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self, tokens: list[bytes], special: Sequence[int], end: int, encode: Callable[[str], list[int]]
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = end
        self._encode = encode
        self._special = frozenset(special)
        self.fallback: LLTokenizer | None = None

    def __call__(self, text: str) -> list[int]:
        """Tokens whose bytes are the text's. A tokenizer that would change it (that normalizes it, or has no token for
        some of it) is not asked: then the longest tokens that match are taken, one after the other, and where those do
        not spell it either there are none."""
        ids = self._encode(text)
        if self._spells(ids, text):
            return ids
        ids = [] if self.fallback is None else self.fallback.greedy_tokenize(text)
        return ids if self._spells(ids, text) else []

    def _spells(self, ids: list[int], text: str) -> bool:
        if not self._special.isdisjoint(ids) or max(ids, default=0) >= len(self.tokens):
            return False  # a tokenizer can have tokens that the model has no logits for
        return b"".join(map(self.tokens.__getitem__, ids)) == text.encode()


class Vocabulary:
    """Tokens by their bytes, for grammars.

    Attributes:
        tokenizer: llguidance's, with `words` words of 32 bits in a mask.
        width: V, the tokens that logits have room for. Those without a token of the tokenizer are let through by no
            grammar.
        special: ids of tokens that are no text: those that decoding skips, and what ends a text. A grammar names them
            as tokens.
        pieces: the tokens' bytes.
    """

    def __init__(self, tokenizer: Tokenizer, width: int, end_ids: Sequence[int]) -> None:
        """width: V. end_ids: the model's end tokens; those outside the vocabulary end nothing."""
        from llguidance import LLTokenizer

        size = min(width, tokenizer.vocab_size)
        tokens = tokenizer.decode_plan.all_bytes(size)
        tokens += [b""] * (width - size)
        ends = [token for token in dict.fromkeys(end_ids) if 0 <= token < width]
        self.width = width
        self.special = tuple(sorted({*(i for i in range(size) if tokenizer.is_special(i)), *ends}))
        tokens = [b"" if token.startswith(_MARK) else token for token in tokens]  # else it would seem special
        if not ends:  # llguidance wants one: an id that no logits have
            ends = [width]
            tokens.append(b"")
        self.pieces = Pieces(tokens)
        wrapped = _Tokens(tokens, self.special, ends[0], tokenizer.encoder_within())
        self.tokenizer: Any = LLTokenizer(wrapped, eos_token=ends)  # type: ignore[arg-type]  # by its attributes
        wrapped.fallback = self.tokenizer
        self.words = (len(tokens) + 31) // 32


class ComingVocabulary:
    """A vocabulary that a thread makes while the model is loaded."""

    def __init__(self, make: Callable[[], Vocabulary | None]) -> None:
        """make: runs in the thread; None where the model has no tokenizer."""
        self._make = make
        self._found: Vocabulary | None = None
        self._error: Exception | None = None
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="vocabulary", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        begin = time.perf_counter()
        try:
            self._found = self._make()
        except Exception as error:  # told to whoever asks for it
            self._error = error
        self._seconds = time.perf_counter() - begin

    @property
    def seconds(self) -> float:
        """What making it took, its tokenizer's loading included. Waits for it."""
        self._thread.join()
        return self._seconds

    def get(self) -> Vocabulary | None:
        """Waits for it. Raises what making it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found
