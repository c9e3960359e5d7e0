"""Who may begin now: limits of callers, places of the server, names of requests; and when to try again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from jaxinfer.errors import InvalidRequest
from serving.access.access import Access
from serving.access.caller import ADMIN, Caller
from serving.errors import DEFAULT_RETRY_MS, Refusal, duplicate, invalid, overloaded
from serving.frontend.stream import GenerationStream
from serving.observing.record import Origin
from serving.request import PreparedRequest

MIN_RETRY_MS, MAX_RETRY_MS = 100, 60_000


class AdmissionControl:
    """Counts what is open on one event loop; a request's places are taken before it begins and given back by `close`.

    Args:
        access: Knows the callers' limits and writes the audit log.
        max_waiting: Sequences accepted beyond those that the engines run at a time.

    Attributes:
        open_sequences: Places that are taken, those of requests that are about to begin included.
    """

    def __init__(self, access: Access, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.open_sequences = 0
        self._access = access
        self._streams: dict[tuple[str, str], GenerationStream] = {}  # by tenant and the client's id
        self._closings: deque[float] = deque(maxlen=32)  # when the last streams ended

    def check_limits(self, requests: Sequence[PreparedRequest], origin: Origin) -> None:
        """Raises Refusal when the caller has no more to spend now; the audit log has it then."""
        sequences = sum(prepared.params.n for prepared in requests)
        tokens = sum(len(prepared.token_ids) for prepared in requests)
        try:
            self._access.check(origin.caller, len(requests), sequences, tokens)
        except Refusal as refusal:
            self._access.audit_refusal(origin.server, origin.endpoint, refusal, origin.caller)
            raise

    def take_places(self, n: int, running: int) -> None:
        """Takes places for n sequences where the engines run `running` at a time. Raises Refusal."""
        limit = running + self.max_waiting
        if n > limit:
            raise invalid(InvalidRequest("n", n, f"this server holds at most {limit} sequences at a time"))
        if self.open_sequences + n > limit:
            held = f"the server holds {self.open_sequences} sequences and takes at most {limit}"
            raise overloaded(held, self._retry_ms(n))
        self.open_sequences += n

    def give_back_places(self, n: int) -> None:
        self.open_sequences -= n

    def check_name(self, prepared: PreparedRequest, caller: Caller) -> None:
        """Raises Refusal when the tenant has a request of this id under way."""
        if (caller.tenant, prepared.request_id) in self._streams:
            raise duplicate(prepared.request_id)

    def begin(self, stream: GenerationStream) -> None:
        """A request whose places were taken and whose name was checked."""
        prepared, caller = stream.prepared, stream.record.origin.caller
        self._access.limiter.begin(caller, prepared.params.n, len(prepared.token_ids))
        self._streams[caller.tenant, prepared.request_id] = stream

    def close(self, stream: GenerationStream) -> None:
        """Gives back what a request that had begun held."""
        prepared, caller = stream.prepared, stream.record.origin.caller
        del self._streams[caller.tenant, prepared.request_id]
        self._access.limiter.end(caller, prepared.params.n)
        self.open_sequences -= prepared.params.n
        self._closings.append(time.monotonic())

    def named(self, request_id: str, caller: Caller) -> list[GenerationStream]:
        """Open streams of a client's id that the caller may end: its own tenant's, for an admin anybody's."""
        if ADMIN in caller.roles:
            return [stream for (_, name), stream in self._streams.items() if name == request_id]
        found = self._streams.get((caller.tenant, request_id))
        return [] if found is None else [found]

    def _retry_ms(self, places: int) -> int:
        """When `places` more sequences may have ended, judging by how fast the last ones did."""
        guess = DEFAULT_RETRY_MS
        if len(self._closings) > 1:
            span = self._closings[-1] - self._closings[0]
            guess = round(1000 * places * span / (len(self._closings) - 1))
        return min(max(guess, MIN_RETRY_MS), MAX_RETRY_MS)
