"""Messages over the socket pair between server and engine process: a length (4 bytes, big endian), then a pickle.

Both ends belong to one program and the socket has no name, so unpickling is safe here and nowhere else.
"""

from __future__ import annotations

import pickle
import queue
import select
import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any

from jaxinfer.messages import Shutdown

_HEADER = struct.Struct("!I")
_CHUNK = 1 << 18  # bytes taken from the socket at once


def pack(message: Any) -> bytes:
    """One frame."""
    body = pickle.dumps(message, protocol=5)
    return _HEADER.pack(len(body)) + body


class Unpacker:
    """Cuts a byte stream into messages; keeps an unfinished frame for the next call."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yields the messages that `data` completes."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _HEADER.size:
                (length,) = _HEADER.unpack_from(buffer, start)
                end = start + _HEADER.size + length
                if len(buffer) < end:
                    break
                body = bytes(buffer[start + _HEADER.size : end])
                start = end
                yield pickle.loads(body)
        finally:
            del buffer[:start]


class SocketInbox:
    """The engine's inbox: read by the engine's own thread, so that no second thread competes for the interpreter.

    When the server is gone every `get` answers `Shutdown`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._unpacker = Unpacker()
        self._messages: deque[Any] = deque()
        self._closed = False

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The next message, as `queue.Queue.get`; raises queue.Empty when there is none (after `timeout` seconds)."""
        while not self._messages:
            if self._closed:
                return Shutdown()
            wait_ms = (None if timeout is None else timeout * 1000) if block else 0
            if not self._poll.poll(wait_ms):
                raise queue.Empty
            self._receive()
        return self._messages.popleft()

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def _receive(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except ConnectionError:
            data = b""
        if data:
            self._messages.extend(self._unpacker.feed(data))
        else:
            self._closed = True


class SocketPost:
    """The engine's way out. Blocks when the server does not keep up; raises ConnectionError when it is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __call__(self, message: Any) -> None:
        self._sock.sendall(pack(message))
