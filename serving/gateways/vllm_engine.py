"""vLLM's gRPC service `vllm.grpc.engine.VllmEngine`, as gateways speak it to a worker (docs/gateways.md).

Messages and stubs are the published package smg-grpc-proto's.
"""

# ruff: noqa: N802 (the methods have the names of the .proto)

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import grpc
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as pb_grpc

from jaxinfer import __version__
from jaxinfer.errors import InvalidRequest
from serving.errors import Refusal
from serving.gateways.tokenizer_bundle import Bundle, bundle
from serving.gateways.vllm_convert import VllmReplies, to_request
from serving.grpc_server.call_handler import (
    CallHandler,
    Context,
    answering,
    checking,
    refuse_others,
    unimplemented,
    write,
)
from serving.grpc_server.wire import size_of
from serving.request import NO_TOKENS, ModelContext
from serving.text_worker import BESIDE

SERVER_TYPE = "jaxinfer"
CHUNK_BYTES = 64 << 10  # of the tokenizer's archive in one message
# What GetModelInfo tells of the model's sampling defaults: the names that gateways know.
_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# Of GetLoads. The reply has fields for core alone; gateways ask every engine for the others, too.
_SECTIONS = ("core", "memory", "queues", "spec", "lora", "disagg", "all")
_RATE_SECONDS = 10.0

T = TypeVar("T")


class VllmEngineServicer(pb_grpc.VllmEngineServicer):
    def __init__(self, handler: CallHandler) -> None:
        self._handler = handler
        self._frontend = handler.frontend
        self._throughput = Throughput()
        self._bundle: Bundle | None = None
        self._bundling = asyncio.Lock()

    # -- generation -----------------------------------------------------------------------------------------------

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """As our own service's: written with `context.write`, so that a cancellation always lands in this body."""

        def convert(model: ModelContext) -> tuple[Any, None]:
            if not model.gives_tokens:
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, f"answers are tokens here; {NO_TOKENS}")
            return to_request(request, model), None

        constrained = request.sampling_params.WhichOneof("constraint") is not None
        size = max(size_of(request), BESIDE) if constrained else size_of(request)
        stream, _ = await self._handler.submit("Generate", size, convert, context)
        try:
            replies = VllmReplies(stream, chunks=request.stream)
            while (deltas := await stream.read()) is not None:
                async for message in replies.messages(deltas):
                    await write(context, message)
        finally:
            self._frontend.close(stream)

    @answering
    def Abort(self, request: pb.AbortRequest) -> pb.AbortResponse:
        """An id that is not alive is no error: the request may just have ended."""
        if not request.request_ids or not all(request.request_ids):
            raise InvalidRequest("request_ids", list(request.request_ids), "it must name at least one request")
        for request_id in request.request_ids:
            self._frontend.abort(request_id)
        return pb.AbortResponse()

    async def Embed(self, request: Any, context: Context) -> pb.EmbedResponse:
        raise unimplemented("Embed", "this server generates text")

    # -- information ----------------------------------------------------------------------------------------------

    @answering
    def HealthCheck(self, _: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        state = self._frontend.state
        return pb.HealthCheckResponse(healthy=not state, message=state or "ready")

    @answering
    def GetModelInfo(self, _: pb.GetModelInfoRequest) -> pb.GetModelInfoResponse:
        return model_info(self._frontend.ready_model(), self._handler.folder)

    @answering
    def GetServerInfo(self, _: pb.GetServerInfoRequest) -> pb.GetServerInfoResponse:
        info, now = self._frontend.ready_model().info, time.monotonic()
        return pb.GetServerInfoResponse(
            active_requests=self._frontend.open_requests,
            last_receive_timestamp=time.time() - (now - self._frontend.last_news),
            uptime_seconds=now - self._handler.started,
            server_type=SERVER_TYPE,
            data_parallel_size=1,
            block_size=info.page_size,
            attention_backend=info.backends.get("paged_attention", ""),
            model_dtype=info.dtype,
            max_num_seqs=info.max_num_seqs,
        )

    @answering
    def GetLoads(self, request: pb.GetLoadsRequest) -> pb.GetLoadsResponse:
        refuse_others(request, frozenset({"dp_rank", "include"}))
        if request.HasField("dp_rank") and request.dp_rank != 0:
            raise InvalidRequest("dp_rank", request.dp_rank, "0 is the only rank of this server")
        for section in request.include:
            if section not in _SECTIONS:
                raise InvalidRequest("include", section, f"the sections are {list(_SECTIONS)}")
        info, metrics, stats = self._frontend.ready_model().info, self._frontend.recorder.metrics, self._frontend.stats
        values: dict[str, Any] = metrics.values()
        running, waiting = int(values["num_requests_running"]), int(values["num_requests_waiting"])
        load = pb.SchedulerLoad(
            num_running_reqs=running,
            num_waiting_reqs=waiting,
            num_total_reqs=running + waiting,
            num_used_tokens=int(values["kv_pages"][("used",)]) // info.num_page_tables * info.page_size,
            max_total_num_tokens=info.kv_tokens,
            token_usage=values["kv_cache_usage_perc"],
            gen_throughput=self._throughput.of(metrics.generation_tokens, time.monotonic()),
            cache_hit_rate=stats.prefix_hits / stats.prefix_queries if stats.prefix_queries else 0.0,
            utilization=running / info.max_num_seqs,
            max_running_requests=info.max_num_seqs,
            num_waiting_uncached_tokens=self._frontend.unstarted_prompt_tokens,
        )
        now = datetime.now(UTC).isoformat()
        return pb.GetLoadsResponse(timestamp=now, version=__version__, dp_rank_count=1, loads=[load])

    async def GetTokenizer(self, request: common_pb2.GetTokenizerRequest, context: Context) -> None:
        with checking(request):
            data, sha256 = await self._tokenizer()
        for start in range(0, len(data), CHUNK_BYTES):
            last = start + CHUNK_BYTES >= len(data)
            part = data[start : start + CHUNK_BYTES]
            await context.write(common_pb2.GetTokenizerChunk(data=part, sha256=sha256 if last else ""))

    async def _tokenizer(self) -> Bundle:
        folder = self._handler.folder
        if self._frontend.ready_model().tokenizer is None or folder is None:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "this server runs without a tokenizer")
        async with self._bundling:  # made once, when the first gateway asks
            if self._bundle is None:
                try:
                    self._bundle = await asyncio.to_thread(bundle, folder)
                except OSError as error:
                    raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, f"no tokenizer can be sent: {error}") from error
            return self._bundle

    # -- what this engine does not do -----------------------------------------------------------------------------

    async def FlushCache(self, request: Any, context: Context) -> common_pb2.FlushCacheResponse:
        raise unimplemented("FlushCache", "the prefix cache is dropped page by page, as room is needed")

    async def StartProfile(self, request: Any, context: Context) -> common_pb2.ProfileResponse:
        raise unimplemented("StartProfile", "this server has no profiler")

    async def StopProfile(self, request: Any, context: Context) -> common_pb2.ProfileResponse:
        raise unimplemented("StopProfile", "this server has no profiler")

    async def SubscribeKvEvents(self, request: Any, context: Context) -> None:
        raise unimplemented("SubscribeKvEvents", "this engine publishes no events of its KV cache")


