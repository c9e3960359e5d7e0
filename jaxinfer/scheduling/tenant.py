"""Whom computed tokens are charged to."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from jaxinfer.scheduling.waiting import Ordered, WaitingLine

# An output token occupies the device longer than one of a prompt; the paper's own price list.
PROMPT_COST, OUTPUT_COST = 1.0, 2.0


class Charged(Ordered, Protocol):
    """A sequence as its tenant sees it. charged: positions whose computing was charged for."""

    charged: int
    prompt_len: int


Member = TypeVar("Member", bound=Charged)


class Tenant(Generic[Member]):
    """service: what was computed for it, in prompt tokens' worth divided by weight."""

    __slots__ = ("_output_cost", "_weight", "alive", "name", "pages", "running", "service", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.weight = 1.0
        self.service = 0.0
        self.alive = 0  # sequences that have not ended
        self.running = 0  # of those, the ones in slots
        self.pages = 0  # that those hold
        self.waiting = WaitingLine[Member]()

    @property
    def weight(self) -> float:
        return self._weight

    @weight.setter
    def weight(self, weight: float) -> None:
        self._weight, self._output_cost = weight, OUTPUT_COST / weight

    def charge(self, sequence: Member, start: int, end: int) -> None:
        """Positions start to end are computed. What was charged before (a preemption lost it) and prefix hits are
        free."""
        charged = sequence.charged
        if start == charged >= sequence.prompt_len:  # nearly every row: the next token of an answer
            self.service += (end - start) * self._output_cost
        elif end > charged:
            start = max(start, charged)
            prompt = max(0, min(end, sequence.prompt_len) - start)
            self.service += PROMPT_COST * prompt / self._weight + (end - start - prompt) * self._output_cost
        else:
            return
        sequence.charged = end
