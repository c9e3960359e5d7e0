"""Messages of `vllm.grpc.engine` to and from what every server shares.

The service takes token ids or text and answers with token ids alone: its clients turn them into text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import TokenLogprobs
from jaxinfer.outputs import PROMPT, Delta
from jaxinfer.sampling_params import MAX_TOKEN_LIST, clamped_bias
from serving.frontend.stream import GenerationStream
from serving.grpc_server.call_handler import refuse_others
from serving.grpc_server.convert import plain_list, refuse_unknown_fields
from serving.grpc_server.replies import tokens_per_message
from serving.pace import Pace
from serving.request import GenerationRequest, ModelContext, Prompt, TextPrompt, TokenPrompt, check_count

_Message = Any  # GenerateStreamChunk or GenerateComplete: the package has no types
_SLICE = 256  # tokens
_STEPS_PER_ENTRY = 4  # of `Pace`
_REQUEST = frozenset({"request_id", "tokenized", "text", "sampling_params", "stream", "data_parallel_rank"})
_REFUSED: Mapping[str, str] = {
    "kv_transfer_params": "keys and values stay in the engine that computed them",
    "kv_transfer_params_json": "keys and values stay in the engine that computed them",
    "mm_inputs": "this server takes text only",
    "extra_mm_inputs": "this server takes text only",
    "media_refs": "this server takes text only",
}
# Zero is their default here, too.
_SAME = ("min_p", "frequency_penalty", "presence_penalty", "min_tokens", "ignore_eos")
_OPTIONAL = ("max_tokens", "logprobs", "prompt_logprobs", "seed")
# Of the protocol's oneof -> of StructuredOutputsParams.
_CONSTRAINTS = {
    "json_schema": "json",
    **{name: name for name in ("regex", "grammar", "structural_tag", "json_object", "choice")},
}
# The servers' shared names -> this protocol's, for errors.
NAMES: Mapping[str, str] = {"token_ids": "tokenized.input_ids", "prompt": "input"} | {
    f"structured_outputs.{ours}": theirs for theirs, ours in _CONSTRAINTS.items()
}
_SAMPLING = frozenset(
    {
        *(*_SAME, *_OPTIONAL, "temperature", "top_p", "top_k", "repetition_penalty", "n", "logit_bias"),
        *("stop", "stop_token_ids", "include_stop_str_in_output", "truncate_prompt_tokens"),
        # A constraint always starts there: nothing here parses the answers.
        *_CONSTRAINTS,
        "grammar_from_first_token",
        # Of the text, which this service does not send. Stop strings are looked for as skip_special_tokens says.
        *("skip_special_tokens", "spaces_between_special_tokens"),
    }
)


def to_request(request: pb.GenerateRequest, context: ModelContext) -> GenerationRequest:
    """Raises InvalidRequest."""
    refuse_unknown_fields(request)
    for name, why in _REFUSED.items():
        if any(field.name == name for field, _ in request.ListFields()):
            raise InvalidRequest(name, "set", f"it must not be set: {why}")
    refuse_others(request, _REQUEST)
    if request.HasField("data_parallel_rank") and request.data_parallel_rank != 0:
        raise InvalidRequest("data_parallel_rank", request.data_parallel_rank, "0 is the only rank of this server")
    return GenerationRequest(
        _prompt(request),
        sampling(request.sampling_params, context),
        request_id=request.request_id,
        final_only=not request.stream,
    )


def _prompt(request: pb.GenerateRequest) -> Prompt:
    kind = request.WhichOneof("input")
    if kind == "text":
        return TextPrompt(request.text)
    if kind == "tokenized":  # original_text is for reference, as the protocol says: nothing is computed from it
        return TokenPrompt(request.tokenized.input_ids)
    raise InvalidRequest("input", None, "one of tokenized and text must be set")


def sampling(params: pb.SamplingParams, context: ModelContext) -> dict[str, Any]:
    """Sampling fields by SamplingParams' names. What is unset has the protocol's default and not the model's: a gateway
    reads the model's from GetModelInfo and sends them. Raises InvalidRequest."""
    refuse_others(params, _SAMPLING, "sampling_params.")
    given: dict[str, Any] = {name: getattr(params, name) for name in _SAME}
    given |= {name: getattr(params, name) if params.HasField(name) else None for name in _OPTIONAL}
    given |= {
        "temperature": params.temperature if params.HasField("temperature") else 1.0,
        "top_p": params.top_p if params.top_p != 0 else 1.0,
        "top_k": params.top_k,
        "repetition_penalty": params.repetition_penalty if params.repetition_penalty != 0 else 1.0,
        "n": params.n or 1,
        "stop_token_ids": plain_list("stop_token_ids", params.stop_token_ids),
    }
    check_count("logit_bias", params.logit_bias, MAX_TOKEN_LIST)
    given["logit_bias"] = {token: clamped_bias(bias) for token, bias in params.logit_bias.items()}
    constraint = params.WhichOneof("constraint")
    if constraint is not None:
        value = getattr(params, constraint)
        value = plain_list("choice", value.choices) if constraint == "choice" else value
        given["structured_outputs"] = {_CONSTRAINTS[constraint]: value}
    if params.stop:
        given["stop"] = plain_list("stop", params.stop)
    if params.include_stop_str_in_output:
        given["include_stop_str_in_output"] = True
    if context.tokenizer is not None:
        given["skip_special_tokens"] = params.skip_special_tokens
    if params.HasField("truncate_prompt_tokens"):
        limit = params.truncate_prompt_tokens
        room = context.info.max_model_len - (given["max_tokens"] or 1)  # -1: as much as leaves room for the answer
        given["truncate_prompt_tokens"] = max(1, room) if limit == -1 else limit
    return given


