"""One connection: uvicorn's, with what it lets an impolite client do bounded.

Heads have a size and a time; a client that takes nothing for long loses its connection. None of this slows others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.http.errors import ApiError

MAX_HEAD_BYTES = 64 << 10  # request line and headers
MAX_HEADERS = 128
HEAD_SECONDS = 15.0  # from the first byte of a request to the end of its headers
STALL_SECONDS = 120.0  # without taking any of the answer
LINGER_SECONDS = 5.0  # for what a client still sends when it has its answer already

_LOG = logging.getLogger("serving.http")
_PHRASES = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class _HeadTooLarge(Exception):
    pass


class _Timer:
    """Calls once, `seconds` after `start`, unless it is cancelled."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, call: Callable[[], None]) -> None:
        """Does nothing where it was started before and not cancelled."""
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(seconds, call)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class BoundedProtocol(HttpToolsProtocol):
    """The limits are attributes so that tests can be quick."""

    max_head_bytes = MAX_HEAD_BYTES
    head_seconds = HEAD_SECONDS
    stall_seconds = STALL_SECONDS
    linger_seconds = LINGER_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True  # a connection begins with a head
        self._head_bytes = self._head_fields = 0
        self._head_timer, self._stall_timer, self._linger_timer = _Timer(), _Timer(), _Timer()
        self._receiving = False  # a body
        self._refused = False

    # -- the head -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer.start(self.head_seconds, self._head_late)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        # What is inside the parser, a header without an end, is seen here only.
        if self._in_head and self._head_bytes > self.max_head_bytes and not self._refused:
            self._refuse(_too_large(self.max_head_bytes))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._head_fields = True, 0, 0
        self._head_timer.start(self.head_seconds, self._head_late)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_fields += 1
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > 2 * self.max_head_bytes or self._head_fields > MAX_HEADERS:
            raise _HeadTooLarge

    def on_headers_complete(self) -> None:
        self._in_head, self._receiving = False, True
        self._head_timer.cancel()
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            _as_http_1_0(self.cycle)

    def on_message_complete(self) -> None:
        self._receiving = False
        self._linger_timer.cancel()
        super().on_message_complete()

    def _head_late(self) -> None:
        if not (self._refused or self.transport.is_closing()):
            self._refuse(ApiError(408, f"the request's headers did not come within {self.head_seconds:g} s"))

    def send_400_response(self, msg: str) -> None:
        if self._head_fields > MAX_HEADERS or self._head_bytes > 2 * self.max_head_bytes:
            self._refuse(_too_large(self.max_head_bytes))
        else:
            self._refuse(ApiError(400, "this is not a valid HTTP request"))

    def _refuse(self, error: ApiError) -> None:
        """Answers a request that never reached the application, and ends the connection."""
        self._refused = True
        self._head_timer.cancel()
        body = error.encoded
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (error.status, _PHRASES[error.status], len(body)) + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger()

    # -- the end --------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._receiving and not self.transport.is_closing():
            self._linger()  # answered before all of the body was here, because it is too large

    def _linger(self) -> None:
        """Reads on for a while what nobody wants: closing at once would reset the connection, and the client, still
        writing, would never see the answer."""
        self._linger_timer.start(self.linger_seconds, self.transport.abort)

    # -- the answer -----------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer.start(self.stall_seconds, self._stalled)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stall_timer.cancel()

    def _stalled(self) -> None:
        _LOG.warning("a client took nothing of its answer for %g s; its connection is closed", self.stall_seconds)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        self._linger_timer.cancel()
        super().connection_lost(exc)
        self._stall_timer.cancel()


class _UntilClose(int):
    """The length that is left of an answer whose end is the connection's: never exceeded, never missing."""

    def __lt__(self, other: int) -> bool:
        return False

    __gt__ = __lt__

    def __sub__(self, other: int) -> _UntilClose:
        return self

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def _as_http_1_0(cycle: RequestResponseCycle) -> None:
    """Such a client knows neither chunks (RFC 9112, section 6.1) nor interim answers (RFC 9110, section 15.2): what has
    no length ends where the connection does, which uvicorn closes behind each answer to HTTP/1.0."""
    cycle.chunked_encoding = False
    cycle.expected_content_length = _UntilClose()
    cycle.waiting_for_100_continue = False


def _too_large(limit: int) -> ApiError:
    return ApiError(
        431, f"the request's headers are too large; at most {limit} bytes in {MAX_HEADERS} fields are allowed"
    )


assert issubclass(httptools.HttpParserCallbackError, httptools.HttpParserError)  # how _HeadTooLarge gets out
