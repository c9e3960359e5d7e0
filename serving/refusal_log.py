"""What the log says of a request that was not taken: which field and why, in the server's own words. Values are the
client's content and stay out of it; names of fields over HTTP are told, escaped and bounded, and elsewhere, where names
can be content too, as far as they are the server's."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import msgspec
from google.protobuf.descriptor import Descriptor

from jaxinfer.errors import ChatMessageError, ChatTemplateError, InvalidRequest, StopStringError, TextError, faults_of
from jaxinfer.sampling_params import FIELD_NAMES
from protos.jaxinfer.v1 import inference_pb2
from serving.errors import Refusal
from serving.http import messages_models, models, responses_models
from serving.http.errors import ApiError
from serving.http.ignored import escaped
from serving.observing.record import Origin

_ACCESS = logging.getLogger("serving.access")
_STEP = re.compile(r"(?:^|\.)([^.\[]+)|\[(\d+)\]")

# Names within messages, tools and tensors, of headers, and of the gateways' protocols, which may not be imported.
_WITHIN = (
    *("role", "content", "type", "text", "name", "function", "arguments", "parameters", "description", "strict"),
    *("tool_calls", "tool_call_id", "reasoning_content", "reasoning", "call_id", "id", "output", "summary", "status"),
    *("text_input", "input_ids", "sampling_parameters", "exclude_input_in_output", "contents", "shape", "datatype"),
    *("inputs", "outputs", "raw_input_contents", "model_name", "model_version", "binary_data_size", "stream"),
    *("tokenized", "sampling_params", "request_id", "thinking", "body", "Content-Type", "Content-Encoding"),
)
# Errors whose messages quote the request.
_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (ChatMessageError, "a message or a tool is malformed"),
    (ChatTemplateError, "the chat template does not take it"),
    (StopStringError, "the stop strings are malformed"),
    (TextError, "the text cannot be tokenized"),
)


class Told(NamedTuple):
    """param: None where no field that the server knows is at fault."""

    param: str | None
    reason: str


def told(error: Exception) -> list[Told]:
    """Every fault of a refused request."""
    if isinstance(error, ApiError):
        return [Told(None if fault.param is None else escaped(fault.param), fault.reason) for fault in error.faults]
    if isinstance(error, InvalidRequest):
        return [Told(known_part(fault.field), fault.allowed) for fault in faults_of(error)]
    if isinstance(error, Refusal):
        return [Told(None, error.why)]
    reason = next((words for kind, words in _WORDS if isinstance(error, kind)), type(error).__name__)
    param = str(error).split(" ", 1)[0] if isinstance(error, ChatMessageError) else None
    return [Told(known_part(param), reason)]


def known_part(path: str | None) -> str | None:
    """The path of a field as far as its names are the server's: messages[3].x -> messages[3]."""
    found = ""
    end = 0
    for step in _STEP.finditer((path or "").split(" ", 1)[0]):
        name, index = step.groups()
        if step.start() != end or (name is not None and name not in known_names()):
            break
        found += f"[{index}]" if name is None else f".{name}" if found else name
        end = step.end()
    return found or None


@cache
def known_names() -> frozenset[str]:
    """Of all fields of all servers."""
    kinds = [kind for module in (models, messages_models, responses_models) for kind in vars(module).values()]
    structs = [each for each in kinds if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    names = {name for struct in structs for name in struct.__struct_fields__} | set(FIELD_NAMES) | set(_WITHIN)
    for message in inference_pb2.DESCRIPTOR.message_types_by_name.values():
        names |= set(_fields(message))
    return frozenset(names)


def _fields(message: Descriptor) -> Iterator[str]:
    yield from (field.name for field in message.fields)
    for nested in message.nested_types:
        yield from _fields(nested)


def refusal_log(*, content: bool) -> Any:
    """A line for each request that was not taken. content: the reason is the sentence that the client got, which quotes
    the request."""

    def log_refusal(origin: Origin, code: str, error: Exception) -> None:
        if not _ACCESS.isEnabledFor(logging.INFO):
            return
        first, *others = told(error)
        fields: dict[str, Any] = {
            "door": origin.server,
            "endpoint": origin.endpoint,
            "tenant": origin.tenant,
            "code": code,
            "param": first.param,
            "reason": str(error) if content else first.reason,
        }
        if others:
            fields["others"] = [each.param for each in others]
        _ACCESS.info("refused", extra={"fields": fields})

    return log_refusal
