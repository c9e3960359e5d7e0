"""From the engine's words to messages on the wire."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Mapping, Sequence

from jaxinfer import __version__
from jaxinfer.constraints.params import StructuredOutputsParams
from jaxinfer.messages import EngineStats, TokenLogprobs
from jaxinfer.outputs import PROMPT, Delta
from jaxinfer.sampling_params import (
    FIELDS,
    MAX_N,
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_TOKEN_LIST,
    SamplingParams,
)
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.frontend.stream import GenerationStream
from serving.pace import Pace
from serving.request import ModelContext, chat_template_names

# Pieces of a long catch-up after a slow read: with 20 log-probabilities a token such a message has about 100 kB, far
# below the 4 MiB that clients take by default.
MAX_TOKENS_PER_MESSAGE = 256
# Milliseconds of work, where the engine gives more than 20. A single position of 250,000 alternatives has 4 MB.
MAX_ALTERNATIVES_PER_MESSAGE = 1 << 13
MAX_CHARACTERS_PER_MESSAGE = 1 << 16
_SLICE = 1024  # alternatives between two looks at the pace

_REASONS = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "abort": pb.FINISH_REASON_ABORT,
}


def started(request_id: str, prompt_tokens: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(started=pb.GenerateResponse.Started(request_id=request_id, prompt_tokens=prompt_tokens))


def finished(stream: GenerationStream) -> pb.GenerateResponse:
    prompt, completion, cached = stream.usage
    usage = pb.Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)
    return pb.GenerateResponse(finished=pb.GenerateResponse.Finished(usage=usage))


async def messages(deltas: Sequence[Delta]) -> AsyncIterator[pb.GenerateResponse]:
    """For what a stream's reader took at once; other tasks run while they are made."""
    pace = Pace()
    for delta in deltas:
        async for message in _scored(delta, pace) if delta.index == PROMPT else _deltas(delta, pace):
            yield message


async def _scored(delta: Delta, pace: Pace) -> AsyncIterator[pb.GenerateResponse]:
    entries = delta.logprobs
    size = tokens_per_message(entries)
    for i in range(0, len(entries), size):
        part = [await _logprobs(entry, pace) for entry in entries[i : i + size]]
        yield pb.GenerateResponse(
            prompt_logprobs=pb.GenerateResponse.PromptLogprobs(start=delta.start + i, entries=part)
        )


