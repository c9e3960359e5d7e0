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
from dataclasses import replace
from typing import Any

from jaxinfer.messages import PromptScored, Shutdown, StepOutputs

_HEADER = struct.Struct("!I")
_SCORES_AT_ONCE = 1 << 14  # values in the log-probabilities of one message
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
        for part in _in_pieces(message):
            self._sock.sendall(pack(part))


def _in_pieces(message: Any) -> Iterator[Any]:
    """The log-probabilities of a long prompt as messages of their own, before what else the step has to say: whoever
    reads a message makes all of its objects at once."""
    if not isinstance(message, StepOutputs) or _size(message.prompts) <= _SCORES_AT_ONCE:
        yield message
        return
    part: list[PromptScored] = []
    for scored in message.prompts:
        count = max(1, _SCORES_AT_ONCE * len(scored.entries) // max(1, _size([scored])))
        for i in range(0, len(scored.entries), count):
            part.append(PromptScored(scored.request_id, scored.start + i, scored.entries[i : i + count]))
            if _size(part) >= _SCORES_AT_ONCE // 2:
                yield StepOutputs([], part, message.stats, message.times)
                part = []
    yield replace(message, prompts=part)


def _size(prompts: list[PromptScored]) -> int:
    """Values in them, about."""
    return sum(len(scored.entries) * (4 + 2 * len(scored.entries[0].top)) for scored in prompts if scored.entries)
