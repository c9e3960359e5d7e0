"""The endpoints without HTTP: a path and a body in, a reply out. The server uses it, and so does `jaxinfer batch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar, get_args

import msgspec

from jaxinfer.config import ConfigError
from jaxinfer.errors import BAD_INPUT, ChatMessageError, ChatTemplateError, InvalidRequest, StopStringError
from jaxinfer.sampling_params import check_token_ids
from jaxinfer.text.answers import OutputParserNames, check_parser_names, output_parser_names
from serving.access.caller import CALLER
from serving.errors import Refusal
from serving.frontend.frontend import Frontend, Prepare
from serving.http import chat, chat_input, convert, messages_input, responses_input, structured
from serving.http.chat import ChatReply
from serving.http.completions import CompletionReply
from serving.http.decode import Body, decode
from serving.http.errors import MESSAGES, ApiError, from_invalid, from_refusal, invalid
from serving.http.every_fault import every_fault
from serving.http.generation import Generation
from serving.http.ignored import IgnoredFields, UnknownFields, collecting
from serving.http.messages import MessagesReply
from serving.http.messages_models import MessagesRequest, MessageTokensRequest
from serving.http.models import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Sampling,
    TokenizeRequest,
)
from serving.http.render import rendered
from serving.http.reply import Reply
from serving.http.response_store import ResponseStore, StoreLimits
from serving.http.response_turn import ResponseTurn
from serving.http.responses import ResponsesReply
from serving.http.responses_models import ResponsesRequest, ResponseTokensRequest
from serving.http.sessions import with_session
from serving.observing.record import NOWHERE, Origin
from serving.request import (
    NO_TOKENS,
    GenerationRequest,
    ModelContext,
    PreparedRequest,
    TextPrompt,
    check_fields,
    check_model,
    encode_prompt,
)
from serving.text_worker import BESIDE, PART_BYTES

T = TypeVar("T", bound=msgspec.Struct)

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
# Names in a body of which a grammar may have to be made.
_CONSTRAINING = (b"response_format", b"structured_outputs", b'"strict"', b'"tool_choice"', b'"format"')
RENDER = "/render"  # behind the path of an endpoint that generates
_OF_CHATS = ("tools", "add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs")
_TOKENIZE_NAMES = {"template": "chat_template", "template_variables": "chat_template_kwargs"}
COUNT_TOKENS, INPUT_TOKENS = MESSAGES + "/count_tokens", RESPONSES + "/input_tokens"
_PROMPTS = {COMPLETIONS: "prompt", CHAT: "messages", RESPONSES: "input", MESSAGES: "messages"}


@dataclass(frozen=True)
class ApiConfig:
    """tool_call_parser, reasoning_parser: see jaxinfer.text.answers. unknown_fields: what becomes of fields without an
    effect, see ignored.py. trust_request_chat_template: requests may bring templates, which are programs.
    stream_interval: tokens that an event of a stream has at least, behind the first. response_store: None keeps no
    responses. Raises ConfigError for what cannot be."""

    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    unknown_fields: UnknownFields = "report"
    trust_request_chat_template: bool = False
    stream_interval: int = 1
    response_store: StoreLimits | None = None

    def __post_init__(self) -> None:
        try:
            check_parser_names(self.tool_call_parser, self.reasoning_parser)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if self.unknown_fields not in get_args(UnknownFields):
            allowed = " or ".join(get_args(UnknownFields))
            raise ConfigError(f"unknown_fields is {self.unknown_fields!r}; it must be {allowed}")
        if self.stream_interval < 1:
            raise ConfigError(f"stream_interval is {self.stream_interval}; it must be positive")


class _Endpoint(NamedTuple):
    """convert and reply of responses take a ResponseTurn besides."""

    kind: type[Sampling]
    convert: Callable[..., list[GenerationRequest]]
    names: Callable[[Any], Mapping[str, str]]
    reply: Callable[..., Reply]


ENDPOINTS: Mapping[str, _Endpoint] = {
    COMPLETIONS: _Endpoint(
        CompletionRequest,
        lambda request, _context, _form: convert.completion(request),
        lambda request: {"token_ids": "prompt", **structured.names_of_parts(request)},
        lambda request, generation, context, _form: CompletionReply(request, generation, context),
    ),
    CHAT: _Endpoint(ChatRequest, chat.to_requests, chat.names, ChatReply),
    RESPONSES: _Endpoint(
        ResponsesRequest,
        responses_input.to_requests,
        lambda request: {**responses_input.NAMES, **structured.names_of_parts(request)},
        ResponsesReply,
    ),
    MESSAGES: _Endpoint(MessagesRequest, messages_input.to_requests, messages_input.names, MessagesReply),
}


class Api:
    """Serves once `open` was called with a model, and the frontend has it too. responses: those that are kept."""

    def __init__(self, frontend: Frontend, config: ApiConfig) -> None:
        self.frontend = frontend
        self.form = OutputParserNames()
        self.config = config
        self.responses = None if config.response_store is None else ResponseStore(config.response_store)
        if self.responses is not None:
            frontend.recorder.metrics.sources.append(self.responses.metrics)

    def open(self, model: ModelContext) -> None:
        template = None if model.tokenizer is None else model.tokenizer.chat_template
        self.form = output_parser_names(self.config.tool_call_parser, self.config.reasoning_parser, template)
        if self.config.tool_call_parser == "auto":
            self.form = structured.with_forced_calls(self.form)

    async def begin(self, path: str, body: Body, origin: Origin = NOWHERE, session: str = "") -> Reply:
        """Checks a request and hands it to the engine. The reply must be closed. Raises ApiError. origin: but for the
        user, whom the body names. session: named beside the body."""
        endpoint, cost = ENDPOINTS[path], _cost(body)
        if path == RESPONSES:
            turn = ResponseTurn(self.responses, origin.tenant)
            bound = partial(endpoint.convert, turn=turn), partial(endpoint.reply, turn=turn)
            endpoint = endpoint._replace(convert=bound[0], reply=bound[1])
            cost += turn.size_of_named(body)

        def converted(model: ModelContext, prepare: Prepare) -> Any:
            with collecting(self.config.unknown_fields) as ignored:
                prepared, request = self._convert(endpoint, body, model, prepare, ignored, session)
            return prepared, (request, model, ignored)

        try:
            streams, (request, model, ignored) = await self.frontend.submit(cost, converted, origin)
        except (Refusal, *BAD_INPUT) as error:
            raise as_api_error(error, _PROMPTS[path]) from error
        generation = Generation(self.frontend, streams)
        try:
            self.frontend.recorder.ignored(ignored.counts)
            reply = endpoint.reply(request, generation, model, self.form)
            reply.ignored = ignored
            return reply
        except BaseException:
            generation.close()
            raise

    def _convert(
        self,
        endpoint: _Endpoint,
        body: Body,
        model: ModelContext,
        prepare: Prepare,
        ignored: IgnoredFields,
        session: str = "",
    ) -> tuple[list[PreparedRequest], Sampling]:
        """Raises ApiError with all faults that are found, one of BAD_INPUT, or Refusal."""
        try:
            request = decode(body, endpoint.kind)
            check_model(request.model or "", model)
            if not model.gives_tokens and getattr(request, "return_token_ids", None):
                raise InvalidRequest("return_token_ids", True, NO_TOKENS)
            convert.check_named_tokens(request, model)
            with convert.in_names_of_the_client(endpoint.names(request)):
                requests = with_session(request, endpoint.convert(request, model, self.form), session, model)
                names, least = ignored.names, self.config.stream_interval
                if names or least > 1:
                    requests = [replace(r, ignored=names, interval=max(least, r.interval)) for r in requests]
                return prepare(requests), request
        except (ApiError, InvalidRequest) as error:
            first = error if isinstance(error, ApiError) else from_invalid(error)
            if first.status != 400:
                raise
            raise every_fault(body, endpoint.kind, first, lambda each: self._check(endpoint, each, model)) from error

    def _check(self, endpoint: _Endpoint, request: Sampling, model: ModelContext) -> None:
        """All but the prompt's tokens. Raises InvalidRequest, one of BAD_INPUT, or Refusal."""
        with convert.in_names_of_the_client(endpoint.names(request)):
            requests = with_session(request, endpoint.convert(request, model, self.form), "", model)
            check_fields(requests[0], model)
            self.frontend.check_room(requests)

    async def render(self, path: str, body: Body) -> TextReply:
        """What `begin` would hand to the engine. Raises ApiError."""
        endpoint = ENDPOINTS[path]

        def done(model: ModelContext) -> TextReply:
            with collecting(self.config.unknown_fields) as ignored:
                prepared, request = self._convert(
                    endpoint, body, model, lambda requests: self.frontend.prepare(requests, model), ignored
                )
            prefix, one = ("cmpl-", False) if path == COMPLETIONS else ("chatcmpl-", True)
            return TextReply(rendered(prepared, request, prefix, one=one), ignored)

        return await self._run(body, done, _PROMPTS[path])

    # -- text -----------------------------------------------------------------------------------------------------

    async def tokenize(self, body: Body) -> TextReply:
        return await self._text(body, TokenizeRequest, _tokenize)

    async def detokenize(self, body: Body) -> TextReply:
        return await self._text(body, DetokenizeRequest, _detokenize)

    async def count_tokens(self, body: Body) -> TextReply:
        return await self._text(body, MessageTokensRequest, lambda given, model: _count_tokens(given, model, self.form))

    async def count_input_tokens(self, body: Body) -> TextReply:
        turn = ResponseTurn(self.responses, CALLER.get().tenant)

        def counted(given: ResponseTokensRequest, model: ModelContext) -> dict[str, Any]:
            check_model(given.model or "", model)
            with convert.in_names_of_the_client(responses_input.NAMES):
                prompt = responses_input.to_prompt(given, model, self.form, turn)
                return {"object": "response.input_tokens", "input_tokens": len(encode_prompt(prompt, model))}

        return await self._text(body, ResponseTokensRequest, counted, turn.size_of_named(body))

    async def _text(
        self, body: Body, kind: type[T], work: Callable[[T, ModelContext], dict[str, Any]], more: int = 0
    ) -> TextReply:
        """more: bytes of work besides the body's."""

        def done(model: ModelContext) -> TextReply:
            with collecting(self.config.unknown_fields) as ignored:
                try:
                    return TextReply(work(decode(body, kind), model), ignored)
                except ApiError as error:
                    raise every_fault(body, kind, error, lambda _: None) from error

        return await self._run(body, done, more=more)

    async def _run(
        self, body: Body, done: Callable[[ModelContext], TextReply], prompt: str | None = None, more: int = 0
    ) -> TextReply:
        """prompt: the field that the client has its text in."""
        try:
            reply = await self.frontend.run(_cost(body) + more, done)
        except (Refusal, *BAD_INPUT) as error:
            raise as_api_error(error, prompt) from error
        self.frontend.recorder.ignored(reply.ignored.counts)
        return reply


