"""What the answers of all endpoints share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from serving import json_text
from serving.errors import Refusal
from serving.http.errors import ApiError, from_refusal
from serving.http.generation import Generation
from serving.http.ignored import IgnoredFields
from serving.http.models import StreamOptions

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment: the standard says that clients pass it over


def sse(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json_text.encode(data) + b"\n\n"


async def sse_in_parts(data: Any) -> AsyncIterator[bytes]:
    """One long server-sent event; other tasks run between its parts."""
    yield b"data: "
    async for part in json_text.encode_in_parts(data):
        yield part
    yield b"\n\n"


class Reply(ABC):
    """One answer under way: `result` gives it whole, `events` in pieces. `close` ends what still runs. ignored: what of
    its request had no effect."""

    def __init__(self, generation: Generation, model: str, *, stream: bool) -> None:
        self.generation = generation
        self.stream = stream
        self.model = model
        self.created = int(time.time())
        self.ignored = IgnoredFields()
        self.begun = False  # something was sent

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Of an answer with status 200."""
        name = self.generation.streams[0].prepared.request_id
        return [(b"x-request-id", name.encode("ascii")), *self.ignored.headers]

    @abstractmethod
    async def result(self) -> Mapping[str, Any]:
        """The whole answer. Raises Refusal."""

    @abstractmethod
    def pieces(self) -> AsyncIterator[bytes]:
        """Server-sent events, or parts of long ones; a bounded number at once. Raises Refusal."""

    async def events(self) -> AsyncIterator[bytes]:
        """As `pieces`, but once something was sent an error is an event too.

        Raises ApiError before that: then it can still be the answer's status.
        """
        try:
            async for data in self.pieces():
                self.begun = True
                yield data
        except Refusal as refusal:
            error = from_refusal(refusal)
            if not self.begun:
                raise error from refusal
            yield self.failed(error)

    def sign_of_life(self) -> bytes:
        """What is sent where there is nothing to send for long: from then on an error is an event."""
        self.begun = True
        return KEEP_ALIVE

    def failed(self, error: ApiError) -> bytes:
        """The last events of an answer that broke off."""
        return sse(error.body) + DONE

    def fail(self, refusal: Refusal) -> None:
        self.generation.fail(refusal)

    def close(self) -> None:
        self.generation.close()


class StreamUsage:
    """What stream_options say about usage."""

    def __init__(self, options: StreamOptions | None) -> None:
        self._at_the_end = options is not None and bool(options.include_usage)
        self._always = self._at_the_end and options is not None and bool(options.continuous_usage_stats)

    def so_far(self, usage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What goes into an event."""
        if not self._at_the_end:
            return {}
        return {"usage": usage() if self._always else None}

    def last(self, head: Mapping[str, Any], usage: Callable[[], dict[str, Any]]) -> bytes:
        """The event behind all others, or nothing."""
        return sse({**head, "choices": [], "usage": usage()}) if self._at_the_end else b""
