"""Requests of the open inference protocol to and from what every server shares.

The model's tensors are those of Triton's vLLM backend, so that clients made for it work: names, types, defaults.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.errors import Gathering, InvalidRequest
from jaxinfer.outputs import PROMPT, Delta
from jaxinfer.sampling_fields import Kind
from jaxinfer.sampling_params import FIELDS, clamped_bias
from jaxinfer.text import Tokenizer
from protos.open_inference import grpc_service_pb2 as pb
from serving.frontend.stream import GenerationStream
from serving.gateways import tensors
from serving.gateways.tensors import VECTOR, TensorSpec
from serving.grpc_server.convert import json_object, refuse_unknown_fields
from serving.http.logprobs import Spelling, ranked
from serving.pace import Pace
from serving.request import GenerationRequest, Prompt, TextPrompt, TokenPrompt

DEFAULT_TOKENS = 16  # of the answer, as vLLM's SamplingParams has it
MAX_ID = 100  # characters
# Of HTTP's messages, where they choose the form of outputs. KServe's client sends them over gRPC too, where that form
# is the inputs', as KServe's own server has it.
BINARY, BINARY_OUTPUT = "binary_data", "binary_data_output"
FINAL, EMPTY_FINAL = "triton_final_response", "triton_enable_empty_final_response"

# Input -> the output that it asks for.
_RETURNS = {
    "return_finish_reason": "finish_reason",
    "return_cumulative_logprob": "cumulative_logprob",
    "return_logprobs": "logprobs",
    "return_num_input_tokens": "num_input_tokens",
    "return_num_output_tokens": "num_output_tokens",
}
INPUTS: Mapping[str, TensorSpec] = {
    spec.name: spec
    for spec in (
        TensorSpec("text_input", ("BYTES",)),
        TensorSpec("input_ids", ("INT32", "INT64"), VECTOR),
        TensorSpec("stream", ("BOOL",)),
        TensorSpec("sampling_parameters", ("BYTES",)),
        TensorSpec("exclude_input_in_output", ("BOOL",)),
        *(TensorSpec(name, ("BOOL",)) for name in _RETURNS),
    )
}
OUTPUTS: Mapping[str, TensorSpec] = {
    spec.name: spec
    for spec in (
        TensorSpec("text_output", ("BYTES",), VECTOR),
        TensorSpec("finish_reason", ("BYTES",), VECTOR),
        TensorSpec("cumulative_logprob", ("FP32",), VECTOR),
        TensorSpec("logprobs", ("BYTES",), VECTOR),
        TensorSpec("num_input_tokens", ("UINT32",)),
        TensorSpec("num_output_tokens", ("UINT32",), VECTOR),
    )
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What the answer must look like. seconds: after which the request ends with DEADLINE_EXCEEDED; None: never."""

    id: str
    stream: bool
    prepend_input: bool
    outputs: tuple[str, ...]
    raw: bool
    seconds: float | None


def to_request(request: pb.ModelInferRequest, *, streams: bool) -> tuple[GenerationRequest, Asked]:
    """streams: the call can answer with several messages. Raises InvalidRequest."""
    refuse_unknown_fields(request)
    if len(request.id) > MAX_ID or not request.id.isprintable() or not request.id.isascii():
        raise InvalidRequest("id", request.id, f"it must be up to {MAX_ID} printable ASCII characters")
    inputs = tensors.read(request, INPUTS)
    priority, seconds, loose = _parameters(request)
    if "sampling_parameters" in inputs and loose:
        allowed = "it must be within the input sampling_parameters, where that is given"
        raise InvalidRequest(f"parameters[{sorted(loose)[0]}]", loose[sorted(loose)[0]], allowed)
    stream = _flag(inputs, "stream")
    if stream and not streams:
        raise InvalidRequest("stream", True, "ModelInfer answers once; ModelStreamInfer streams")
    outputs = _outputs(request, inputs)
    given = _sampling(inputs, loose)
    if {"cumulative_logprob", "logprobs"} & set(outputs) and "logprobs" not in given:
        given["logprobs"] = 0
    prepend = "exclude_input_in_output" in inputs and not _flag(inputs, "exclude_input_in_output")
    if stream and prepend:
        raise InvalidRequest("exclude_input_in_output", False, "it must be true or left out where stream is true")
    asked = Asked(
        request.id,
        stream,
        prepend or ("exclude_input_in_output" not in inputs and not stream),
        outputs,
        bool(request.raw_input_contents),
        seconds,
    )
    return (
        GenerationRequest(
            _prompt(inputs),
            given,
            defaults={"max_tokens": DEFAULT_TOKENS},
            request_id=request.id,
            suffix=f"-{secrets.token_hex(8)}",  # clients number their requests as they like, several of them alike
            priority=priority,
            final_only=not stream,
        ),
        asked,
    )


