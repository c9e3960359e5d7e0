"""The gRPC service `jaxinfer.v1.Inference`: one short method for each call, the work is elsewhere."""

# ruff: noqa: N802 (the methods have the names of the .proto)

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import Message

from jaxinfer.sampling_params import InvalidRequest, as_token_ids
from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from serving import replies
from serving.engine_client import EngineClient
from serving.observing.record import Origin
from serving.observing.tracing import TRACE_HEADERS
from serving.request import ModelContext
from serving.status import BAD_INPUT, Refusal, invalid, unavailable
from serving.stream import GenerationStream
from serving.text_worker import PART_BYTES, TextWorker
from serving.validation import encode_prompt, prepare, refuse_unknown_fields
from serving.wire import size_of

_LOG = logging.getLogger("serving")
STALL_SECONDS = 120.0  # without taking any of the answer, as over HTTP

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


class InferenceServicer(pb_grpc.InferenceServicer):
    """Serves calls once `model` is set."""

    stall_seconds = STALL_SECONDS  # an attribute so that tests can be quick

    def __init__(self, client: EngineClient, worker: TextWorker, max_waiting: int, max_message_bytes: int) -> None:
        self.model: ModelContext | None = None
        self._client = client
        self._worker = worker
        self._max_waiting = max_waiting
        self._max_message_bytes = max_message_bytes
        self._started = time.monotonic()

    # -- generation -----------------------------------------------------------------------------------------------

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """Written with `context.write` rather than as a generator: a cancellation then always lands in this body, and
        the sequences are aborted before the call is over."""
        origin = Origin("grpc", "Generate", trace=trace_headers(context), received=time.monotonic())
        try:
            prepared = await self._off_loop(request, lambda model: prepare(request, model))
            stream = self._client.submit(prepared, self._ready().tokenizer, origin)
        except (Refusal, *BAD_INPUT) as error:
            self._client.refused += 1
            code = error.code if isinstance(error, Refusal) else grpc.StatusCode.INVALID_ARGUMENT
            self._client.recorder.refused(origin, code.name, error)
            await refuse(context, error)
        try:
            await self._send_all(stream, context)
        except Refusal as refusal:
            if refusal.code == grpc.StatusCode.DEADLINE_EXCEEDED:
                self._client.close(stream)  # the status waits behind what the client does not take
            await refuse(context, refusal)
        finally:
            self._client.close(stream)

    async def _send_all(self, stream: GenerationStream, context: Context) -> None:
        prepared = stream.prepared
        seconds = self.stall_seconds
        await write(context, replies.started(prepared.request_id, len(prepared.token_ids)), seconds)
        while (batch := await stream.read()) is not None:
            async for message in replies.news(batch):
                await write(context, message, seconds)
        await write(context, replies.finished(stream), seconds)

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        return await answer(request, context, self._abort)

    def _abort(self, request: pb.AbortRequest) -> pb.AbortResponse:
        if not request.request_id:
            raise InvalidRequest("request_id", "", "it must name a request")
        return pb.AbortResponse(found=self._client.abort(request.request_id))

    # -- text -----------------------------------------------------------------------------------------------------

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        return await self._text("Tokenize", request, context, lambda model: _tokenize(request, model))

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        return await self._text("Detokenize", request, context, lambda model: _detokenize(request, model))

    async def _text(self, call: str, request: Message, context: Context, work: Callable[[ModelContext], T]) -> T:
        try:
            return await self._off_loop(request, work)
        except (Refusal, *BAD_INPUT) as error:
            code = error.code if isinstance(error, Refusal) else grpc.StatusCode.INVALID_ARGUMENT
            self._client.recorder.refused(Origin("grpc", call), code.name, error)
            await refuse(context, error)

    # -- information ----------------------------------------------------------------------------------------------

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        return await answer(
            request, context, lambda _: replies.model_info(self._ready(), self._max_waiting, self._max_message_bytes)
        )

    async def GetStats(self, request: pb.GetStatsRequest, context: Context) -> pb.GetStatsResponse:
        return await answer(request, context, lambda _: self._stats())

    def _stats(self) -> pb.GetStatsResponse:
        client = self._client
        return replies.stats(
            client.stats,
            open_requests=client.open_requests,
            accepted=client.accepted,
            refused=client.refused,
            uptime=time.monotonic() - self._started,
            draining=client.draining,
        )

    # -- help -----------------------------------------------------------------------------------------------------

    def _ready(self) -> ModelContext:
        if self.model is None:
            raise unavailable("the model is still loading")
        return self.model

    async def _off_loop(self, request: Message, work: Callable[[ModelContext], T]) -> T:
        """Runs tokenizer work; in a thread when the request is long, so that other streams go on meanwhile."""
        model = self._ready()
        return await self._worker.run(_cost(request), lambda: work(model))


def _cost(request: Message) -> int:
    """Its size for the text worker; a short request can have many messages."""
    messages = len(request.chat.messages) if isinstance(request, pb.GenerateRequest | pb.TokenizeRequest) else 0
    return size_of(request) + PART_BYTES * messages


async def answer(request: Any, context: Context, work: Callable[[Any], T]) -> T:
    """What `work` makes of a request without unknown fields; a refusal ends the call."""
    try:
        refuse_unknown_fields(request)
        return work(request)
    except (Refusal, *BAD_INPUT) as error:
        await refuse(context, error)


def trace_headers(context: Context) -> tuple[tuple[str, str], ...]:
    """The W3C headers of distributed traces, as the client's metadata."""
    found = context.invocation_metadata() or ()
    return tuple((name, str(value)) for name, value in found if name in TRACE_HEADERS)


def _tokenize(request: pb.TokenizeRequest, model: ModelContext) -> pb.TokenizeResponse:
    refuse_unknown_fields(request)
    return pb.TokenizeResponse(token_ids=encode_prompt(request, model))


def _detokenize(request: pb.DetokenizeRequest, model: ModelContext) -> pb.DetokenizeResponse:
    refuse_unknown_fields(request)
    if model.tokenizer is None:
        raise InvalidRequest("token_ids", list(request.token_ids[:8]), "this server runs without a tokenizer")
    ids = as_token_ids("token_ids", request.token_ids, model.info.vocab_size)
    skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
    return pb.DetokenizeResponse(text=model.tokenizer.decode(ids, skip_special_tokens=skip))


async def write(context: Context, message: Any, seconds: float = STALL_SECONDS) -> None:
    """Waits while the client's flow-control window is full, but not for ever. Raises Refusal."""
    try:
        async with asyncio.timeout(seconds):
            await context.write(message)
    except TimeoutError:
        _LOG.warning("a client took nothing of its answer for %g s; its call is ended", seconds)
        raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, f"nothing of the answer was taken for {seconds:g} s") from None


async def refuse(context: Context, error: Exception) -> NoReturn:
    refusal = error if isinstance(error, Refusal) else invalid(error)
    await context.abort(refusal.code, refusal.message, refusal.metadata)
