"""From a gRPC message to a request that the engine can take. What only this server can get wrong is named here.

A request's field either takes effect or is refused: `tests/serving/test_every_field.py` walks all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from jaxinfer.errors import InvalidRequest, renamed
from jaxinfer.sampling_params import MAX_TOKEN_LIST
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.json_weight import MAX_WEIGHT, is_too_heavy
from serving.prompts import check_session, session_seconds
from serving.request import ChatPrompt, GenerationRequest, TextPrompt, TokenPrompt, check_count

# The servers' shared names -> this protocol's, for errors.
NAMES: Mapping[str, str] = {"template_variables": "template_variables_json"}


@contextmanager
def in_names_of_the_client() -> Iterator[None]:
    """Errors name fields as this protocol does."""
    try:
        yield
    except InvalidRequest as error:
        raise renamed(error, NAMES) from error


def to_request(request: pb.GenerateRequest) -> GenerationRequest:
    """The same request as every server makes it. Raises InvalidRequest."""
    refuse_unknown_fields(request)
    check_session("session_id", request.session_id)
    return GenerationRequest(
        prompt_of(request),
        {field.name: _plain(field.name, value) for field, value in request.sampling.ListFields()},
        request_id=request.request_id,
        model=request.model,
        priority=request.priority,
        cache_salt=request.cache_salt,
        final_only=request.final_only,
        pin_answer=session_seconds(request.session_id, request.prompt_cache_retention),
    )


def prompt_of(request: pb.GenerateRequest | pb.TokenizeRequest) -> TextPrompt | TokenPrompt | ChatPrompt:
    kind = request.WhichOneof("prompt")
    if kind is None:
        allowed = "text and chat" if isinstance(request, pb.TokenizeRequest) else "text, token_ids and chat"
        raise InvalidRequest("prompt", None, f"one of {allowed} must be set")
    if request.HasField("add_special_tokens") and kind != "text":
        raise InvalidRequest("add_special_tokens", request.add_special_tokens, "it applies to a text prompt only")
    if kind == "text":
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        return TextPrompt(request.text, special)
    if kind == "chat":
        return _chat(request.chat)
    assert isinstance(request, pb.GenerateRequest)
    return TokenPrompt(request.token_ids.ids)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, pb.TokenIds):
        return plain_list(name, value.ids)
    if isinstance(value, pb.StructuredOutputs):
        return {
            field.name: plain_list(f"{name}.choice", part.choices) if field.name == "choice" else part
            for field, part in value.ListFields()
        }
    if isinstance(value, Mapping):
        check_count(name, value, MAX_TOKEN_LIST)
        return dict(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return plain_list(name, value)
    return value


def plain_list(name: str, values: Any) -> tuple[Any, ...]:
    """Raises InvalidRequest where there are more than any list of sampling parameters may have, before anything is made
    of them: a message can hold millions."""
    check_count(name, values, MAX_TOKEN_LIST)
    return tuple(values)


def _chat(chat: pb.Chat) -> ChatPrompt:
    return ChatPrompt(
        [_chat_message(i, message) for i, message in enumerate(chat.messages)],
        [json_object(f"tools_json[{i}]", text) for i, text in enumerate(chat.tools_json)],
        chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True,
        chat.template or None,
        json_object("template_variables_json", chat.template_variables_json or "{}"),
    )


def _chat_message(index: int, message: pb.ChatMessage) -> dict[str, Any]:
    name = f"messages[{index}].extra_json"
    extra = json_object(name, message.extra_json or "{}")
    for key in ("role", "content"):
        if key in extra and (key == "role" or message.HasField("content")):
            raise InvalidRequest(name, key, f"the message has a field {key} of its own")
    plain: dict[str, Any] = {"role": message.role}
    if message.HasField("content"):
        plain["content"] = message.content
    return {**plain, **extra}


def json_object(name: str, text: str) -> dict[str, Any]:
    def refuse(constant: str) -> Any:
        raise InvalidRequest(name, constant, "this is not JSON")

    if is_too_heavy(text.encode()):
        allowed = f"it has too many values; {MAX_WEIGHT} numbers are taken, or fewer lists and objects"
        raise InvalidRequest(name, f"{len(text)} characters", allowed)
    try:
        value = json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise InvalidRequest(name, text, "it is nested too deeply") from error
    except InvalidRequest:
        raise
    except ValueError as error:  # not JSON, or a number of thousands of digits
        raise InvalidRequest(name, text, f"it must be JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(name, text, "it must be a JSON object")
    return value


def refuse_unknown_fields(message: Message) -> None:
    """Raises InvalidRequest for a field that this version of the interface does not know, at any depth."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        allowed = f"this server knows no such field of {message.DESCRIPTOR.full_name}"
        raise InvalidRequest("field", unknown[0].field_number, allowed)
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue  # no map here holds messages
        for child in [value] if isinstance(value, Message) else value:
            refuse_unknown_fields(child)
