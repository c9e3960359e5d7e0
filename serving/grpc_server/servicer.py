"""The gRPC service `jaxinfer.v1.Inference`: one short method for each call, the work is elsewhere."""

# ruff: noqa: N802 (the methods have the names of the .proto)

from __future__ import annotations

import time

from google.protobuf.message import Message

from jaxinfer.errors import InvalidRequest
from jaxinfer.sampling_params import check_token_ids
from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from serving.frontend.frontend import Frontend
from serving.frontend.stream import GenerationStream
from serving.grpc_server import replies
from serving.grpc_server.call_handler import STALL_SECONDS, CallHandler, Context, answering, write
from serving.grpc_server.convert import NAMES, prompt_of, refuse_unknown_fields, to_request
from serving.grpc_server.wire import size_of
from serving.request import ModelContext, encode_prompt
from serving.text_worker import BESIDE, PART_BYTES


class InferenceServicer(pb_grpc.InferenceServicer):
    """Serves calls once the frontend has a model."""

    stall_seconds = STALL_SECONDS  # an attribute so that tests can be quick

    def __init__(self, frontend: Frontend, max_message_bytes: int) -> None:
        self._frontend = frontend
        self._handler = CallHandler("grpc", frontend, names=NAMES)
        self._max_message_bytes = max_message_bytes

    # -- generation -----------------------------------------------------------------------------------------------

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """Written with `context.write` rather than as a generator: a cancellation then always lands in this body, and
        the sequences are aborted before the call is over."""
        stream, _ = await self._handler.submit(
            "Generate", _cost(request), lambda _: (to_request(request), None), context
        )
        try:
            await self._send_all(stream, context)
        finally:
            self._frontend.close(stream)

    async def _send_all(self, stream: GenerationStream, context: Context) -> None:
        prepared = stream.prepared
        seconds = self.stall_seconds
        await write(context, replies.started(prepared.request_id, len(prepared.token_ids)), seconds)
        while (deltas := await stream.read()) is not None:
            async for message in replies.messages(deltas):
                await write(context, message, seconds)
        await write(context, replies.finished(stream), seconds)

    @answering
    def Abort(self, request: pb.AbortRequest) -> pb.AbortResponse:
        if not request.request_id:
            raise InvalidRequest("request_id", "", "it must name a request")
        return pb.AbortResponse(found=self._frontend.abort(request.request_id))

    # -- text -----------------------------------------------------------------------------------------------------

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        return await self._handler.text("Tokenize", _cost(request), lambda model: _tokenize(request, model))

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        return await self._handler.text("Detokenize", _cost(request), lambda model: _detokenize(request, model))

    # -- information ----------------------------------------------------------------------------------------------

    @answering
    def GetModelInfo(self, _: pb.GetModelInfoRequest) -> pb.GetModelInfoResponse:
        frontend = self._frontend
        return replies.model_info(frontend.ready_model(), frontend.max_waiting, self._max_message_bytes)

    @answering
    def GetStats(self, _: pb.GetStatsRequest) -> pb.GetStatsResponse:
        frontend = self._frontend
        return replies.stats(
            frontend.stats,
            open_requests=frontend.open_requests,
            accepted=frontend.accepted,
            refused=frontend.refused,
            uptime=time.monotonic() - self._handler.started,
            draining=frontend.draining,
            warming=frontend.warming,
        )


def _cost(request: Message) -> int:
    """Its size for the text worker; a short request can have many messages."""
    messages = len(request.chat.messages) if isinstance(request, pb.GenerateRequest | pb.TokenizeRequest) else 0
    size = size_of(request) + PART_BYTES * messages
    constrained = isinstance(request, pb.GenerateRequest) and request.sampling.HasField("structured_outputs")
    return max(size, BESIDE) if constrained else size


def _tokenize(request: pb.TokenizeRequest, model: ModelContext) -> pb.TokenizeResponse:
    refuse_unknown_fields(request)
    return pb.TokenizeResponse(token_ids=encode_prompt(prompt_of(request), model))


def _detokenize(request: pb.DetokenizeRequest, model: ModelContext) -> pb.DetokenizeResponse:
    refuse_unknown_fields(request)
    if model.tokenizer is None:
        raise InvalidRequest("token_ids", list(request.token_ids[:8]), "this server runs without a tokenizer")
    check_token_ids("token_ids", request.token_ids, model.info.vocab_size)
    skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
    return pb.DetokenizeResponse(text=model.tokenizer.decode(request.token_ids, skip_special_tokens=skip))
