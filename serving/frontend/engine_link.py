"""The connection to one engine, on the event loop: its socket, its messages, the streams that wait for them, its end.

The loop wakes once for every batch of bytes from the engine, which is one `StepOutputs` a step. Nothing here waits for
the engine: writes are buffered by the transport, and what may be buffered is bounded by admission. While messages are
being delivered nothing more is read; the engine does not wait for that, it makes one message of several
(`serving.frames.SocketPost`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, replace
from typing import Any, Protocol

from jaxinfer.messages import (
    NO_LOGITS,
    Abort,
    Died,
    Drain,
    Drained,
    EngineInfo,
    Progress,
    Ready,
    Rejected,
    Shutdown,
    StepOutputs,
    Submit,
    Warmed,
)
from serving.access.access import Access
from serving.engine_process import EXIT_CRASHED, EXIT_OK, describe_exit
from serving.errors import Refusal, internal, rejected, unfit
from serving.frames import Unpacker, pack
from serving.frontend.stream import GenerationStream
from serving.observing.recorder import Recorder

_LOG = logging.getLogger("serving.engine")

_AT_ONCE = 32  # sequences of a step whose news are taken in one piece: a few milliseconds where they end
_EXIT_WAIT = 5.0  # seconds for a process whose connection closed to tell its exit code


class StartedEngine(Protocol):
    """An engine that runs: `EngineProcess`, or a thread in tests."""

    sock: Any

    async def wait(self, timeout: float) -> int | None: ...

    def kill(self) -> None: ...

    async def describe(self, timeout: float) -> dict[str, Any] | None:
        """The engine's last plan; None when it does not answer within `timeout` seconds."""
        ...


class EngineEnd(Exception):
    """How the engine ended: one sentence, exit code, the engine's traceback ("" where there is none)."""

    def __init__(self, reason: str, code: int, traceback: str = "") -> None:
        super().__init__(reason)
        self.reason, self.code, self.traceback = reason, code, traceback


