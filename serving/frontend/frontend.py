"""The one way of a request from any server to an engine: prepare, limits, admission, stream.

gRPC, HTTP, batch files and gateways call `Frontend.submit`; what differs between them is how they make a
`GenerationRequest` of what their client sent, and how they write what the stream gives.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from jaxinfer.errors import BAD_INPUT, InvalidRequest
from jaxinfer.messages import EngineInfo, EngineStats, Progress
from serving import garbage
from serving.access.access import Access
from serving.access.caller import CALLER
from serving.engine_process import EXIT_OK, EXIT_REFUSED
from serving.errors import Refusal, RequestError, unavailable
from serving.filters.contract import Filter
from serving.frontend.admission import AdmissionControl
from serving.frontend.engine_link import EngineEnd, EngineLink, StartedEngine
from serving.frontend.stream import GenerationStream
from serving.observing.record import NOWHERE, Origin
from serving.observing.recorder import Recorder
from serving.pace import Pace
from serving.request import GenerationRequest, ModelContext, PreparedRequest, prepare
from serving.text_worker import TextWorker

# What submitting a request takes, in steps of `Pace`.
_SUBMIT_STEPS, _TOKENS_A_STEP = 40, 64
_QUIET_SECONDS = 0.5  # without a stream, before there is time for a garbage collection

T = TypeVar("T")
Prepare = Callable[[Sequence[GenerationRequest]], list[PreparedRequest]]
# What a server makes of its client's message: requests through `Prepare`, and whatever it needs to answer.
Convert = Callable[[ModelContext, Prepare], tuple[list[PreparedRequest], T]]


class Frontend:
    """What all servers share. Made and used on one event loop; serves once `open` was called with a model.

    Several engines must serve the same model. A request goes to the engine with the fewest open sequences and stays
    there. The failure of one engine is the end of all: the server ends loudly and is started again as a whole.

    Args:
        max_waiting: Sequences accepted beyond those that the engines run at a time.
        worker: Prepares long requests beside the event loop; whoever made it closes it.
        recorder: Follows every request, for metrics, logs, ledger and traces.
        access: Keys, roles and limits of callers.
        output_filter: Judges and changes the text of answers.

    Attributes:
        ready: Resolves to the engines' EngineInfo when all of them serve.
        warm: Resolves to it when all of them have compiled all programs, usually at the same time.
        ended: Resolves to the EngineEnd of the first that failed, or of the last when all were shut down.
        idle: Set while no stream is open.
        links: The connections to the engines.
        accepted, refused: Requests that an engine was given, and those that were not taken.
    """

    def __init__(
        self,
        max_waiting: int,
        worker: TextWorker,
        *,
        recorder: Recorder | None = None,
        access: Access | None = None,
        output_filter: Filter | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[EngineInfo] = loop.create_future()
        self.warm: asyncio.Future[EngineInfo] = loop.create_future()
        self.ended: asyncio.Future[EngineEnd] = loop.create_future()
        self.idle = asyncio.Event()
        self.idle.set()
        self.model: ModelContext | None = None
        self.recorder = recorder or Recorder()
        self.access = access or Access()
        self.links: list[EngineLink] = []
        self.draining = False
        self.accepted = 0
        self._refused = 0
        self._worker = worker
        self._output_filter = output_filter
        self._admission = AdmissionControl(self.access, max_waiting)
        self._links_of: dict[str, EngineLink] = {}  # of open streams, by the engine's id
        self._serial = itertools.count()
        self.recorder.metrics.sources.append(self._live_metrics)

    async def connect(self, engines: Sequence[StartedEngine], on_progress: Callable[[Progress], None]) -> None:
        """Once. on_progress: is told how far the first engine's loading is; the others do the same beside it."""
        for number, engine in enumerate(engines):
            told = on_progress if number == 0 else _ignore
            link = EngineLink(engine, number, told, self.recorder, self.access)
            self.links.append(link)
            link.ready.add_done_callback(self._is_ready)
            link.warm.add_done_callback(self._is_warm)
            link.ended.add_done_callback(self._has_ended)
        for link in self.links:
            await link.connect()

    def _is_ready(self, _: asyncio.Future[EngineInfo]) -> None:
        if self.ready.done() or not all(link.ready.done() for link in self.links):
            return
        infos = [link.ready.result() for link in self.links]
        first = infos[0]
        for info in infos[1:]:
            for field in ("model", "vocab_size", "max_model_len", "max_logprobs", "num_pages", "page_size"):
                if getattr(info, field) != getattr(first, field):
                    values = f"{getattr(first, field)!r} and {getattr(info, field)!r}"
                    self._end(EngineEnd(f"the engines of one server differ in {field}: {values}", EXIT_REFUSED))
                    return
        info = first._replace(max_num_seqs=sum(info.max_num_seqs for info in infos))
        self.recorder.metrics.info = info
        self.ready.set_result(info)

    def _is_warm(self, _: asyncio.Future[EngineInfo]) -> None:
        if self.warm.done() or not self.ready.done() or not all(link.warm.done() for link in self.links):
            return
        info = self.ready.result()._replace(executables=self.links[0].warm.result().executables)
        self.recorder.metrics.info = info
        if self.model is not None:
            notes = self.model.info.notes
            self.model = replace(self.model, info=info._replace(notes=notes))
        self.warm.set_result(info)

    def _has_ended(self, ended: asyncio.Future[EngineEnd]) -> None:
        """One that has drained may leave before the others."""
        end = ended.result()
        if end.code != EXIT_OK or all(link.ended.done() for link in self.links):
            self._end(end)

    def _end(self, end: EngineEnd) -> None:
        if not self.ended.done():
            self.ended.set_result(end)

    def open(self, model: ModelContext) -> None:
        """Requests are checked against this model and served from now on."""
        self.model = model

    # -- requests -------------------------------------------------------------------------------------------------

    async def submit(
        self, size: int, convert: Convert[T], origin: Origin = NOWHERE
    ) -> tuple[list[GenerationStream], T]:
        """Takes a client's message to the engines: a stream for each request of it, all or none.

        Args:
            size: Of the message, for the text worker (see `TextWorker.run`).
            convert: Makes requests of the message; may run in a thread.
            origin: Where the message came in.

        Returns:
            The streams, which the caller must `close`, and what `convert` made beside them.

        Raises:
            Refusal, one of BAD_INPUT, and what `convert` raises.
        """
        try:
            model = self.ready_model()
            prepared, more = await self._worker.run(
                size, lambda: convert(model, lambda requests: self.prepare(requests, model))
            )
            return await self._begin(prepared, model, origin), more
        except (RequestError, *BAD_INPUT):
            self._refused += 1
            raise

    async def run(self, size: int, work: Callable[[ModelContext], T]) -> T:
        """What `work` makes of the model and a client's message of `size`, without an engine. Raises Refusal."""
        model = self.ready_model()
        return await self._worker.run(size, lambda: work(model))

    def prepare(self, requests: Sequence[GenerationRequest], model: ModelContext) -> list[PreparedRequest]:
        """As `prepare` in request.py, for all of a message's. May run in a thread."""
        self.check_room(requests)
        return [prepare(request, model) for request in requests]

    def check_room(self, requests: Sequence[GenerationRequest]) -> None:
        """Several prompts that can never be held at a time are refused for good, not until later. Raises
        InvalidRequest."""
        n, limit = requests[0].sampling.get("n", 1), self.max_sequences
        if len(requests) > 1 and isinstance(n, int) and len(requests) * n > limit:
            raise InvalidRequest(
                "prompt", f"{len(requests)} prompts", f"with n {n} at most {limit // n} are taken at a time"
            )

    async def _begin(
        self, requests: Sequence[PreparedRequest], model: ModelContext, origin: Origin
    ) -> list[GenerationStream]:
        """In pieces: there can be many."""
        self._admission.check_limits(requests, origin)
        self._check_serving()
        left = sum(prepared.params.n for prepared in requests)  # places that are taken and not used yet
        self._admission.take_places(left, self.ready.result().max_num_seqs)
        streams: list[GenerationStream] = []
        pace = Pace()
        try:
            for prepared in requests:
                streams.append(self._begin_one(prepared, model, origin))
                left -= prepared.params.n
                if len(requests) > 1:
                    await pace.spend(_SUBMIT_STEPS + len(prepared.token_ids) // _TOKENS_A_STEP)
        except BaseException:
            for stream in streams:
                self.close(stream)
            raise
        finally:
            self._admission.give_back_places(left)
        return streams

    def _begin_one(self, prepared: PreparedRequest, model: ModelContext, origin: Origin) -> GenerationStream:
        """Of a request that has its places."""
        self._check_serving()
        caller = origin.caller
        self._admission.check_name(prepared, caller)
        engine_id = f"{prepared.request_id}/{next(self._serial)}"
        link = min(self.links, key=lambda link: link.open_sequences)  # the first of equals
        if prepared.user:
            origin = replace(origin, user=prepared.user)
        record = self.recorder.begin(prepared, engine_id, origin, link.number)
        stream = GenerationStream(prepared, record, model.tokenizer, self._output_filter)
        self._admission.begin(stream)
        self._links_of[engine_id] = link
        self.idle.clear()
        self.accepted += 1
        judged = self._output_filter is not None
        link.begin(stream, prepared.sent_as(engine_id, record.submitted, caller, judged=judged))
        return stream

    def _check_serving(self) -> None:
        if self.draining:
            raise unavailable("the server is shutting down and takes no new requests")
        if self.ended.done() or self.failing:
            raise unavailable("the engine has ended")
        if not self.ready.done():
            raise unavailable("the model is still loading")

    def close(self, stream: GenerationStream) -> None:
        """The reader is done with the stream; what still runs of it is aborted. Idempotent."""
        link = self._links_of.pop(stream.engine_id, None)
        if link is None:
            return
        self._admission.close(stream)
        link.close(stream)
        self.recorder.close(stream.record, stream.content)
        if not self._links_of:
            self.idle.set()
            asyncio.get_running_loop().call_later(_QUIET_SECONDS, self._tidy)

    def _tidy(self) -> None:
        if not self._links_of:
            garbage.tidy()

    def abort(self, request_id: str) -> bool:
        """Asks the engine to end a request by the client's id; its stream then finishes. False when none is alive that
        the running call's caller may end: one of its own tenant's, for an admin anybody's."""
        found = self._admission.named(request_id, CALLER.get())
        for stream in found:
            self._links_of[stream.engine_id].abort(stream)
        return bool(found)

    # -- what is known --------------------------------------------------------------------------------------------

    def ready_model(self) -> ModelContext:
        """Raises Refusal while the model is loading."""
        if self.model is None:
            raise unavailable("the model is still loading")
        return self.model

    @property
    def state(self) -> str:
        """Why requests cannot be served; "" when they can."""
        if self.failed:
            return "the engine has ended"
        if self.model is None:
            return "the model is still loading"
        if self.draining:
            return "the server is shutting down"
        return "the engine has no news of its requests" if self.stuck else ""

    @property
    def failing(self) -> bool:
        """An engine has said that it failed; `ended` resolves soon."""
        return any(link.failing for link in self.links)

    @property
    def failed(self) -> bool:
        """No request will be served any more."""
        return self.failing or self.ended.done()

    @property
    def stuck(self) -> bool:
        """An engine owes news for too long."""
        return any(link.stuck for link in self.links)

    @property
    def warming(self) -> bool:
        """Served, in small steps: an engine is still compiling."""
        return self.ready.done() and not self.warm.done()

    @property
    def max_waiting(self) -> int:
        """Sequences accepted beyond those that the engines run at a time."""
        return self._admission.max_waiting

    @property
    def max_sequences(self) -> int:
        """Sequences that may be open at a time; once the engines are ready."""
        return self.ready.result().max_num_seqs + self.max_waiting

    @property
    def open_sequences(self) -> int:
        return self._admission.open_sequences

    @property
    def streams(self) -> list[GenerationStream]:
        """The open ones."""
        return [stream for link in self.links for stream in link.streams.values()]

    @property
    def open_requests(self) -> int:
        return len(self._links_of)

    @property
    def refused(self) -> int:
        """Requests that were not taken, here or by an engine."""
        return self._refused + sum(link.rejected for link in self.links)

    @property
    def unstarted_prompt_tokens(self) -> int:
        """Of the prompts of requests without a first token, cached ones included."""
        return sum(stream.record.prompt_tokens for stream in self.streams if not stream.record.first_token)

    @property
    def last_news(self) -> float:
        """When an engine last said something, in seconds of time.monotonic()."""
        return max(link.last_news for link in self.links)

    @property
    def stats(self) -> EngineStats:
        """The engines' last word."""
        return self.recorder.metrics.stats

    def _live_metrics(self) -> dict[str, float]:
        """What an engine that is busy or stuck has not said yet counts, too."""
        unfinished = sum(stream.unfinished for stream in self.streams)
        running = min(self.stats.running, unfinished)
        return {
            "num_requests_running": running,
            "num_requests_waiting": unfinished - running,
            "requests_accepted_total": self.accepted,
            "requests_open": self.open_requests,
            "engine_stuck": int(self.stuck),
            "engine_warming": int(self.warming),
        }

    # -- the end --------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Takes no new requests; the engines finish what they have and end. See `drained`."""
        self.draining = True
        for link in self.links:
            link.drain()

    async def drained(self, timeout: float) -> None:
        """Until every engine has finished what it had, one has failed, or so many seconds are over."""
        drained = asyncio.ensure_future(self._all_drained())
        waiters: list[asyncio.Future[Any]] = [drained, self.ended]
        await asyncio.wait(waiters, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()

    async def _all_drained(self) -> None:
        for link in self.links:
            await link.drained.wait()

    def shutdown(self) -> None:
        self.draining = True
        for link in self.links:
            link.shutdown()

    def fail_all(self, refusal: Refusal) -> None:
        """Ends every open stream with a status."""
        for link in self.links:
            link.fail_all(refusal)

    async def wait_for_exits(self, timeout: float) -> None:
        """Until the engines' processes have left, at most so many seconds."""
        await asyncio.gather(*(link.wait(timeout) for link in self.links))

    async def disconnect(self) -> None:
        """Kills engines that still run and waits for their ends, so that nothing outlives the event loop."""
        await asyncio.gather(*(link.disconnect() for link in self.links))


def _ignore(_: Progress) -> None:
    """Of an engine that loads beside the one whose progress is shown."""
