"""The server's side of the engine's door, on the event loop: admission, delivery, and the engine's end.

The loop wakes once for every batch of bytes from the engine, which is one `StepOutputs` a step. Nothing here waits for
the engine: writes are buffered by the transport, and what may be buffered is bounded by admission.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

from jaxinfer.messages import (
    NO_LOGITS,
    Abort,
    Died,
    Drain,
    Drained,
    EngineInfo,
    EngineStats,
    Progress,
    Ready,
    Rejected,
    Shutdown,
    StepOutputs,
    Submit,
)
from jaxinfer.sampling_params import InvalidRequest
from jaxinfer.text import Tokenizer
from serving import garbage
from serving.access.access import Access
from serving.access.caller import ADMIN, CALLER
from serving.engine_process import EXIT_CRASHED, EXIT_OK, describe_exit
from serving.filters.contract import Filter
from serving.frames import Unpacker, pack
from serving.observing.record import NOWHERE, Origin
from serving.observing.recorder import Recorder
from serving.pace import Pace
from serving.request import PreparedRequest
from serving.status import DEFAULT_RETRY_MS, Refusal, duplicate, internal, invalid, overloaded, rejected, unavailable
from serving.stream import GenerationStream

_LOG = logging.getLogger("serving.engine")

MIN_RETRY_MS, MAX_RETRY_MS = 100, 60_000
# What submitting a request takes, in steps of `Pace`.
_SUBMIT_STEPS, _TOKENS_A_STEP = 200, 32
_AT_ONCE = 32  # sequences of a step whose news are taken in one piece: a few milliseconds where they end
_QUIET_SECONDS = 0.5  # without a stream, before there is time for a garbage collection
_EXIT_WAIT = 5.0  # seconds for a process whose connection closed to tell its exit code


class EngineLink(Protocol):
    """A started engine: `EngineProcess`, or a thread in tests."""

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


class EngineClient(asyncio.Protocol):
    """Talks to one engine. Made and used on one event loop.

    ready: resolves to EngineInfo when the engine has loaded and warmed up. ended: resolves to an EngineEnd, always.
    max_waiting: sequences accepted beyond max_num_seqs. stuck: the engine owes news for too long; set by the watchdog.
    """

    def __init__(
        self,
        link: EngineLink,
        max_waiting: int,
        on_progress: Callable[[Progress], None],
        recorder: Recorder | None = None,
        access: Access | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[EngineInfo] = loop.create_future()
        self.ended: asyncio.Future[EngineEnd] = loop.create_future()
        self.drained = asyncio.Event()
        self.idle = asyncio.Event()  # no stream is open
        self.idle.set()
        self.recorder = recorder or Recorder()
        self.access = access or Access()
        self.recorder.metrics.sources.append(self._live_metrics)
        self.output_filter: Filter | None = None
        self.draining = self.stuck = False
        self.accepted = self.refused = 0
        self.last_news = time.monotonic()
        self._link = link
        self._max_waiting = max_waiting
        self._on_progress = on_progress
        self._unpacker = Unpacker()
        self._transport: asyncio.Transport | None = None
        self._streams: dict[str, GenerationStream] = {}  # by the engine's id
        self._by_request_id: dict[tuple[str, str], GenerationStream] = {}  # and by tenant
        self._open_sequences = 0
        self._serial = itertools.count()
        self._closings: deque[float] = deque(maxlen=32)  # when the last streams ended
        self._death: Died | None = None
        self._arrived: deque[Any] = deque()  # messages behind a long one
        self._delivering: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def connect(
        cls,
        link: EngineLink,
        max_waiting: int,
        on_progress: Callable[[Progress], None],
        recorder: Recorder | None = None,
        access: Access | None = None,
    ) -> EngineClient:
        client = cls(link, max_waiting, on_progress, recorder, access)
        await asyncio.get_running_loop().create_connection(lambda: client, sock=link.sock)
        return client

    # -- requests -------------------------------------------------------------------------------------------------

    def submit(
        self, prepared: PreparedRequest, tokenizer: Tokenizer | None, origin: Origin = NOWHERE
    ) -> GenerationStream:
        """Admits a request and sends it to the engine. Raises Refusal. The caller must `close` the stream."""
        self._check_limits([prepared], origin)
        self._admit([prepared])
        self._open_sequences += prepared.params.n
        try:
            return self._submit(prepared, tokenizer, origin)
        except BaseException:
            self._open_sequences -= prepared.params.n
            raise

    async def submit_all(
        self, requests: Sequence[PreparedRequest], tokenizer: Tokenizer | None, origin: Origin
    ) -> list[GenerationStream]:
        """All of them or none. Raises Refusal. The caller must `close` the streams. In pieces: there can be many."""
        self._check_limits(requests, origin)
        self._admit(requests)
        left = sum(prepared.params.n for prepared in requests)  # places that are taken and not used yet
        self._open_sequences += left
        streams: list[GenerationStream] = []
        pace = Pace()
        try:
            for prepared in requests:
                streams.append(self._submit(prepared, tokenizer, origin))
                left -= prepared.params.n
                await pace.spend(_SUBMIT_STEPS + len(prepared.token_ids) // _TOKENS_A_STEP)
        except BaseException:
            for stream in streams:
                self.close(stream)
            raise
        finally:
            self._open_sequences -= left
        return streams

    def _check_limits(self, requests: Sequence[PreparedRequest], origin: Origin) -> None:
        sequences = sum(prepared.params.n for prepared in requests)
        tokens = sum(len(prepared.token_ids) for prepared in requests)
        try:
            self.access.check(origin.caller, len(requests), sequences, tokens)
        except Refusal as refusal:
            self.access.audit_refusal(origin.door, origin.endpoint, refusal, origin.caller)
            raise

    def _submit(self, prepared: PreparedRequest, tokenizer: Tokenizer | None, origin: Origin) -> GenerationStream:
        """Of a request that has its places."""
        caller = origin.caller
        self._check_serving()
        if (caller.tenant, prepared.request_id) in self._by_request_id:
            raise duplicate(prepared.request_id)
        self.access.limiter.begin(caller, prepared.params.n, len(prepared.token_ids))
        engine_id = f"{prepared.request_id}/{next(self._serial)}"
        record = self.recorder.begin(prepared, engine_id, origin)
        stream = GenerationStream(prepared, record, tokenizer, self.output_filter)
        if not self._streams:
            self.last_news = time.monotonic()
        self._streams[engine_id] = stream
        self._by_request_id[caller.tenant, prepared.request_id] = stream
        self.idle.clear()
        self.accepted += 1
        self._send(
            Submit(
                engine_id,
                prepared.token_ids,
                prepared.params,
                prepared.seed,
                prepared.priority,
                record.submitted,
                caller.salt(prepared.cache_salt),
                caller.tenant,
                caller.weight,
            )
        )
        return stream

    def _check_serving(self) -> None:
        if self.draining:
            raise unavailable("the server is shutting down and takes no new requests")
        if self.ended.done() or self._death is not None:
            raise unavailable("the engine has ended")
        if not self.ready.done():
            raise unavailable("the model is still loading")

    def _admit(self, requests: Sequence[PreparedRequest]) -> None:
        self._check_serving()
        limit, n = self.max_sequences, sum(prepared.params.n for prepared in requests)
        if n > limit:
            raise invalid(InvalidRequest("n", n, f"this server holds at most {limit} sequences at a time"))
        if self._open_sequences + n > limit:
            held = f"the server holds {self._open_sequences} sequences and takes at most {limit}"
            raise overloaded(held, self._retry_ms(n))

    def _retry_ms(self, places: int) -> int:
        """When `places` more sequences may have ended, judging by how fast the last ones did."""
        guess = DEFAULT_RETRY_MS
        if len(self._closings) > 1:
            span = self._closings[-1] - self._closings[0]
            guess = round(1000 * places * span / (len(self._closings) - 1))
        return min(max(guess, MIN_RETRY_MS), MAX_RETRY_MS)

    def close(self, stream: GenerationStream) -> None:
        """The reader is done with the stream; what still runs of it is aborted. Idempotent."""
        if self._streams.pop(stream.engine_id, None) is None:
            return
        caller = stream.record.origin.caller
        del self._by_request_id[caller.tenant, stream.prepared.request_id]
        self.access.limiter.end(caller, stream.prepared.params.n)
        self._open_sequences -= stream.prepared.params.n
        self._closings.append(time.monotonic())
        if not stream.finished:
            self._send(Abort(stream.engine_id))
        self.recorder.close(stream.record, stream.content)
        if not self._streams:
            self.idle.set()
            asyncio.get_running_loop().call_later(_QUIET_SECONDS, self._tidy)

    def _tidy(self) -> None:
        if not self._streams:
            garbage.tidy()

    def abort(self, request_id: str) -> bool:
        """Asks the engine to end a request by the client's id; its stream then finishes. False when none is alive that
        the running call's caller may end: one of its own tenant's, for an admin anybody's."""
        caller = CALLER.get()
        found = [s for (tenant, name), s in self._by_request_id.items() if name == request_id]
        if ADMIN not in caller.roles:
            found = [stream for stream in found if stream.record.origin.tenant == caller.tenant]
        for stream in found:
            self._send(Abort(stream.engine_id))
        return bool(found)

    @property
    def max_sequences(self) -> int:
        """Sequences that may be open at a time; once the engine is ready."""
        return self.ready.result().max_num_seqs + self._max_waiting

    @property
    def open_requests(self) -> int:
        return len(self._streams)

    @property
    def unstarted_prompt_tokens(self) -> int:
        """Of the prompts of requests without a first token, cached ones included."""
        return sum(stream.record.prompt_tokens for stream in self._streams.values() if not stream.record.first_token)

    @property
    def waiting_for_engine(self) -> bool:
        """Some request is not finished, so the engine owes news."""
        return any(not stream.finished for stream in self._streams.values())

    @property
    def stats(self) -> EngineStats:
        """The engine's last word."""
        return self.recorder.metrics.stats

    def _live_metrics(self) -> dict[str, float]:
        """What an engine that is busy or stuck has not said yet counts, too."""
        unfinished = sum(stream.unfinished for stream in self._streams.values())
        running = min(self.stats.running, unfinished)
        return {
            "num_requests_running": running,
            "num_requests_waiting": unfinished - running,
            "requests_accepted_total": self.accepted,
            "requests_open": self.open_requests,
            "engine_stuck": int(self.stuck),
        }

    @property
    def failing(self) -> bool:
        """The engine has said that it failed; `ended` resolves soon."""
        return self._death is not None

    # -- the end --------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Takes no new requests; the engine finishes what it has and ends. `drained` is set when it has."""
        if not self.draining:
            self.draining = True
            self._send(Drain())

    def shutdown(self) -> None:
        self.draining = True
        self._send(Shutdown())

    def fail_all(self, refusal: Refusal) -> None:
        """Ends every open stream with a status."""
        for stream in self._streams.values():
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
            for stream in self._streams.values()
        ]
        return {
            "silent_seconds": round(now - self.last_news, 3),
            "last_plan": await self._link.describe(timeout) or "the engine does not answer",
            "open_requests": requests,
            "stats": asdict(self.stats),
        }

    def give_up(self, reason: str) -> None:
        """Declares the engine failed, as if it had said so itself, and kills it."""
        self._death = self._death or Died(reason, "")
        self._link.kill()
        if self._transport is not None:
            self._transport.abort()

    async def disconnect(self) -> None:
        """Kills the engine if it still runs and waits for its end, so that nothing outlives the event loop."""
        self._link.kill()
        if self._transport is not None:
            self._transport.abort()
        await asyncio.wait([self.ended], timeout=_EXIT_WAIT)

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
        code = await self._link.wait(_EXIT_WAIT)
        if self._death is not None:
            end = EngineEnd(self._death.error, code or EXIT_CRASHED, self._death.traceback)
        elif self.draining and code in (EXIT_OK, None):
            end = EngineEnd("the engine was shut down", EXIT_OK)
        else:
            end = EngineEnd(describe_exit(code), code or EXIT_CRASHED)
        self.fail_all(internal(f"the engine failed: {end.reason}"))
        self.recorder.engine_ended(failed=end.code != EXIT_OK)
        if not self.ended.done():
            self.ended.set_result(end)

    # -- messages -------------------------------------------------------------------------------------------------

    def _send(self, message: Any) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(message))

    def _receive(self, message: Any) -> None:
        self.last_news = time.monotonic()
        if isinstance(message, StepOutputs):
            self._deliver(message)
        elif isinstance(message, Rejected):
            stream = self._streams.get(message.request_id)
            if stream is not None:
                self.refused += 1
                self.recorder.reject(stream.record)
                stream.fail(rejected(message))
        elif isinstance(message, Progress):
            self._on_progress(message)
        elif isinstance(message, Ready):
            self.recorder.metrics.info = message.info
            self.ready.set_result(message.info)
        elif isinstance(message, Drained):
            self.drained.set()
        elif isinstance(message, Died):
            self._death = message
        else:
            raise TypeError(f"the engine sent {message!r}, which is not one of its messages")

    def _deliver(self, step: StepOutputs) -> None:
        self.recorder.step(step)
        for scored in step.prompts:
            stream = self._streams.get(scored.request_id)
            if stream is not None:
                stream.push_prompt(scored)
        for output in step.sequences:
            stream = self._streams.get(output.request_id)
            if stream is None:
                continue  # given up on this side, the Abort is on its way
            if output.finish_reason == "error":
                stream.record.failed = not stream.finished  # a stop string may have ended it on this side
                stream.fail(internal(NO_LOGITS))
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
            self.recorder.delta(stream.record, delta, self.last_news)
            if not self.access.open:
                self.access.limiter.use(stream.record.origin.caller, len(delta.token_ids))
            if delta.stopped:
                self._send(Abort(stream.engine_id, output.index))


def _is_long(message: Any) -> bool:
    return isinstance(message, StepOutputs) and len(message.sequences) > _AT_ONCE


def _in_pieces(step: StepOutputs) -> Iterator[StepOutputs]:
    """The same news in several messages. What is of the whole step is in each, and counted once: see `Metrics.step`."""
    for start in range(0, len(step.sequences), _AT_ONCE):
        yield replace(step, sequences=step.sequences[start : start + _AT_ONCE], prompts=[] if start else step.prompts)
