"""Asks a server over its own gRPC protocol."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from serving.bench.records import Answer, BenchRequest, RequestFailed, ServerTrouble
from serving.grpc_server.replies import sampling_to_proto


class GrpcClient:
    """All requests share one channel, as one application's would. sampling: by SamplingParams' names."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        sampling: Mapping[str, Any],
        *,
        ignore_eos: bool,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._channel = channel
        self._stub = pb_grpc.InferenceStub(channel)
        self._sampling = sampling_to_proto({**sampling, "ignore_eos": ignore_eos})
        self._metadata = tuple(metadata)

    async def describe(self) -> Mapping[str, Any]:
        try:
            info = await self._stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise ServerTrouble(f"{error.code().name}: {error.details()}") from error
        return {
            "model": info.model,
            "vocab_size": info.vocab_size,
            "device": info.device,
            "dtype": info.dtype,
            "server": f"jaxinfer {info.server_version}",
            "has_tokenizer": info.has_tokenizer,
        }

    def _message(self, request: BenchRequest) -> pb.GenerateRequest:
        message = pb.GenerateRequest(sampling=self._sampling)
        message.sampling.max_tokens = request.output_len
        if request.token_ids is not None:
            message.token_ids.ids.extend(request.token_ids)
        elif request.text is not None:
            message.text = request.text
        else:
            for said in request.messages or ():
                message.chat.messages.add(role=said["role"], content=said["content"])
        return message

    async def ask(self, request: BenchRequest, answer: Answer) -> None:
        message = self._message(request)
        answer.sent = time.perf_counter()
        finished = False
        try:
            async for event in self._stub.Generate(message, metadata=self._metadata):
                now = time.perf_counter()
                if event.HasField("delta"):
                    if event.delta.token_ids:
                        answer.took_tokens(now, len(event.delta.token_ids))
                    if request.turns:
                        answer.text.append(event.delta.text)
                elif event.HasField("finished"):
                    usage = event.finished.usage
                    answer.prompt_tokens, answer.output_tokens = usage.prompt_tokens, usage.completion_tokens
                    answer.cached_tokens, answer.counted = usage.cached_tokens, True
                    answer.ended, finished = now, True
        except grpc.aio.AioRpcError as error:
            raise RequestFailed(f"{error.code().name}: {error.details()}") from error
        if not finished:
            raise RequestFailed("the stream ended without its last message")

    async def close(self) -> None:
        await self._channel.close()
