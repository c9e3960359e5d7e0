"""What is remembered of one request: sizes, times and ends, never its text. Everything that observes is made of it.

Times are seconds of time.monotonic(), which the engine's process shares.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from jaxinfer.expert_load import ExpertLoad
from jaxinfer.messages import SequenceAccount, SequenceOutput
from serving.access.caller import CALLER, Caller
from serving.request import PreparedRequest

# The worst end of a request's sequences is the request's.
FINISH_REASONS = ("stop", "length", "abort", "error")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came in. user: whom the client serves, as the request says. trace: W3C headers by name. received:
    when the server had all of it; 0.0: when it was submitted. caller: whoever calls now, unless it is given."""

    server: str = "local"
    endpoint: str = ""
    user: str = ""
    trace: tuple[tuple[str, str], ...] = ()
    received: float = 0.0
    caller: Caller = field(default_factory=CALLER.get)

    @property
    def tenant(self) -> str:
        return self.caller.tenant


NOWHERE = Origin()  # a request of the program's own


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request's life. Tokens of the completion are those that the client gets: none after a stop string."""

    engine_id: str
    engine: int  # number of the one that has it
    request_id: str
    origin: Origin
    model: str
    n: int
    max_tokens: int
    prompt_tokens: int
    submitted: float
    time: float  # of its arrival, Unix time
    received: float
    cached_tokens: int = 0
    completion_tokens: list[int] = field(default_factory=list)  # of each sequence
    first_token: float = 0.0
    last_tokens: list[float] = field(default_factory=list)  # when each sequence got its last token
    ended: float = 0.0  # when the client's answer was complete, or given up
    reasons: dict[int, str] = field(default_factory=dict)  # of sequences, towards the client
    accounts: list[SequenceAccount] = field(default_factory=list)
    running: int = 0  # sequences that the engine has not ended
    prompt_counted: bool = False
    failed: bool = False
    load_before: ExpertLoad | None = None  # its engine's, when it came; None in a model without experts
    load_during: dict[str, Any] | None = None  # until a report that has all of its steps; JSON
    ignored: tuple[str, ...] = ()  # names of what of the request had no effect, escaped
    asked_tokens: int | None = None  # the max_tokens that the client gave
    pins: tuple[tuple[int, float], ...] = ()  # of its prompt: tokens from the beginning on, and seconds
    pin_answer: float = 0.0  # seconds, of the whole of it
    pinned_tokens: int = 0  # of its prompt, so many were
    content: dict[str, Any] | None = None  # prompt and outputs, only where the operator wants them in the log

    @classmethod
    def of(cls, prepared: PreparedRequest, engine_id: str, origin: Origin, model: str, engine: int) -> RequestRecord:
        now, n = time.monotonic(), prepared.params.n
        received = origin.received or now
        return cls(
            engine_id,
            engine,
            prepared.request_id,
            origin,
            model,
            n,
            prepared.params.max_tokens or 0,
            len(prepared.token_ids),
            now,
            time.time() - (now - received),
            received,
            completion_tokens=[0] * n,
            last_tokens=[0.0] * n,
            running=n,
            ignored=prepared.ignored,
            asked_tokens=prepared.asked_tokens,
            pins=prepared.submit.pins,
            pin_answer=prepared.submit.pin_answer,
        )

    def engine_says(self, output: SequenceOutput) -> None:
        """Takes what ends a sequence in the engine, whoever still listens."""
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        self.pinned_tokens = max(self.pinned_tokens, output.pinned_tokens)
        self.running -= 1
        if output.account is not None:
            self.accounts.append(output.account)

    @property
    def finish_reason(self) -> str:
        """One of FINISH_REASONS; a sequence that nobody waited for was aborted."""
        if self.failed:
            return "error"
        found = set(self.reasons.values()) | ({"abort"} if len(self.reasons) < self.n else set())
        return max(found, key=FINISH_REASONS.index)

    @property
    def output_tokens(self) -> int:
        return sum(self.completion_tokens)

    @property
    def started(self) -> float:
        """When its first sequence was first planned; 0.0: never."""
        return min((a.started for a in self.accounts if a.started), default=0.0)

    @property
    def last_token(self) -> float:
        return max(self.last_tokens)

    @property
    def queue_seconds(self) -> float:
        """Until it was first planned, or given up."""
        return max(0.0, (self.started or self.ended) - self.submitted)

    @property
    def device_seconds(self) -> float:
        return sum(account.device_seconds for account in self.accounts)

    @property
    def preemptions(self) -> int:
        return sum(account.preemptions for account in self.accounts)

    @property
    def padding_share(self) -> float:
        """Of what was computed for it, the part that only filled a bucket: 0 to 1."""
        padded = sum(account.padded_tokens for account in self.accounts)
        computed = sum(account.computed_tokens for account in self.accounts)
        return padded / (padded + computed) if padded else 0.0

    def phases(self) -> dict[str, float]:
        """Seconds from phase to phase; together the time from the request's arrival to its end.

        check: tokenizing and admission. queue: until its first step. prefill: until its first token. decode: until its
        last. close: until the answer was complete.
        """
        marks = [self.received, self.submitted, self.started, self.first_token, self.last_token, self.ended]
        for i in reversed(range(len(marks) - 1)):
            marks[i] = marks[i] or marks[i + 1]  # a phase that never came has no length
        for i in range(1, len(marks)):
            marks[i] = max(marks[i], marks[i - 1])  # clocks of two processes are read in no fixed order
        names = ("check", "queue", "prefill", "decode", "close")
        return {name: marks[i + 1] - marks[i] for i, name in enumerate(names)}
