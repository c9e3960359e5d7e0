"""What leads a sequence's tokens: a grammar, a budget of reasoning, words to hold back."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from jaxinfer.constraints.thinking import Thinking

if TYPE_CHECKING:
    import numpy as np

_LONGEST_REASON = 400  # characters


class CompiledGrammar(Protocol):
    """A compiled grammar, which guides share."""

    worn: bool  # no more guides should start from it

    def copy(self) -> Any:
        """A matcher at the beginning."""
        ...

    def worked(self, seconds: float) -> None: ...


class BadWords:
    """Sequences of tokens that an answer must not hold, as vLLM's `bad_words`: the last of one may not come where the
    answer so far ends with the others.

    words: of two tokens or more each; those of one are banned everywhere (`bad_token_ids`).
    """

    def __init__(self, words: Collection[Sequence[int]]) -> None:
        self._by_end: dict[int, list[tuple[list[int], int]]] = defaultdict(list)  # by the last token but one
        for word in words:
            self._by_end[word[-2]].append((list(word[:-1]), word[-1]))
        self._recent: deque[int] = deque(maxlen=max(len(word) for word in words) - 1)

    def accept(self, token: int) -> None:
        self._recent.append(token)

    @property
    def banned(self) -> set[int]:
        """What must not come next."""
        if not self._recent or self._recent[-1] not in self._by_end:
            return set()
        recent = list(self._recent)
        return {last for before, last in self._by_end[recent[-1]] if recent[-len(before) :] == before}


class Guide:
    """Its state is that of the tokens it was given, so it outlives preemption.

    Attributes:
        error: why it can let nothing through any more; "" while it can.
        forced: the tokens that come next whatever the model says, as far as they are known.
        forbids: it can leave no token, without an error.
        matcher: the place in the grammar; None where there is none.
        bars: `bar` may take tokens out.
    """

    __slots__ = (
        "_bad_words",
        "_ends",
        "_grammar",
        "_jumps",
        "_thinking",
        "bars",
        "error",
        "forbids",
        "forced",
        "matcher",
    )

    def __init__(
        self,
        grammar: CompiledGrammar | None = None,
        ends: Collection[int] = (),
        *,
        thinking: Thinking | None = None,
        bad_words: BadWords | None = None,
        jumps: bool = True,
    ) -> None:
        """ends: the model's end tokens. jumps: what the grammar forces may be taken without asking what else the
        request forbids."""
        self._grammar = grammar
        self.matcher = None if grammar is None else grammar.copy()
        self._ends = ends
        self._thinking, self._bad_words = thinking, bad_words
        self.bars = thinking is not None or bad_words is not None
        self.error = ""
        self.forbids = bad_words is not None
        self._jumps = jumps and bad_words is None
        self.forced: deque[int] = deque()
        if thinking is not None:
            self.forced.extend(thinking.closing)

    def accept(self, token: int) -> None:
        """The sequence's next token. One that is not let through is an `error`."""
        if self.forced and self.forced.popleft() != token:
            self.forced.clear()
        if self.matcher is not None and not self.matcher.consume_token(token):
            self._fail()
        if self._bad_words is not None:
            self._bad_words.accept(token)
        if self._thinking is not None:
            self._thinking.accept(token)
            if self._thinking.closing:  # nothing else is forced there: reasoning is free text
                self.forced = deque(self._thinking.closing)

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return self.matcher is not None and bool(self.matcher.is_stopped())

    @property
    def done(self) -> bool:
        """Whether anything may follow, to the end of the sequence, so that nobody need ask any more."""
        spent = self._thinking is None or self._thinking.over
        return self.matcher is None and self._bad_words is None and spent and not self.forced

    def ends(self, token: int) -> bool:
        """Whether it is one of the model's end tokens."""
        return token in self._ends

    def bar(self, mask: np.ndarray) -> None:
        """Takes out of a row's mask what the grammar does not know of. mask: (words,) uint32, see Matching.masks."""
        if self._thinking is not None:
            self._thinking.bar(mask)
        if self._bad_words is not None:
            for token in self._bad_words.banned:
                mask[token >> 5] &= ~(1 << (token & 31)) & 0xFFFFFFFF

    def look(self, only: bool, seconds: float) -> None:
        """After its mask was made: whether that failed, and which tokens follow by force. only: the mask has one.
        seconds: that it took."""
        assert self.matcher is not None
        assert self._grammar is not None
        self._grammar.worked(seconds)
        if self.matcher.is_error():
            self._fail()
        elif only and self._jumps:
            self.forced.extend(self.matcher.compute_ff_tokens())

    def _fail(self) -> None:
        assert self._grammar is not None
        self._grammar.worn = True
        self.error = f"the grammar of this request cannot be followed further: {reason_of(self.matcher)}"


def reason_of(matcher: Any) -> str:
    """Why a matcher has an error."""
    text = " ".join(str(matcher.get_error()).replace("<non-verbose/>", "").split()) or "it is too complex"
    if text == "NoExtensionBias":
        return "there is no text that it allows, or none that ends"
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " ..."