class Throughput:
    """Tokens a second of the last seconds, from a counter that is read when somebody asks."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, float]] = deque()

    def of(self, count: float, now: float) -> float:
        """0 the first time. now: seconds of time.monotonic()."""
        readings = self._readings
        while len(readings) > 1 and readings[1][0] <= now - _RATE_SECONDS:
            readings.popleft()
        if not readings or now - readings[-1][0] >= _RATE_SECONDS / 20:  # so that many askers cost no more than one
            readings.append((now, count))
        start, first = readings[0]
        return (count - first) / (now - start) if now > start else 0.0


def model_info(model: ModelContext, folder: Path | None) -> pb.GetModelInfoResponse:
    info, tokenizer = model.info, model.tokenizer
    defaults = {name: model.defaults[name] for name in _DEFAULTS if model.defaults.get(name) is not None}
    return pb.GetModelInfoResponse(
        model_path=str(folder) if folder is not None else model.name,
        is_generation=True,
        max_context_length=info.max_model_len,
        vocab_size=info.vocab_size,
        served_model_name=model.name,
        tokenizer_path=str(folder) if folder is not None and tokenizer is not None else "",
        model_type=_model_type(folder),
        architectures=[info.architecture],
        eos_token_ids=info.eos_token_ids,
        pad_token_id=(tokenizer.pad_token_id or 0) if tokenizer is not None else 0,
        bos_token_id=(tokenizer.bos_token_id or 0) if tokenizer is not None else 0,
        max_req_input_len=info.max_model_len - 1,  # with room for one token
        default_sampling_params_json=json.dumps(defaults) if defaults else "",
    )


def _model_type(folder: Path | None) -> str:
    """As Hugging Face's config.json names it; "" where there is none."""
    path = None if folder is None else folder / "config.json"
    if path is None or not path.is_file():
        return ""
    found = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    return found if isinstance(found, str) else ""
