"""Bytes to the HTTP server as they are, and what comes back, read with h11."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import h11

SECONDS = 20.0  # an answer that takes longer is a hang


@dataclass(frozen=True)
class Answer:
    """status: None when the connection was closed without an answer."""

    status: int | None
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


NOTHING = Answer(None, {}, b"")


async def exchange(address: str, data: bytes, *, method: str = "POST", end: float | None = None) -> Answer:
    """Sends `data` and reads one answer; closes the sending side after `end` seconds. Raises TimeoutError."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        if end is not None:
            asyncio.get_running_loop().call_later(end, _end, writer)
        async with asyncio.timeout(SECONDS):
            return await _read(reader, method)
    except ConnectionError:
        return NOTHING
    finally:
        writer.close()


def _end(writer: asyncio.StreamWriter) -> None:
    if not writer.is_closing():
        writer.write_eof()


async def _read(reader: asyncio.StreamReader, method: str) -> Answer:
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method=method, target="/", headers=[("host", "x")]))  # so that it awaits an answer
    status, headers, body = None, {}, b""
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(1 << 16)
            if not data and status is None:
                return NOTHING
            parser.receive_data(data)
        elif isinstance(event, h11.Response):
            status = event.status_code
            headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return Answer(status, headers, body)
