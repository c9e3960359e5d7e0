"""KServe's open inference protocol v2 with Triton's streaming, for one text-generating model (docs/gateways.md)."""

# ruff: noqa: N802 (the methods have the names of the .proto)

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from jaxinfer import __version__
from jaxinfer.errors import InvalidRequest
from jaxinfer.text import Tokenizer
from protos.open_inference import grpc_service_pb2 as pb
from protos.open_inference import grpc_service_pb2_grpc as pb_grpc
from serving.errors import Refusal, internal
from serving.gateways.infer_convert import FINAL, INPUTS, OUTPUTS, Asked, InferReplies, to_request
from serving.gateways.tensors import TensorSpec
from serving.grpc_server.call_handler import CallHandler, Context, answering, unimplemented, write
from serving.grpc_server.names import KSERVE, SERVICES
from serving.grpc_server.wire import size_of
from serving.observing.metrics import Metrics
from serving.request import GenerationRequest, ModelContext
from serving.text_worker import BESIDE

_LOG = logging.getLogger("serving.gateways")

VERSION = "1"  # of the model: there is one
PLATFORM = "jaxinfer"
EXTENSIONS = ("model_configuration", "parameters", "schedule_policy", "statistics")
# Requests of one stream that are open at a time; more are left unread.
MAX_IN_FLIGHT = 256
# Metadata by which a client asks for a gRPC status, and the end of the stream, at the first error.
GRPC_ERROR = "triton_grpc_error"

_MODEL = "models are chosen when the server starts"
_MEMORY = "tensors travel in the messages"
UNSERVED: Mapping[str, str] = {
    "RepositoryModelLoad": _MODEL,
    "RepositoryModelUnload": _MODEL,
    "SystemSharedMemoryStatus": _MEMORY,
    "SystemSharedMemoryRegister": _MEMORY,
    "SystemSharedMemoryUnregister": _MEMORY,
    "CudaSharedMemoryStatus": _MEMORY,
    "CudaSharedMemoryRegister": _MEMORY,
    "CudaSharedMemoryUnregister": _MEMORY,
    "TraceSetting": "traces are set up when the server starts (--otlp-traces-endpoint)",
    "LogSettings": "logs are set up when the server starts (--log-level)",
}
_TYPES = {
    "BOOL": pb.TYPE_BOOL,
    "UINT32": pb.TYPE_UINT32,
    "INT32": pb.TYPE_INT32,
    "FP32": pb.TYPE_FP32,
    "BYTES": pb.TYPE_STRING,
}

T = TypeVar("T")