def _prompt(inputs: Mapping[str, Sequence[Any]]) -> Prompt:
    found = [name for name in ("text_input", "input_ids") if name in inputs]
    if len(found) != 1:
        raise InvalidRequest("inputs", found, "exactly one of text_input and input_ids must be given")
    return TokenPrompt(inputs["input_ids"]) if found == ["input_ids"] else TextPrompt(_text(inputs, "text_input"))


def _text(inputs: Mapping[str, Sequence[Any]], name: str) -> str:
    value: bytes = inputs[name][0]
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(name, value[:40], f"it must be UTF-8: {error.reason} at byte {error.start}") from error


def _flag(inputs: Mapping[str, Sequence[Any]], name: str) -> bool:
    return bool(inputs.get(name, [False])[0])


def _outputs(request: pb.ModelInferRequest, inputs: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """Those that are named, or text_output; and those that return_... inputs ask for."""
    for i, output in enumerate(request.outputs):
        if output.name not in OUTPUTS:
            raise InvalidRequest(f"outputs[{i}].name", output.name, f"the outputs are {list(OUTPUTS)}")
        for name, parameter in sorted(output.parameters.items()):
            if name != BINARY or parameter.WhichOneof("parameter_choice") != "bool_param":
                allowed = f"only {BINARY} is one, a boolean; there is no shared memory"
                raise InvalidRequest(f"{output.name}.parameters", name, allowed)
    wanted = {output.name for output in request.outputs} or {"text_output"}
    wanted |= {output for name, output in _RETURNS.items() if _flag(inputs, name)}
    return tuple(name for name in OUTPUTS if name in wanted)


def _parameters(request: pb.ModelInferRequest) -> tuple[int, float | None, dict[str, Any]]:
    """(priority, timeout in seconds, what may be a sampling parameter)."""
    loose: dict[str, Any] = {}
    for name, parameter in request.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidRequest(f"parameters[{name}]", None, "it must have a value")
        loose[name] = getattr(parameter, kind)
    for name in ("sequence_id", "sequence_start", "sequence_end"):
        if name in loose:
            raise InvalidRequest(f"parameters[{name}]", loose[name], "requests do not depend on each other here")
    for name in (EMPTY_FINAL, BINARY_OUTPUT):
        value = loose.pop(name, False)
        if not isinstance(value, bool):
            raise InvalidRequest(f"parameters[{name}]", value, "it must be a boolean")
    timeout, priority = (_whole(name, loose.pop(name, 0)) for name in ("timeout", "priority"))
    if timeout < 0:
        raise InvalidRequest("parameters[timeout]", timeout, "it must be microseconds, or 0 for none")
    return priority, timeout / 1e6 if timeout else None, loose


def _whole(name: str, value: Any) -> int:
    try:
        return _integer(value)
    except ValueError as error:
        raise InvalidRequest(f"parameters[{name}]", value, "it must be an integer") from error


# -- sampling parameters: JSON, whose numbers and booleans may be strings, as Triton's clients write them --------------


def _integer(value: Any) -> int:
    if isinstance(value, str):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    return float(value)


def _boolean(value: Any) -> bool:
    words = {"true": True, "false": False}
    found = words.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise ValueError
    return found


def _strings(value: Any) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise ValueError
    return tuple(found)


def _integers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError
    return tuple(_integer(entry) for entry in value)


def _bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise ValueError
    return {_integer(token): clamped_bias(_number(bias)) for token, bias in value.items()}


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    return value


_KINDS: Mapping[Kind, tuple[Callable[[Any], Any], str]] = {
    "integer": (_integer, "an integer"),
    "number": (_number, "a number"),
    "boolean": (_boolean, "a boolean"),
    "strings": (_strings, "a string or a list of strings"),
    "token_ids": (_integers, "a list of integers"),
    "logit_bias": (_bias, "an object of numbers by token id"),
    "structured": (_object, "an object"),
}
# The outputs have no place for what is told of the prompt.
_READERS = {name: _KINDS[declared.kind] for name, declared in FIELDS.items() if name != "prompt_logprobs"}
# The servers' shared names -> this protocol's, for errors.
NAMES = {"token_ids": "input_ids", "prompt": "text_input", "priority": "parameters[priority]"} | {
    name: f"sampling_parameters.{name}" for name in _READERS
}


# Names of vLLM's that ask for nothing with these values, which clients of Triton's backend write out.
_NEUTRAL: Mapping[str, bool | int] = {
    "use_beam_search": False,
    "early_stopping": False,
    "length_penalty": 1,
    "best_of": 1,
    "detokenize": True,
    "spaces_between_special_tokens": True,
}


def _sampling(inputs: Mapping[str, Sequence[Any]], loose: Mapping[str, Any]) -> dict[str, Any]:
    given = loose
    if "sampling_parameters" in inputs:
        given = json_object("sampling_parameters", _text(inputs, "sampling_parameters"))
    found = {}
    gathering = Gathering()
    for name, value in given.items():
        with gathering:
            if name in _NEUTRAL:
                _check_neutral(name, value)
            elif name not in _READERS:
                raise InvalidRequest("sampling_parameters", name, f"the names are {', '.join(sorted(_READERS))}")
            elif value is not None:
                found[name] = _read(name, value)
    gathering.done()
    return found


def _read(name: str, value: Any) -> Any:
    read, what = _READERS[name]
    try:
        return read(value)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"sampling_parameters.{name}", value, f"it must be {what}") from error


