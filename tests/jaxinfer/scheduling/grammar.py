"""A grammar made of arithmetic: which tokens it forces, and where it is complete, follows from the tokens before."""

from __future__ import annotations

import hashlib
from collections import deque


def _hash(tokens: tuple[int, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(repr(tokens).encode(), digest_size=4).digest(), "big")


def forced_after(outputs: tuple[int, ...], vocab: int) -> tuple[int, ...]:
    """The tokens that must follow these; none where the model chooses."""
    at = 0
    while True:
        here = _hash(outputs[:at])
        run = tuple((here >> i) % vocab for i in range((0, 0, 1, 2, 3, 5)[here % 6]))
        end = at + max(1, len(run))
        if end > len(outputs):
            return run[len(outputs) - at :]
        at = end


def complete_after(outputs: tuple[int, ...], vocab: int) -> bool:
    """Whether nothing may follow these."""
    return bool(outputs) and not forced_after(outputs, vocab) and _hash((*outputs, -1)) % 9 == 0


class ArithmeticGuide:
    """Follows that grammar as `jaxinfer.constraints.matching.Guide` follows a real one."""

    def __init__(self, vocab: int) -> None:
        self.error = ""
        self.forbids = False
        self.forced: deque[int] = deque()
        self._outputs: tuple[int, ...] = ()
        self._vocab = vocab

    def look(self) -> None:
        """As after its mask was made."""
        self.forced = deque(forced_after(self._outputs, self._vocab))

    def accept(self, token: int) -> None:
        wanted = forced_after(self._outputs, self._vocab)
        assert not self.complete, "a token after the end"
        assert not wanted or wanted[0] == token, f"{token} is not what is forced: {wanted}"
        if self.forced:
            self.forced.popleft()
        self._outputs += (token,)

    @property
    def complete(self) -> bool:
        return complete_after(self._outputs, self._vocab)

    @property
    def done(self) -> bool:
        return False

    def ends(self, token: int) -> bool:
        return token == 7