async def _deltas(delta: Delta, pace: Pace) -> AsyncIterator[pb.GenerateResponse]:
    text = delta.text
    size = tokens_per_message(delta.logprobs)
    parts = max(1, -(-len(delta.token_ids) // size), -(-len(text) // MAX_CHARACTERS_PER_MESSAGE))
    for i in range(parts):
        tokens = slice(i * size, (i + 1) * size)
        message = pb.GenerateResponse.Delta(
            index=delta.index,
            text=text[i * MAX_CHARACTERS_PER_MESSAGE : (i + 1) * MAX_CHARACTERS_PER_MESSAGE],
            token_ids=delta.token_ids[tokens],
            logprobs=[await _logprobs(entry, pace) for entry in delta.logprobs[tokens]],
        )
        if i == parts - 1:
            message.finish_reason = _REASONS[delta.finish_reason]
            if isinstance(delta.stop_reason, str):
                message.stop_string = delta.stop_reason
            elif delta.stop_reason is not None:
                message.stop_token_id = delta.stop_reason
        yield pb.GenerateResponse(delta=message)
        await pace.spend(32)


def tokens_per_message(entries: Sequence[TokenLogprobs]) -> int:
    widest = max((len(entry.top) for entry in entries), default=0)
    return max(1, min(MAX_TOKENS_PER_MESSAGE, MAX_ALTERNATIVES_PER_MESSAGE // max(1, widest)))


async def _logprobs(entry: TokenLogprobs, pace: Pace) -> pb.TokenLogprobs:
    message = pb.TokenLogprobs(token_id=entry.token_id, logprob=entry.logprob, rank=entry.rank)
    for start in range(0, len(entry.top), _SLICE):
        part = entry.top[start : start + _SLICE]
        message.top.extend([pb.TokenLogprobs.Alternative(token_id=token, logprob=value) for token, value in part])
        await pace.spend(len(part))
    return message


def sampling_to_proto(values: Mapping[str, object]) -> pb.SamplingParams:
    """Sampling fields by name as a message; None and empty lists stay unset."""
    message = pb.SamplingParams()
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, StructuredOutputsParams):
            message.structured_outputs.CopyFrom(_structured_to_proto(value))
        elif name == "allowed_token_ids":
            message.allowed_token_ids.CopyFrom(pb.TokenIds(ids=list(value)))  # type: ignore[call-overload]
        elif isinstance(value, Mapping):
            getattr(message, name).update(value)
        elif isinstance(value, (list, tuple)):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def _structured_to_proto(params: StructuredOutputsParams) -> pb.StructuredOutputs:
    message = pb.StructuredOutputs()
    for name, value in params.to_mapping().items():
        if name == "choice":
            message.choice.choices.extend(value)
        else:
            as_text = name in ("json", "structural_tag") and not isinstance(value, str)
            setattr(message, name, json.dumps(value, ensure_ascii=False) if as_text else value)
    return message


def model_info(context: ModelContext, max_waiting: int, max_message_bytes: int) -> pb.GetModelInfoResponse:
    info = context.info
    defaults = SamplingParams(**{"max_tokens": None, **context.defaults})
    limits = pb.GetModelInfoResponse.Limits(
        max_model_len=info.max_model_len,
        max_num_seqs=info.max_num_seqs,
        max_num_batched_tokens=info.max_num_batched_tokens,
        max_waiting=max_waiting,
        kv_tokens=info.kv_tokens,
        max_n=MAX_N,
        max_logprobs=info.max_logprobs,
        max_stop_strings=MAX_STOP_STRINGS,
        max_stop_length=MAX_STOP_LENGTH,
        max_stop_token_ids=MAX_STOP_TOKEN_IDS // 2,
        max_token_list=MAX_TOKEN_LIST,
        max_message_bytes=max_message_bytes,
    )
    executables = [
        pb.GetModelInfoResponse.Executable(name=name, compile_seconds=seconds) for name, seconds in info.executables
    ]
    return pb.GetModelInfoResponse(
        model=context.name,
        architecture=info.architecture,
        vocab_size=info.vocab_size,
        limits=limits,
        dtype=info.dtype,
        tensor_parallel_size=info.tensor_parallel_size,
        expert_parallel_size=info.expert_parallel_size,
        device=info.device,
        backends=info.backends,
        page_size=info.page_size,
        num_pages=info.num_pages,
        eos_token_ids=info.eos_token_ids,
        supported_parameters=supported_parameters(context),
        default_sampling=sampling_to_proto({name: getattr(defaults, name) for name in FIELDS}),
        has_tokenizer=context.tokenizer is not None,
        chat_templates=chat_template_names(context.tokenizer),
        notes=info.notes,
        executables=executables,
        server_version=__version__,
    )


def supported_parameters(context: ModelContext) -> list[str]:
    """Sampling fields that take effect; without a tokenizer those about text are refused."""
    return [name for name, field in FIELDS.items() if context.tokenizer is not None or not field.needs_tokenizer]


def stats(
    engine: EngineStats,
    *,
    open_requests: int,
    accepted: int,
    refused: int,
    uptime: float,
    draining: bool,
    warming: bool,
) -> pb.GetStatsResponse:
    """Every field of EngineStats under its own name, and the server's own counters."""
    return pb.GetStatsResponse(
        **dataclasses.asdict(engine),
        open_requests=open_requests,
        accepted_requests=accepted,
        refused_requests=refused,
        uptime_seconds=uptime,
        draining=draining,
        warming=warming,
    )
