"""Reading a request's body: its type, its size, its time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from serving.errors import DEFAULT_RETRY_MS, unavailable
from serving.http.errors import ApiError, from_refusal

BODY_SECONDS = 60.0
_MAX_READING = 16  # bodies of the largest size, by all clients at a time

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ClientGone(Exception):
    """The client closed its connection."""


class BodyReader:
    """Reads bodies of at most `limit` bytes, and bounds what all of them take together."""

    seconds = BODY_SECONDS

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reading = 0

    async def read(self, scope: Scope, receive: Receive) -> bytes | bytearray:
        """A JSON body. It grows as its parts come: to join them at the end would be one long piece of work. Raises
        ApiError, or ClientGone."""
        headers = {bytes(name).lower(): bytes(value) for name, value in scope["headers"]}
        self._check_headers(headers)
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    part = message.get("body", b"")
                    size += len(part)
                    self._reading += len(part)
                    body += part
                    if size > self._limit:
                        raise self._too_large()
                    if self._reading > _MAX_READING * self._limit:
                        raise _busy()
                    if not message.get("more_body", False):
                        return body
        except TimeoutError:
            message_text = f"the request's body did not come within {self.seconds:g} s"
            closing = ((b"connection", b"close"),)
            raise ApiError(408, message_text, headers=closing, reason="the body did not come in time") from None
        except asyncio.CancelledError:  # the server stops and has waited long enough
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            raise from_refusal(unavailable("the server is shutting down")) from None
        finally:
            self._reading -= size

    def _check_headers(self, headers: Mapping[bytes, bytes]) -> None:
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            shown = kind.decode("latin-1") or None
            allowed = "it must be application/json"
            message = f"Content-Type is {shown!r}; {allowed}"
            raise ApiError(415, message, param="Content-Type", reason=allowed)
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"", b"identity"):
            shown = encoding.decode("latin-1")
            allowed = "compressed bodies are not taken"
            message = f"Content-Encoding is {shown!r}; {allowed}"
            raise ApiError(415, message, param="Content-Encoding", reason=allowed)
        length = headers.get(b"content-length")
        if length is not None and length.isdigit() and int(length) > self._limit:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the request's body is too large; at most {self._limit} bytes are taken",
            code="body_too_large",
        )


def _busy() -> ApiError:
    message = "the server is reading as many long requests as it takes at a time"
    return ApiError(429, message, kind="rate_limit_error", code="server_full", retry_ms=DEFAULT_RETRY_MS)
