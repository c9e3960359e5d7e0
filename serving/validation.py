"""From a request as it came over the wire to one that the engine can take. Everything that is wrong is named here.

A request's field either takes effect or is refused: `tests/serving/test_every_field.py` walks all of them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from jaxinfer.messages import EngineInfo
from jaxinfer.sampling_params import InvalidRequest, SamplingParams, as_token_ids
from jaxinfer.text import Tokenizer
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.status import Refusal

MAX_REQUEST_ID = 128  # characters
MAX_CACHE_SALT = 256  # characters

# Variables of a chat template that have a field of their own, or none here.
_RESERVED_VARIABLES = frozenset(
    {"messages", "tools", "template", "add_generation_prompt", "truncate_prompt_tokens", "self"}
)
_NO_TOKENIZER = "this server runs without a tokenizer and takes token ids only"


@dataclass(frozen=True)
class ModelContext:
    """What requests are checked against.

    defaults: sampling fields that the model's generation config sets. draw_seed: gives a seed (64 bits) to a request
    that has none.
    """

    info: EngineInfo
    name: str
    tokenizer: Tokenizer | None
    defaults: Mapping[str, Any]
    draw_seed: Callable[[], int]

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV pool holds; page 0 is the null page."""
        return (self.info.num_pages - 1) * self.info.page_size


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that passed every check of this side; `params.max_tokens` and `seed` are resolved."""

    request_id: str
    text: str | None
    token_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    priority: int
    cache_salt: str
    final_only: bool


def prepare(request: pb.GenerateRequest, context: ModelContext) -> PreparedRequest:
    """Checks and tokenizes. May take long for long texts. Raises one of `BAD_INPUT`, or Refusal."""
    refuse_unknown_fields(request)
    request_id = _request_id(request.request_id)
    if request.model and request.model != context.name:
        raise Refusal(
            grpc.StatusCode.NOT_FOUND, f"model is {request.model!r}; this server serves {context.name!r} only"
        )
    if len(request.cache_salt) > MAX_CACHE_SALT:
        raise InvalidRequest("cache_salt", request.cache_salt, f"at most {MAX_CACHE_SALT} characters are allowed")
    params = sampling_params(request.sampling, context)
    limit = params.truncate_prompt_tokens
    if request.HasField("add_special_tokens") and not request.HasField("text"):
        raise InvalidRequest("add_special_tokens", request.add_special_tokens, "it applies to a text prompt only")
    kind = request.WhichOneof("prompt")
    if kind == "token_ids":
        ids = as_token_ids("token_ids", request.token_ids.ids, context.info.vocab_size)
        ids = ids if limit is None else ids[-limit:]
    elif kind is None:
        raise InvalidRequest("prompt", None, "one of text, token_ids and chat must be set")
    else:
        ids = encode_prompt(request, context, limit)
    params = _fit_context(params, len(ids), context, as_asked=request.sampling.HasField("max_tokens"))
    seed = context.draw_seed() if params.seed is None else params.seed & (2**64 - 1)
    text = request.text if kind == "text" else None
    return PreparedRequest(
        request_id, text, ids, params, seed, request.priority, request.cache_salt, request.final_only
    )


def _request_id(given: str) -> str:
    if not given:
        return secrets.token_hex(16)
    if len(given) > MAX_REQUEST_ID or not (given.isascii() and given.isprintable()):
        raise InvalidRequest("request_id", given, f"it must be 1 to {MAX_REQUEST_ID} printable ASCII characters")
    return given


def sampling_params(message: pb.SamplingParams, context: ModelContext) -> SamplingParams:
    """The model's defaults overlaid by what the client set; max_tokens None where neither says anything."""
    given = {field.name: _plain(field.name, value) for field, value in message.ListFields()}
    if context.tokenizer is None:
        for name in ("stop", "include_stop_str_in_output", "skip_special_tokens"):
            if name in given:
                raise InvalidRequest(name, given[name], _NO_TOKENIZER)
    values = {"max_tokens": None, **context.defaults}
    if "max_tokens" not in given and given.get("min_tokens", 0) > (values["max_tokens"] or 0):
        values["max_tokens"] = None  # the model's default must not contradict what the client asked for
    params = SamplingParams(**{**values, **given})
    params.check_vocabulary(context.info.vocab_size)
    return params.resolve_logprobs(context.info.vocab_size, context.info.max_logprobs)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, pb.TokenIds):
        return tuple(value.ids)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(value)
    return value


