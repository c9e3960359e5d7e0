"""How long an answer may reason: its tokens are counted between the tags of the model's format, then the reasoning is
closed.

The tags are looked for in the bytes of the tokens, as the parsers of answers look for them in the text, so it does not
matter of which tokens they are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxinfer.messages import ThinkingBudget

if TYPE_CHECKING:
    import numpy as np

_SPACE = b" \t\r\n"
_LONGEST_CHARACTER = 4  # bytes of UTF-8


class Pieces:
    """What the tokens of a vocabulary are made of: their bytes, those of special tokens too."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tokens
        self._unfinished: np.ndarray | None = None
        self._beginning: dict[bytes, list[int]] = {}

    @property
    def unfinished(self) -> np.ndarray:
        """(words,) uint32: the bits of tokens that begin a character and leave it to another token to end it."""
        import numpy as np  # a server, which has no engine, does without

        if self._unfinished is None:
            found = np.zeros(-(-len(self.tokens) // 32) * 32, np.uint8)
            found[[i for i, token in enumerate(self.tokens) if _is_unfinished(token)]] = 1
            self._unfinished = np.packbits(found, bitorder="little").view(np.uint32)
        return self._unfinished

    def that_begin(self, name: bytes) -> list[int]:
        """Tokens with which a text could begin that begins with `name`."""
        if name not in self._beginning:
            found = (i for i, token in enumerate(self.tokens) if token)
            self._beginning[name] = [
                i for i in found if name.startswith(self.tokens[i]) or self.tokens[i].startswith(name)
            ]
        return self._beginning[name]


def _is_unfinished(token: bytes) -> bool:
    for back, byte in enumerate(reversed(token[1 - _LONGEST_CHARACTER :]), 1):
        if byte & 0xC0 != 0x80:  # the first of a character
            length = 1 if byte < 0x80 else 2 if byte >> 5 == 6 else 3 if byte >> 4 == 14 else 4
            return length > back
    return False


class Thinking:
    """One answer's reasoning.

    Attributes:
        over: no reasoning can follow any more.
        closing: the tokens that must come next, where what may be reasoned is spent; set by the token that spends it.
    """

    def __init__(self, budget: ThinkingBudget, pieces: Pieces) -> None:
        self._budget, self._pieces = budget, pieces
        self._tail = b""  # of the text: what may be the beginning of a tag
        self._left = budget.tokens
        self._inside = budget.begun
        self._longest = max(map(len, (*budget.opens, *budget.closes, budget.channel)))
        self._ending = 0  # tokens of `closing` that are still to come
        self.over = False
        self.closing: tuple[int, ...] = ()
        if self._inside and not self._left:
            self._close()

    def accept(self, token: int) -> None:
        self.closing = ()
        if self.over:
            return
        piece = self._pieces.tokens[token] if token < len(self._pieces.tokens) else b""
        self._tail += piece
        if self._inside or self._ending:
            self._reason()
        elif self._budget.channel:
            self._seek()
        else:
            self._start()

    def bar(self, mask: np.ndarray) -> None:
        """Takes out of a row's mask, (words,) uint32, what would begin a character that cannot be ended within the
        budget, and what would begin to reason again."""
        if self._inside and self._left < _LONGEST_CHARACTER:
            unfinished = self._pieces.unfinished[: len(mask)]
            mask[: len(unfinished)] &= ~unfinished
        elif self._budget.channel and not self._left and self._tail.endswith(self._budget.channel):
            name = self._budget.opens[0].removeprefix(self._budget.channel)
            for token in self._pieces.that_begin(name):
                mask[token >> 5] &= ~(1 << (token & 31)) & 0xFFFFFFFF

    def _start(self) -> None:
        """Before any text: only white space may stand before the opening tag."""
        text = self._tail.lstrip(_SPACE)
        tag = next((tag for tag in self._budget.opens if text.startswith(tag)), None)
        if tag is not None:
            self._open(text[len(tag) :])
        elif text and not any(tag.startswith(text) for tag in self._budget.opens):
            self.over = True

    def _seek(self) -> None:
        """Between messages: reasoning may begin at each."""
        places = [(self._tail.find(tag), tag) for tag in self._budget.opens if tag in self._tail]
        if places:
            place, tag = min(places)
            self._open(self._tail[place + len(tag) :])
        else:
            self._tail = self._tail[-self._longest :]

    def _open(self, rest: bytes) -> None:
        self._inside, self._tail = True, rest
        if self._ended():
            return
        if rest.strip(_SPACE):  # of the same token
            self._left = max(0, self._left - 1)
        if not self._left:
            self._close()

    def _reason(self) -> None:
        if self._ending:
            self._ending -= 1
            if not self._ending:
                self._end(self._tail)
        elif not self._ended():
            self._left -= 1
            self._tail = self._tail[1 - self._longest :]
            if not self._left:
                self._close()

    def _close(self) -> None:
        self.closing = self._budget.closing
        self._ending = len(self.closing)

    def _ended(self) -> bool:
        """Whether the model has closed it."""
        ends = [self._tail.find(tag) + len(tag) for tag in self._budget.closes if tag in self._tail]
        if ends:
            self._end(self._tail[min(ends) :])
        return bool(ends)

    def _end(self, rest: bytes) -> None:
        self._inside = False
        self.over = not self._budget.channel
        self._tail = rest[-self._longest :]