class TextReply(NamedTuple):
    """An answer that needs no engine."""

    body: dict[str, Any] | list[dict[str, Any]]
    ignored: IgnoredFields


def _cost(body: Body) -> int:
    """Its size for the text worker; a short body can have many values, each of them a prompt."""
    size = len(body) + (PART_BYTES * body.count(b",") if len(body) <= 4096 else 0)
    return max(size, BESIDE) if any(name in body for name in _CONSTRAINING) else size


def as_api_error(error: Exception, prompt: str | None = None) -> ApiError:
    """Of BAD_INPUT or a RequestError. prompt: the field that the client has its text in."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refusal):
        return from_refusal(error)
    if isinstance(error, InvalidRequest):
        return from_invalid(error)
    message = str(error)
    if isinstance(error, ChatMessageError):
        return invalid(error.field, message, reason="a message or a tool is malformed")
    if isinstance(error, StopStringError):
        return invalid("stop", message, reason="the stop strings are malformed")
    if isinstance(error, ChatTemplateError):  # a template judges the conversation as a whole
        return invalid(error.field or prompt or "messages", message, reason="the chat template does not take it")
    return invalid(prompt, message, reason="the text cannot be tokenized")


def _tokenize(request: TokenizeRequest, model: ModelContext) -> dict[str, Any]:
    check_model(request.model or "", model)
    if (request.prompt is None) == (request.messages is None):
        given = None if request.prompt is None else request.prompt
        raise InvalidRequest("prompt", given, "one of prompt and messages must be given")
    with convert.in_names_of_the_client(_TOKENIZE_NAMES):
        if request.prompt is not None:
            for name in _OF_CHATS:
                if getattr(request, name) not in (None, [], {}):
                    raise InvalidRequest(name, getattr(request, name), "it applies to messages only")
            ids = encode_prompt(TextPrompt(request.prompt, request.add_special_tokens is not False), model)
        else:
            if request.add_special_tokens is not None:
                raise InvalidRequest("add_special_tokens", request.add_special_tokens, "it applies to a prompt only")
            tools = chat_input.tools(request.tools) or None
            chat_prompt = convert.chat_prompt(request, tools, request.chat_template_kwargs or {})
            ids = encode_prompt(chat_prompt, model)
    result: dict[str, Any] = {"count": len(ids), "max_model_len": model.info.max_model_len, "tokens": ids}
    if request.return_token_strs:
        assert model.tokenizer is not None
        result["token_strs"] = [model.tokenizer.token_to_piece(token) for token in ids]
    return result


def _count_tokens(request: MessageTokensRequest, model: ModelContext, form: OutputParserNames) -> dict[str, Any]:
    check_model(request.model or "", model)
    with convert.in_names_of_the_client(messages_input.NAMES):
        return {"input_tokens": len(encode_prompt(messages_input.to_prompt(request, model, form), model))}


def _detokenize(request: DetokenizeRequest, model: ModelContext) -> dict[str, Any]:
    check_model(request.model or "", model)
    if model.tokenizer is None:
        raise InvalidRequest("tokens", request.tokens, "this server runs without a tokenizer")
    check_token_ids("tokens", request.tokens, model.info.vocab_size)
    return {"prompt": model.tokenizer.decode(request.tokens, skip_special_tokens=bool(request.skip_special_tokens))}