class EngineLink(asyncio.Protocol):
    """Talks to one engine. Made and used on one event loop.

    Args:
        engine: The started engine whose socket this is.
        number: Which one of the frontend's engines it is, from 0 on.
        on_progress: Is told how far the engine's loading is.
        recorder: Is told of every step and every end.
        access: Charges callers for the tokens that they get.

    Attributes:
        ready: Resolves to EngineInfo when the engine serves.
        warm: Resolves to EngineInfo when all its programs are compiled, usually at the same time.
        ended: Resolves to an EngineEnd, always.
        drained: Set when the engine has finished what it had after `drain`.
        streams: The open ones, by the engine's id.
        open_sequences: Of the open streams.
        rejected: Requests that the engine did not take.
        stuck: The engine owes news for too long; set by the watchdog.
    """

    def __init__(
        self,
        engine: StartedEngine,
        number: int,
        on_progress: Callable[[Progress], None],
        recorder: Recorder,
        access: Access,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[EngineInfo] = loop.create_future()
        self.warm: asyncio.Future[EngineInfo] = loop.create_future()
        self.ended: asyncio.Future[EngineEnd] = loop.create_future()
        self.drained = asyncio.Event()
        self.number = number
        self.streams: dict[str, GenerationStream] = {}
        self.open_sequences = self.rejected = 0
        self.draining = self.stuck = False
        self.last_news = time.monotonic()
        self._engine = engine
        self._on_progress = on_progress
        self._recorder = recorder
        self._access = access
        self._unpacker = Unpacker()
        self._transport: asyncio.Transport | None = None
        self._death: Died | None = None
        self._unsent: list[bytes] = []  # frames of this turn of the loop
        self._arrived: deque[Any] = deque()  # messages behind a long one
        self._delivering: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self, sock=self._engine.sock)

    # -- streams --------------------------------------------------------------------------------------------------

    def begin(self, stream: GenerationStream, submit: Submit) -> None:
        """Sends a request; its news go to the stream until that is closed."""
        if not self.streams:
            self.last_news = time.monotonic()
        self.streams[submit.request_id] = stream
        self.open_sequences += submit.params.n
        self._send(submit)

    def close(self, stream: GenerationStream) -> None:
        """Nobody reads the open stream any more; what still runs of it is aborted."""
        del self.streams[stream.engine_id]
        self.open_sequences -= stream.prepared.params.n
        if not stream.finished:
            self.abort(stream)

    def abort(self, stream: GenerationStream) -> None:
        """Asks the engine to end a request; its stream then finishes."""
        self._send(Abort(stream.engine_id))

    @property
    def waiting_for_engine(self) -> bool:
        """Some request is not finished, so the engine owes news."""
        return any(not stream.finished for stream in self.streams.values())

    @property
    def failing(self) -> bool:
        """The engine has said that it failed; `ended` resolves soon."""
        return self._death is not None

    # -- the end --------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """The engine finishes what it has and ends. `drained` is set when it has."""
        if not self.draining:
            self.draining = True
            self._send(Drain())

    def shutdown(self) -> None:
        self.draining = True
        self._send(Shutdown())

    def fail_all(self, refusal: Refusal) -> None:
        """Ends every open stream with a status."""
        for stream in self.streams.values():
            stream.fail(refusal)

    async def describe(self, timeout: float) -> dict[str, Any]:
        """What a stuck engine was doing and whom it keeps waiting, without anybody's text."""
        now = time.monotonic()
        requests = [
            {
                "request_id": stream.prepared.request_id,
                "engine_id": stream.engine_id,
                "prompt_tokens": stream.record.prompt_tokens,
                "completion_tokens": stream.record.output_tokens,
                "seconds": round(now - stream.record.received, 3),
            }
            for stream in self.streams.values()
        ]
        return {
            "silent_seconds": round(now - self.last_news, 3),
            "last_plan": await self._engine.describe(timeout) or "the engine does not answer",
            "open_requests": requests,
            "stats": asdict(self._recorder.metrics.stats),
        }

    async def wait(self, timeout: float) -> None:
        """Until the engine has left, at most so many seconds."""
        await self._engine.wait(timeout)

    def give_up(self, reason: str) -> None:
        """Declares the engine failed, as if it had said so itself, and kills it."""
        self._death = self._death or Died(reason, "")
        self._kill()

    async def disconnect(self) -> None:
        """Kills the engine if it still runs and waits for its end, so that nothing outlives the event loop."""
        self._kill()
        await asyncio.wait([self.ended], timeout=_EXIT_WAIT)

    def _kill(self) -> None:
        self._engine.kill()
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for message in self._unpacker.feed(data):
            if self._delivering is None and not _is_long(message):
                self._receive(message)
                continue
            self._arrived.append(message)
            if self._delivering is None:
                self._delivering = self._start(self._receive_in_turn())
        if self._delivering is not None and self._transport is not None:
            self._transport.pause_reading()

    async def _receive_in_turn(self) -> None:
        """The messages that have arrived, those of many sequences in pieces between which others run."""
        try:
            while self._arrived:
                message = self._arrived.popleft()
                if not _is_long(message):
                    self._receive(message)
                    continue
                for part in _in_pieces(message):
                    self._receive(part)
                    await asyncio.sleep(0)
        finally:
            self._delivering = None
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._start(self._end())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _end(self) -> None:
        if self._delivering is not None:
            await asyncio.wait([self._delivering])
        if self._death is not None:
            # The reason is known: the streams need not wait for the process to be gone.
            self.fail_all(internal(f"the engine failed: {self._death.error}"))
        code = await self._engine.wait(_EXIT_WAIT)
        if self._death is not None:
            end = EngineEnd(self._death.error, code or EXIT_CRASHED, self._death.traceback)
        elif self.draining and code in (EXIT_OK, None):
            end = EngineEnd("the engine was shut down", EXIT_OK)
        else:
            end = EngineEnd(describe_exit(code), code or EXIT_CRASHED)
        self.fail_all(internal(f"the engine failed: {end.reason}"))
        self._recorder.engine_ended(self.number, failed=end.code != EXIT_OK)
        if not self.ended.done():
            self.ended.set_result(end)

    # -- messages -------------------------------------------------------------------------------------------------

    def _send(self, message: Any) -> None:
        """In order, and what one turn of the loop sends is written at once: a thousand requests are no thousand calls
        of the system, between which other threads take the interpreter."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._write)
        self._unsent.append(pack(message))

    def _write(self) -> None:
        frames, self._unsent = self._unsent, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(frames))

    def _receive(self, message: Any) -> None:
        self.last_news = time.monotonic()
        if isinstance(message, StepOutputs):
            self._deliver(message)
        elif isinstance(message, Rejected):
            stream = self.streams.get(message.request_id)
            if stream is not None:
                self.rejected += 1
                self._recorder.reject(stream.record)
                stream.fail(rejected(message))
        elif isinstance(message, Progress):
            self._on_progress(message)
        elif isinstance(message, Ready):
            self.ready.set_result(message.info)
            if not message.warming:
                self.warm.set_result(message.info)
        elif isinstance(message, Warmed):
            self.warm.set_result(message.info)
        elif isinstance(message, Drained):
            self.drained.set()
        elif isinstance(message, Died):
            self._death = message
        else:
            raise TypeError(f"the engine sent {message!r}, which is not one of its messages")

    def _deliver(self, step: StepOutputs) -> None:
        self._recorder.step(step, self.number)
        for scored in step.prompts:
            stream = self.streams.get(scored.request_id)
            if stream is not None:
                stream.push_prompt(scored)
        for output in step.sequences:
            stream = self.streams.get(output.request_id)
            if stream is None:
                continue  # given up on this side, the Abort is on its way
            if output.finish_reason == "error":
                stream.record.failed = not stream.finished  # a stop string may have ended it on this side
                stream.fail(internal(NO_LOGITS) if output.message == NO_LOGITS else unfit(output.message))
                continue
            try:
                delta = stream.push(output)
            except Refusal as refusal:  # the output filter's
                stream.record.failed = True
                stream.fail(refusal)
                self._send(Abort(stream.engine_id))
                continue
            except Exception as error:  # one request's text must not take the others down
                stream.record.failed = True
                _LOG.exception("request %s: cannot turn the engine's tokens into text", stream.prepared.request_id)
                stream.fail(internal(f"cannot turn the engine's tokens into text: {error}"))
                self._send(Abort(stream.engine_id))
                continue
            if delta is None:
                continue
            self._recorder.delta(stream.record, delta, self.last_news)
            if not self._access.open:
                self._access.limiter.use(stream.record.origin.caller, len(delta.token_ids))
            if delta.stopped:
                self._send(Abort(stream.engine_id, output.index))


def _is_long(message: Any) -> bool:
    return isinstance(message, StepOutputs) and len(message.sequences) > _AT_ONCE


def _in_pieces(step: StepOutputs) -> Iterator[StepOutputs]:
    """The same news in several messages. What is of the whole step is in each, and counted once: see `Metrics.step`."""
    for start in range(0, len(step.sequences), _AT_ONCE):
        yield replace(step, sequences=step.sequences[start : start + _AT_ONCE], prompts=[] if start else step.prompts)