def _check_neutral(name: str, value: Any) -> None:
    """Numbers and booleans may be strings, as everywhere here."""
    neutral = _NEUTRAL[name]
    try:
        same = value is None or (_boolean(value) if isinstance(neutral, bool) else _number(value)) == neutral
    except ValueError:
        same = False
    if not same:
        raise InvalidRequest(f"sampling_parameters.{name}", value, f"only {neutral} is supported")


# -- answers -----------------------------------------------------------------------------------------------------------


class InferReplies:
    """The messages of one request's stream; each holds every sequence, with what is new of it."""

    def __init__(self, stream: GenerationStream, asked: Asked, model_name: str, tokenizer: Tokenizer) -> None:
        self._stream = stream
        self._asked = asked
        self._model_name = model_name
        self._tokenizer = tokenizer
        self._spelling = Spelling(tokenizer)
        self._open = [self._spelling.open_at_end(stream.prepared.token_ids)] * stream.prepared.params.n
        self._pace = Pace()
        self._prefix = self._input() if asked.prepend_input else ""

    def _input(self) -> str:
        prepared = self._stream.prepared
        if prepared.text is not None:
            return prepared.text
        return self._tokenizer.decode(prepared.token_ids, skip_special_tokens=prepared.params.skip_special_tokens)

    async def message(self, deltas: Sequence[Delta]) -> pb.ModelInferResponse:
        """Of what was read at once; other tasks run while a long one is made. Prompts are not scored here."""
        n, stream = self._stream.prepared.params.n, self._stream
        texts, reasons, counts = [""] * n, ["None"] * n, [0] * n  # "None", as the backend writes it: goes on
        found: list[Delta | None] = [None] * n
        for delta in deltas:
            if delta.index == PROMPT:
                continue
            texts[delta.index] = delta.text
            reasons[delta.index] = delta.finish_reason or "None"
            counts[delta.index] = delta.tokens
            found[delta.index] = delta
        values: dict[str, list[Any]] = {
            "text_output": [self._prefix + text for text in texts],
            "finish_reason": reasons,
            "cumulative_logprob": [stream.output(i).cumulative_logprob or 0.0 for i in range(n)],
            "num_input_tokens": [len(stream.prepared.token_ids)],
            "num_output_tokens": counts,
        }
        if "logprobs" in self._asked.outputs:
            values["logprobs"] = [await self._logprobs(i, delta) for i, delta in enumerate(found)]
        response = pb.ModelInferResponse(model_name=self._model_name, model_version="1", id=self._asked.id)
        for name in self._asked.outputs:
            tensors.add(response, OUTPUTS[name], values[name], raw=self._asked.raw)
        return response

    async def _logprobs(self, index: int, delta: Delta | None) -> str:
        """JSON: by token id the chosen token, and the most likely ones, of each position."""
        parts = []
        for entry in delta.logprobs if delta is not None else ():
            parts.append(await ranked(entry, self._spelling, self._open[index], self._pace))
            self._open[index] = self._spelling.open_after(entry.token_id, self._open[index])
        return f"[{','.join(parts)}]"
