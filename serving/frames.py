"""Messages over the socket pair between server and engine process: a length (4 bytes, big endian), then a pickle.

Both ends belong to one program and the socket has no name, so unpickling is safe here and nowhere else. A step's
sequences are sent as columns: a tenth of the time that pickling hundreds of named tuples takes.
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
from functools import partial
from typing import Any, NamedTuple

from jaxinfer.expert_load import ExpertLoad
from jaxinfer.messages import (
    EngineStats,
    PromptScored,
    SequenceOutput,
    Shutdown,
    StepOutputs,
    StepTimes,
    TenantPins,
)

_HEADER = struct.Struct("!I")
_SCORES_AT_ONCE = 1 << 14  # values in the log-probabilities of one message
_CHUNK = 1 << 18  # bytes taken from the socket at once
_SEND_BUFFER = 200_000  # bytes at least: a step's news fit, so that the engine need not come back for their rest


class _Step(NamedTuple):
    """`StepOutputs` on its way. columns: the fields of its sequences, one tuple each; none where there are none."""

    columns: tuple[tuple[Any, ...], ...]
    prompts: list[PromptScored]
    stats: EngineStats
    times: StepTimes
    expert_load: ExpertLoad | None
    pins: tuple[TenantPins, ...] | None


_sequence = partial(tuple.__new__, SequenceOutput)  # of its fields, which were a SequenceOutput's before


def pack(message: Any) -> bytes:
    """One frame."""
    if isinstance(message, StepOutputs):
        columns = tuple(zip(*message.sequences, strict=True))
        message = _Step(columns, message.prompts, message.stats, message.times, message.expert_load, message.pins)
    body = pickle.dumps(message, protocol=5)
    return _HEADER.pack(len(body)) + body


def _unpack(body: bytes) -> Any:
    message = pickle.loads(body)
    if isinstance(message, _Step):
        sequences = [*map(_sequence, zip(*message.columns, strict=True))]
        _, prompts, stats, times, load, pins = message
        return StepOutputs(sequences, prompts, stats, times, load, pins)
    return message


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
                yield _unpack(body)
        finally:
            del buffer[:start]


class SocketInbox:
    """The engine's inbox: read by the engine's own thread, so that no second thread competes for the interpreter.

    When the server is gone every `get` answers `Shutdown`. post: its `flush` is called before the engine waits.
    """

    def __init__(self, sock: socket.socket, post: SocketPost | None = None) -> None:
        self._sock = sock
        self._post = post
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
            if block and self._post is not None:
                self._post.flush()
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
    """The engine's way out. It never waits for a server that is busy: what the server has not taken is kept, and the
    news of several steps become one message. Raises ConnectionError when the server is gone.

    `flush` waits until everything is on its way; an inbox calls it before the engine waits for work.
    """

    def __init__(self, sock: socket.socket) -> None:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < _SEND_BUFFER:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLOUT)
        self._rest = memoryview(b"")  # of the last frame
        self._kept: deque[Any] = deque()  # messages, of which no two neighbours are a step's

    def __call__(self, message: Any) -> None:
        if self._kept and isinstance(message, StepOutputs) and isinstance(self._kept[-1], StepOutputs):
            self._kept[-1].add(message)
        else:
            self._kept.append(message)
        while (self._rest or self._kept) and self._poll.poll(0):
            self._write(socket.MSG_DONTWAIT)
            if self._rest:
                return

    def flush(self) -> None:
        """Blocks until the server has taken what is kept, but for what the socket holds."""
        while self._rest or self._kept:
            self._write(0)

    def _write(self, flags: int) -> None:
        """Sends what is left of a frame, or else the next message."""
        if not self._rest:
            self._rest = memoryview(b"".join(map(pack, _in_pieces(self._kept.popleft()))))
        try:
            self._rest = self._rest[self._sock.send(self._rest, flags) :]
        except BlockingIOError:
            return


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