def _fit_context(params: SamplingParams, prompt_len: int, context: ModelContext, *, as_asked: bool) -> SamplingParams:
    """Resolves max_tokens. A default shrinks to what fits; what the client asked for (`as_asked`) does not."""
    context_len = context.info.max_model_len
    if not prompt_len:
        raise InvalidRequest("prompt", "", "it must hold at least one token")
    room = context_len - prompt_len
    if room < 1:
        allowed = f"with room for one more token, at most {context_len - 1} fit the context of {context_len}"
        raise InvalidRequest("prompt", f"{prompt_len} tokens", allowed)
    wanted = params.max_tokens
    if wanted is not None and wanted > room and as_asked:
        allowed = f"with a prompt of {prompt_len} tokens at most {room} fit the context of {context_len}"
        raise InvalidRequest("max_tokens", wanted, allowed)
    if params.min_tokens > room:
        allowed = f"with a prompt of {prompt_len} tokens at most {room} fit the context of {context_len}"
        raise InvalidRequest("min_tokens", params.min_tokens, allowed)
    if wanted is None:
        # The last token's KV is never needed, hence + 1. A pool that cannot hold the prompt is the engine's to refuse.
        fits_pool = context.kv_tokens + 1 - prompt_len
        wanted = min(room, fits_pool) if fits_pool >= max(1, params.min_tokens) else room
    return params.with_changes(max_tokens=min(wanted, room))


def encode_prompt(
    request: pb.GenerateRequest | pb.TokenizeRequest, context: ModelContext, limit: int | None = None
) -> tuple[int, ...]:
    """Ids of the request's text or chat. limit: keep only the last so many. Raises as `prepare`."""
    kind = request.WhichOneof("prompt")
    if context.tokenizer is None:
        raise InvalidRequest("prompt", kind, _NO_TOKENIZER)
    if kind == "text":
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        ids = context.tokenizer.encode(request.text, add_special_tokens=special, truncate_prompt_tokens=limit)
    else:
        ids = _encode_chat(request.chat, context.tokenizer, limit)
    return as_token_ids("prompt", ids, context.info.vocab_size)


def _encode_chat(chat: pb.Chat, tokenizer: Tokenizer, limit: int | None) -> list[int]:
    messages = [_chat_message(i, message) for i, message in enumerate(chat.messages)]
    tools = [_json_object(f"tools_json[{i}]", text) for i, text in enumerate(chat.tools_json)]
    variables = _json_object("template_variables_json", chat.template_variables_json or "{}")
    for name in variables:
        if name in _RESERVED_VARIABLES:
            raise InvalidRequest("template_variables_json", name, "this is not a variable that a request may set")
    # A template is a program: only the model's own are run, chosen by name.
    names = chat_template_names(tokenizer)
    if chat.template and chat.template not in names:
        raise InvalidRequest("template", chat.template, f"the model's chat templates are {list(names)}")
    by_name = isinstance(tokenizer.chat_template, dict)
    return tokenizer.encode_chat(
        messages,
        add_generation_prompt=chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True,
        tools=tools or None,
        template=chat.template if chat.template and by_name else None,
        truncate_prompt_tokens=limit,
        **variables,
    )


def chat_template_names(tokenizer: Tokenizer | None) -> tuple[str, ...]:
    """Names of the model's chat templates; a single one is called "default"."""
    source = None if tokenizer is None else tokenizer.chat_template
    if source is None:
        return ()
    return tuple(source) if isinstance(source, dict) else ("default",)


def _chat_message(index: int, message: pb.ChatMessage) -> dict[str, Any]:
    name = f"messages[{index}].extra_json"
    extra = _json_object(name, message.extra_json or "{}")
    for key in ("role", "content"):
        if key in extra and (key == "role" or message.HasField("content")):
            raise InvalidRequest(name, key, f"the message has a field {key} of its own")
    plain: dict[str, Any] = {"role": message.role}
    if message.HasField("content"):
        plain["content"] = message.content
    return {**plain, **extra}


def _json_object(name: str, text: str) -> dict[str, Any]:
    def refuse(constant: str) -> Any:
        raise InvalidRequest(name, constant, "this is not JSON")

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