class OpenInferenceServicer(pb_grpc.GRPCInferenceServiceServicer):
    def __init__(self, handler: CallHandler) -> None:
        self._handler = handler
        self._frontend = handler.frontend

    # -- generation -----------------------------------------------------------------------------------------------

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        async with aclosing(self._responses("ModelInfer", request, context)) as responses:
            async for response, _ in responses:  # there is one
                return response
        raise RuntimeError("a request ended without an answer")

    async def ModelStreamInfer(self, requests: AsyncIterator[pb.ModelInferRequest], context: Context) -> None:
        """Every request of the stream is served as it comes; answers of several are mixed, told apart by their id. An
        error is a message, after which the stream goes on."""
        strict = (GRPC_ERROR, "true") in _metadata(context)
        writing, places = asyncio.Lock(), asyncio.Semaphore(MAX_IN_FLIGHT)
        first: BaseException | None = None

        async def serve(request: pb.ModelInferRequest) -> None:
            try:
                await self._stream(request, context, writing, strict=strict)
            finally:
                places.release()

        try:
            async with asyncio.TaskGroup() as group:
                try:
                    async for request in requests:
                        await places.acquire()
                        group.create_task(serve(request))
                except Refusal:  # no message at all
                    await writing.acquire()  # see _stream
                    raise
        except* Refusal as refused:
            first = refused.exceptions[0]
        if first is not None:
            raise first

    async def _stream(
        self, request: pb.ModelInferRequest, context: Context, writing: asyncio.Lock, *, strict: bool
    ) -> None:
        """Serves one request of a stream. Raises its Refusal where the client wants it so (`strict`)."""
        try:
            async with aclosing(self._responses("ModelStreamInfer", request, context)) as responses:
                async for response, final in responses:
                    response.parameters[FINAL].bool_param = final
                    async with writing:
                        await write(context, pb.ModelStreamInferResponse(infer_response=response))
            return
        except Refusal as error:
            refusal = error
        except Exception as error:
            if context.done():
                return  # writing to a client that has left
            _LOG.exception("a request of a stream failed in a way that nobody foresaw")
            refusal = internal(f"{type(error).__name__}: {error}")
        if strict:
            # Kept for good, so that nobody is cancelled within a write: grpcio could send no status after that.
            await writing.acquire()
            raise refusal
        response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        response.parameters[FINAL].bool_param = True
        async with writing:
            await write(context, pb.ModelStreamInferResponse(error_message=refusal.message, infer_response=response))

    async def _responses(
        self, endpoint: str, request: pb.ModelInferRequest, context: Context
    ) -> AsyncGenerator[tuple[pb.ModelInferResponse, bool], None]:
        """(answer, whether it is the last). Raises Refusal."""

        def convert(model: ModelContext) -> tuple[GenerationRequest, tuple[Asked, Tokenizer]]:
            _check_model("model_name", request.model_name, "model_version", request.model_version, model)
            if model.tokenizer is None:
                raise Refusal(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "this server runs without a tokenizer, and the model's output is text",
                )
            generation, asked = to_request(request, streams=endpoint == "ModelStreamInfer")
            return generation, (asked, model.tokenizer)

        size = size_of(request)
        if size < BESIDE and b"structured_outputs" in request.SerializeToString():
            size = BESIDE
        stream, (asked, tokenizer) = await self._handler.submit(endpoint, size, convert, context)
        try:
            replies = InferReplies(stream, asked, self._frontend.ready_model().name, tokenizer)
            deadline = asyncio.get_running_loop().time() + asked.seconds if asked.seconds else None
            while True:
                async with asyncio.timeout_at(deadline):
                    deltas = await stream.read()
                if deltas is None:
                    return
                if asked.stream or stream.finished:  # what came before a failure is no answer
                    yield await replies.message(deltas), stream.finished
        except TimeoutError as error:
            message = f"the request's timeout of {asked.seconds:g} s is over"
            raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, message) from error
        finally:
            self._frontend.close(stream)

    # -- information ----------------------------------------------------------------------------------------------

    @answering
    def ServerLive(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=not self._frontend.failed)

    @answering
    def ServerReady(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=not self._frontend.state)

    @answering
    def ModelReady(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Of a model that is not served, too: it is not ready."""
        if not request.name:
            raise InvalidRequest("name", "", "it must name a model")
        model = self._frontend.model
        served = model is not None and request.name in model.names and request.version in ("", VERSION)
        return pb.ModelReadyResponse(ready=served and not self._frontend.state)

    @answering
    def ServerMetadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="jaxinfer", version=__version__, extensions=EXTENSIONS)

    @answering
    def ModelMetadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        return pb.ModelMetadataResponse(
            name=self._named(request),
            versions=[VERSION],
            platform=PLATFORM,
            inputs=[_metadata_of(spec) for spec in INPUTS.values()],
            outputs=[_metadata_of(spec) for spec in OUTPUTS.values()],
        )

    @answering
    def ModelConfig(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        inputs = [
            pb.ModelInput(name=s.name, data_type=_TYPES[s.datatypes[0]], dims=s.shape, optional=True)
            for s in INPUTS.values()
        ]
        outputs = [
            pb.ModelOutput(name=s.name, data_type=_TYPES[s.datatypes[0]], dims=s.shape) for s in OUTPUTS.values()
        ]
        return pb.ModelConfigResponse(
            config=pb.ModelConfig(
                name=self._named(request),
                platform=PLATFORM,
                backend=PLATFORM,
                input=inputs,
                output=outputs,
                model_transaction_policy=pb.ModelTransactionPolicy(decoupled=True),
            )
        )

    @answering
    def RepositoryIndex(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        if request.repository_name:
            raise InvalidRequest("repository_name", request.repository_name, "it must be empty: there is one")
        state, name = self._frontend.state, self._frontend.ready_model().name
        if state and request.ready:
            return pb.RepositoryIndexResponse()
        found = pb.RepositoryIndexResponse.ModelIndex(
            name=name, version=VERSION, state="UNAVAILABLE" if state else "READY", reason=state
        )
        return pb.RepositoryIndexResponse(models=[found])

    @answering
    def ModelStatistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """Since the start. Without a name of every model: there is one."""
        model = self._frontend.ready_model()
        if request.name or request.version:
            _check_model("name", request.name or model.name, "version", request.version, model)
        return pb.ModelStatisticsResponse(model_stats=[_statistics(self._frontend.recorder.metrics, model.name)])

    def _named(self, request: pb.ModelMetadataRequest | pb.ModelConfigRequest) -> str:
        model = self._frontend.ready_model()
        _check_model("name", request.name, "version", request.version, model)
        return model.name


def _check_model(name_field: str, name: str, version_field: str, version: str, model: ModelContext) -> None:
    """Raises Refusal."""
    for field, value, served in ((name_field, name, model.names), (version_field, version or VERSION, (VERSION,))):
        if value not in served:
            message = str(InvalidRequest(field, value, f"this server serves {' and '.join(map(repr, served))} only"))
            raise Refusal(grpc.StatusCode.NOT_FOUND, message)


def _statistics(metrics: Metrics, name: str) -> pb.ModelStatistics:
    """Of the same numbers as the metrics, of every server's requests. What is not measured by itself (compute_input,
    compute_output, caches of answers) is left out."""
    ends = {"success": ("stop", "length"), "fail": ("abort", "error")}
    found = {
        outcome: pb.StatisticDuration(
            count=sum(metrics.finished[reason,] for reason in reasons),
            ns=round(1e9 * sum(metrics.finished_seconds[reason] for reason in reasons)),
        )
        for outcome, reasons in ends.items()
    }
    for part, histogram in (
        ("queue", "request_queue_time_seconds"),
        ("compute_infer", "request_inference_time_seconds"),
    ):
        times = metrics.histograms[histogram]
        found[part] = pb.StatisticDuration(count=times.count, ns=round(1e9 * times.total))
    return pb.ModelStatistics(
        name=name,
        version=VERSION,
        last_inference=round(1e3 * metrics.last_arrival),
        inference_count=found["success"].count,
        execution_count=metrics.stats.steps,
        inference_stats=pb.InferStatistics(**found),
    )


def _metadata(context: Context) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in context.invocation_metadata() or ())


def _metadata_of(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatypes[0], shape=spec.shape)


def unserved() -> grpc.GenericRpcHandler:
    """Triton's calls that this server does not have, refused by name."""

    def refusing(name: str, why: str) -> Callable[[bytes, Context], Awaitable[None]]:
        async def call(_: bytes, context: Context) -> None:
            raise unimplemented(name, why)

        return call

    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(refusing(name, why)) for name, why in UNSERVED.items()
    }
    return grpc.method_handlers_generic_handler(SERVICES[KSERVE], handlers)
