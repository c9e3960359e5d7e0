"""What is asked of a server, and what came back: plain data that clients fill and measures read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Message = dict[str, str]  # role, content


@dataclass(frozen=True)
class BenchRequest:
    """One request. Exactly one of text, token_ids and messages is its prompt.

    output_len: most tokens of the answer. kind: requests of a kind are measured together, too. turns: user messages
    that follow in the same conversation, each asked once the answer before it is there; only with messages.
    """

    output_len: int
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None
    kind: str = ""
    turns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = [name for name in ("text", "token_ids", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a request has {given or 'no prompt'}; it must have one of text, token_ids and messages")

    def next_turn(self, answer: str) -> BenchRequest:
        """The conversation after `answer`, with the next user message."""
        assert self.messages is not None
        said = ({"role": "assistant", "content": answer}, {"role": "user", "content": self.turns[0]})
        return BenchRequest(self.output_len, messages=(*self.messages, *said), kind=self.kind, turns=self.turns[1:])


@dataclass
class Answer:
    """One request's life, in seconds of time.perf_counter().

    due: when it should have been sent. sent: when it was. event_times: when each event that carries tokens was read;
    event_tokens: how many it carried (a server may merge those that a reader did not take at once). ended: when the
    stream was over. output_tokens: as the server counts them. error: why there is no whole answer.
    """

    kind: str = ""
    due: float = 0.0
    sent: float = 0.0
    ended: float = 0.0
    event_times: list[float] = field(default_factory=list)
    event_tokens: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    counted: bool = False  # the server said how many tokens there are
    error: str | None = None

    def took_tokens(self, now: float, tokens: int) -> None:
        self.event_times.append(now)
        self.event_tokens.append(tokens)

    @property
    def ttft(self) -> float:
        """Seconds from sending to the first token."""
        return self.event_times[0] - self.sent

    @property
    def e2el(self) -> float:
        """Seconds from sending to the end of the answer."""
        return self.ended - self.sent

    @property
    def tpot(self) -> float | None:
        """Seconds for each token after the first; None for answers of one token."""
        return (self.e2el - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else None

    @property
    def itl(self) -> list[float]:
        """Seconds between events that carry tokens."""
        return [later - earlier for earlier, later in itertools.pairwise(self.event_times)]


class Client(Protocol):
    """A connection to one server. Methods raise `ServerTrouble` where nothing can be measured."""

    async def describe(self) -> Mapping[str, Any]:
        """What the server says of itself: `model`, and `vocab_size` where it tells it."""
        ...

    async def ask(self, request: BenchRequest, answer: Answer) -> None:
        """Sends a request and fills `answer` as its stream comes. Raises `RequestFailed`."""
        ...

    async def close(self) -> None: ...


class RequestFailed(Exception):
    """One request has no whole answer; the message says why."""


class ServerTrouble(Exception):
    """The server cannot be measured at all: nobody answers, or it does not speak the protocol."""


def kinds_of(answers: Sequence[Answer]) -> list[str]:
    """The kinds that there are, in order of appearance."""
    return list(dict.fromkeys(answer.kind for answer in answers))