class VllmReplies:
    """The messages of one request's stream.

    stream: chunks as they come and one `complete` for each sequence when it ends; else the latter alone. As vLLM does
    it, a chunk counts its own tokens and `complete` all of them.
    """

    def __init__(self, stream: GenerationStream, *, chunks: bool) -> None:
        self._stream = stream
        self._chunks = chunks
        self._params = stream.prepared.params
        self._prompt: list[TokenLogprobs] = []
        self._begun: set[int] = set()
        self._pace = Pace()

    async def messages(self, deltas: Sequence[Delta]) -> AsyncIterator[pb.GenerateResponse]:
        """For what was read at once; other tasks run while they are made."""
        for delta in deltas:
            if delta.index == PROMPT:
                self._prompt += delta.logprobs  # all of them are there before the first token
                continue
            if self._chunks:
                async for message in self._chunked(delta):
                    yield message
            if delta.finish_reason is not None:
                yield await self._complete(delta)

    async def _chunked(self, delta: Delta) -> AsyncIterator[pb.GenerateResponse]:
        prompt, _, cached = self._stream.usage
        size = tokens_per_message(delta.logprobs)
        for i in range(0, len(delta.token_ids), size):
            ids = delta.token_ids[i : i + size]
            message = pb.GenerateResponse(
                chunk=pb.GenerateStreamChunk(
                    token_ids=ids,
                    prompt_tokens=prompt,
                    completion_tokens=len(ids),
                    cached_tokens=cached,
                    index=delta.index,
                )
            )
            await self._add_output_logprobs(message.chunk, delta.logprobs[i : i + size])
            if delta.index not in self._begun:
                await self._add_input_logprobs(message.chunk)
            self._begun.add(delta.index)
            yield message

    async def _complete(self, delta: Delta) -> pb.GenerateResponse:
        prompt, _, cached = self._stream.usage
        output = self._stream.output(delta.index)
        response = pb.GenerateResponse(
            complete=pb.GenerateComplete(
                output_ids=output.token_ids,
                finish_reason=delta.finish_reason,
                prompt_tokens=prompt,
                completion_tokens=len(output.token_ids),
                cached_tokens=cached,
                index=delta.index,
            )
        )
        message = response.complete
        await self._add_output_logprobs(message, output.logprobs or ())
        await self._add_input_logprobs(message)
        if isinstance(delta.stop_reason, str):
            message.matched_stop_str = delta.stop_reason
        elif delta.stop_reason is not None:
            message.matched_token_id = delta.stop_reason
        return response

    async def _add_output_logprobs(self, message: _Message, entries: Sequence[TokenLogprobs]) -> None:
        if not entries:
            return
        target = message.output_logprobs
        for start in range(0, len(entries), _SLICE):
            part = entries[start : start + _SLICE]
            target.token_logprobs.extend([entry.logprob for entry in part])
            target.token_ids.extend([entry.token_id for entry in part])
            if self._params.logprobs:
                await self._add_top(target.top_logprobs, part)

    async def _add_input_logprobs(self, message: _Message) -> None:
        """Of the whole prompt: nothing precedes its first token, which has no value."""
        if self._params.prompt_logprobs is None:
            return
        target = message.input_logprobs
        target.token_logprobs.add()
        target.token_ids.extend(self._stream.prepared.token_ids)
        if self._params.prompt_logprobs:
            target.top_logprobs.add()
        for start in range(0, len(self._prompt), _SLICE):
            part = self._prompt[start : start + _SLICE]
            target.token_logprobs.extend([pb.InputTokenLogProb(value=entry.logprob) for entry in part])
            await self._pace.spend(len(part))
            if self._params.prompt_logprobs:
                await self._add_top(target.top_logprobs, part)

    async def _add_top(self, target: Any, entries: Sequence[TokenLogprobs]) -> None:
        for entry in entries:
            target.append(_top(entry))
            await self._pace.spend(_STEPS_PER_ENTRY + len(entry.top) // 8)  # numbers are quicker than text


def _top(entry: TokenLogprobs) -> pb.TopLogProbs:
    return pb.TopLogProbs(values=[value for _, value in entry.top], token_ids=[token for token, _ in entry.top])
