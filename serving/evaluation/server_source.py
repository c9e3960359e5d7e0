"""Answers of a running server, asked over gRPC, as `jaxinfer.evaluation` takes them."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np

from jaxinfer.evaluation.source import (
    PLAIN_STOPS,
    AnswerText,
    Chat,
    Distributions,
    OnDone,
    Scored,
    SourceInfo,
    plain_prompt,
)
from jaxinfer.sampling_params import FIELDS
from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc

Stub = Any  # pb_grpc.InferenceStub on an asynchronous channel
_In = TypeVar("_In")
_Out = TypeVar("_Out")


class NoTokenizer(ValueError):
    """The server takes and gives token ids only; tasks are text."""


class _Carrying:
    """A stub whose calls carry metadata."""

    def __init__(self, stub: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._stub, self._metadata = stub, metadata

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(getattr(self._stub, name), metadata=self._metadata)


class ServerSource:
    """A running server. Every call opens a channel of its own and keeps at most `concurrency` requests in flight."""

    def __init__(
        self,
        address: str,
        concurrency: int,
        channel: Callable[[list[tuple[str, Any]]], grpc.aio.Channel] | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Asks the server what it serves.

        Args:
            address: HOST:PORT of its gRPC port.
            concurrency: requests in flight.
            channel: makes one with the options it is given; None: without TLS.
            metadata: what every call carries.

        Raises:
            NoTokenizer: the server has none.
            grpc.aio.AioRpcError: it cannot be reached, or refuses.
        """
        self._concurrency, self._metadata = concurrency, tuple(metadata)
        self._channel = channel or (lambda options: grpc.aio.insecure_channel(address, options=options))
        (info,) = self._each([None], lambda stub, _: stub.GetModelInfo(pb.GetModelInfoRequest()))
        if not info.has_tokenizer:
            raise NoTokenizer(f"the server at {address} runs without a tokenizer; tasks are text, so it needs one")
        self.info = SourceInfo(
            model=info.model,
            where=address,
            vocab_size=info.vocab_size,
            max_model_len=info.limits.max_model_len,
            max_logprobs=info.limits.max_logprobs,
            chat=bool(info.chat_templates),
            settings={
                "architecture": info.architecture,
                "dtype": info.dtype,
                "tensor_parallel_size": info.tensor_parallel_size,
                "expert_parallel_size": info.expert_parallel_size,
                "device": info.device,
                "backends": dict(info.backends),
                "max_model_len": info.limits.max_model_len,
                "max_num_seqs": info.limits.max_num_seqs,
                "max_num_batched_tokens": info.limits.max_num_batched_tokens,
                "page_size": info.page_size,
                "server_version": info.server_version,
                "concurrency": concurrency,
            },
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenize([pb.TokenizeRequest(text=text) for text in texts])

    def encode_chats(self, chats: Sequence[Chat]) -> list[list[int]]:
        if not self.info.chat:
            return self.encode([plain_prompt(chat.messages) for chat in chats])
        requests = []
        for chat in chats:
            messages = [pb.ChatMessage(role=message["role"], content=message["content"]) for message in chat.messages]
            tools = [json.dumps(tool) for tool in chat.tools]
            variables = json.dumps(dict(chat.variables)) if chat.variables else ""
            asked = pb.Chat(messages=messages, tools_json=tools, template_variables_json=variables)
            requests.append(pb.TokenizeRequest(chat=asked))
        return self._tokenize(requests)

    def decode(self, ids: Sequence[int]) -> str:
        request = pb.DetokenizeRequest(token_ids=ids)
        return str(self._each([request], lambda stub, r: stub.Detokenize(r))[0].text)

    def generate(
        self, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int], on_done: OnDone
    ) -> list[AnswerText]:
        stops = () if self.info.chat else PLAIN_STOPS
        requests = [_request(ids, limit, stop=stops) for ids, limit in zip(prompts, max_tokens, strict=True)]

        async def ask(stub: Stub, request: pb.GenerateRequest) -> AnswerText:
            text, reason = "", pb.FINISH_REASON_UNSPECIFIED
            async for event in stub.Generate(request):
                if event.HasField("delta"):
                    text += event.delta.text
                    reason = event.delta.finish_reason or reason
            return AnswerText(text, pb.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower())

        return self._each(requests, ask, on_done)

    def score(self, prompts: Sequence[Sequence[int]], on_done: OnDone) -> list[Scored]:
        async def ask(stub: Stub, request: pb.GenerateRequest) -> Scored:
            entries = await _prompt_entries(stub, request)
            return Scored(np.array([e.logprob for e in entries], np.float64), np.array([e.rank for e in entries]))

        return self._each([_request(ids, 1, prompt_logprobs=0) for ids in prompts], ask, on_done)

    def distributions(self, prompts: Sequence[Sequence[int]], alternatives: int) -> Iterator[Distributions]:
        async def ask(stub: Stub, request: pb.GenerateRequest) -> Distributions:
            entries = await _prompt_entries(stub, request)
            return Distributions(
                np.array([[other.token_id for other in entry.top] for entry in entries], np.int32),
                np.array([[other.logprob for other in entry.top] for entry in entries], np.float32),
            )

        for prompt in prompts:
            yield from self._each([_request(prompt, 1, prompt_logprobs=alternatives)], ask)

    def _tokenize(self, requests: Sequence[pb.TokenizeRequest]) -> list[list[int]]:
        return [list(reply.token_ids) for reply in self._each(requests, lambda stub, r: stub.Tokenize(r))]

    def _each(
        self,
        inputs: Sequence[_In],
        ask: Callable[[Stub, _In], Awaitable[_Out]],
        on_done: OnDone = lambda: None,
    ) -> list[_Out]:
        return asyncio.run(self._ask_all(inputs, ask, on_done))

    async def _ask_all(
        self, inputs: Sequence[_In], ask: Callable[[Stub, _In], Awaitable[_Out]], on_done: OnDone
    ) -> list[_Out]:
        """The answers in the order of the inputs. The first failure ends the others."""
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        places = asyncio.Semaphore(self._concurrency)
        async with self._channel(options) as channel:
            stub: Stub = _Carrying(pb_grpc.InferenceStub(channel), self._metadata)

            async def one(value: _In) -> _Out:
                async with places:
                    answer = await ask(stub, value)
                on_done()
                return answer

            tasks = [asyncio.create_task(one(value)) for value in inputs]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def _request(ids: Sequence[int], max_tokens: int, **sampling: Any) -> pb.GenerateRequest:
    """Greedy, whatever defaults the server took from the model's generation config."""
    neutral: dict[str, Any] = {
        name: declared.off
        for name, declared in FIELDS.items()
        if declared.generation_config and declared.off is not None
    }
    params = pb.SamplingParams(temperature=0.0, max_tokens=max_tokens, **neutral, **sampling)
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=params, final_only=True)


async def _prompt_entries(stub: Stub, request: pb.GenerateRequest) -> list[pb.TokenLogprobs]:
    entries: list[pb.TokenLogprobs] = []
    async for event in stub.Generate(request):
        if event.HasField("prompt_logprobs"):
            entries += event.prompt_logprobs.entries
    return entries
