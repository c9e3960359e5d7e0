"""The endpoints without HTTP: a path and a body in, a reply out. The server uses it, and so does `jaxinfer batch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxinfer.config import ConfigError
from jaxinfer.errors import BAD_INPUT, ChatMessageError, ChatTemplateError, InvalidRequest, StopStringError
from jaxinfer.sampling_params import check_token_ids
from jaxinfer.text.answers import OutputParserNames, check_parser_names, output_parser_names
from serving.errors import Refusal
from serving.frontend.frontend import Frontend, Prepare
from serving.http import chat, chat_input, convert, responses_input, structured
from serving.http.chat import ChatReply
from serving.http.completions import CompletionReply
from serving.http.decode import Body, decode
from serving.http.errors import ApiError, from_invalid, from_refusal, invalid
from serving.http.every_fault import every_fault
from serving.http.generation import Generation
from serving.http.models import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    Sampling,
    TokenizeRequest,
)
from serving.http.reply import Reply
from serving.http.responses import ResponsesReply
from serving.observing.record import NOWHERE, Origin
from serving.request import (
    NO_TOKENS,
    ChatPrompt,
    GenerationRequest,
    ModelContext,
    PreparedRequest,
    TextPrompt,
    check_fields,
    check_model,
    encode_prompt,
)
from serving.text_worker import BESIDE, PART_BYTES

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
# Names in a body of which a grammar may have to be made.
_CONSTRAINING = (b"response_format", b"structured_outputs", b'"strict"', b'"tool_choice"', b'"format"')
_PROMPTS = {COMPLETIONS: "prompt", CHAT: "messages", RESPONSES: "input"}


@dataclass(frozen=True)
class ApiConfig:
    """tool_call_parser, reasoning_parser: see jaxinfer.text.answers. Raises ConfigError for those that cannot be."""

    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"

    def __post_init__(self) -> None:
        try:
            check_parser_names(self.tool_call_parser, self.reasoning_parser)
        except ValueError as error:
            raise ConfigError(str(error)) from error


class _Endpoint(NamedTuple):
    kind: type[Sampling]
    convert: Callable[[Any, ModelContext, OutputParserNames], list[GenerationRequest]]
    names: Callable[[Any], Mapping[str, str]]
    reply: Callable[[Any, Generation, ModelContext, OutputParserNames], Reply]


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
}


class Api:
    """Serves once `open` was called with a model, and the frontend has it too."""

    def __init__(self, frontend: Frontend, config: ApiConfig) -> None:
        self.frontend = frontend
        self.form = OutputParserNames()
        self._config = config

    def open(self, model: ModelContext) -> None:
        template = None if model.tokenizer is None else model.tokenizer.chat_template
        self.form = output_parser_names(self._config.tool_call_parser, self._config.reasoning_parser, template)
        if self._config.tool_call_parser == "auto":
            self.form = structured.with_forced_calls(self.form)

    async def begin(self, path: str, body: Body, origin: Origin = NOWHERE) -> Reply:
        """Checks a request and hands it to the engine. The reply must be closed. Raises ApiError. origin: but for the
        user, whom the body names."""
        endpoint = ENDPOINTS[path]

        def converted(model: ModelContext, prepare: Prepare) -> Any:
            prepared, request = self._convert(endpoint, body, model, prepare)
            return prepared, (request, model)

        try:
            streams, (request, model) = await self.frontend.submit(_cost(body), converted, origin)
        except (Refusal, *BAD_INPUT) as error:
            raise as_api_error(error, _PROMPTS[path]) from error
        generation = Generation(self.frontend, streams)
        try:
            return endpoint.reply(request, generation, model, self.form)
        except BaseException:
            generation.close()
            raise

    def _convert(
        self, endpoint: _Endpoint, body: Body, model: ModelContext, prepare: Prepare
    ) -> tuple[list[PreparedRequest], Sampling]:
        """Raises ApiError with all faults that are found, one of BAD_INPUT, or Refusal."""
        try:
            request = decode(body, endpoint.kind)
            check_model(request.model or "", model)
            if not model.gives_tokens and getattr(request, "return_token_ids", None):
                raise InvalidRequest("return_token_ids", True, NO_TOKENS)
            with convert.in_names_of_the_client(endpoint.names(request)):
                return prepare(endpoint.convert(request, model, self.form)), request
        except (ApiError, InvalidRequest) as error:
            first = error if isinstance(error, ApiError) else from_invalid(error)
            if first.status != 400:
                raise
            raise every_fault(body, endpoint.kind, first, lambda each: self._check(endpoint, each, model)) from error

    def _check(self, endpoint: _Endpoint, request: Sampling, model: ModelContext) -> None:
        """All but the prompt's tokens. Raises InvalidRequest, one of BAD_INPUT, or Refusal."""
        with convert.in_names_of_the_client(endpoint.names(request)):
            requests = endpoint.convert(request, model, self.form)
            check_fields(requests[0], model)
            self.frontend.check_room(requests)

    # -- text -----------------------------------------------------------------------------------------------------

    async def tokenize(self, body: Body) -> dict[str, Any]:
        return await self._text(body, _tokenize)

    async def detokenize(self, body: Body) -> dict[str, Any]:
        return await self._text(body, _detokenize)

    async def _text(self, body: Body, work: Callable[[Body, ModelContext], dict[str, Any]]) -> dict[str, Any]:
        try:
            return await self.frontend.run(_cost(body), lambda model: work(body, model))
        except (Refusal, *BAD_INPUT) as error:
            raise as_api_error(error) from error
        except ApiError as error:
            kind = TokenizeRequest if work is _tokenize else DetokenizeRequest
            raise every_fault(body, kind, error, lambda _: None) from error


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


def _tokenize(body: Body, model: ModelContext) -> dict[str, Any]:
    request = decode(body, TokenizeRequest)
    check_model(request.model or "", model)
    if (request.prompt is None) == (request.messages is None):
        given = None if request.prompt is None else request.prompt
        raise InvalidRequest("prompt", given, "one of prompt and messages must be given")
    with convert.in_names_of_the_client({"template_variables": "chat_template_kwargs"}):
        if request.prompt is not None:
            for name in ("tools", "add_generation_prompt", "chat_template_kwargs"):
                if getattr(request, name) not in (None, [], {}):
                    raise InvalidRequest(name, getattr(request, name), "it applies to messages only")
            ids = encode_prompt(TextPrompt(request.prompt, request.add_special_tokens is not False), model)
        else:
            if request.add_special_tokens is not None:
                raise InvalidRequest("add_special_tokens", request.add_special_tokens, "it applies to a prompt only")
            chat_prompt = ChatPrompt(
                chat_input.messages(request.messages or ()),
                chat_input.tools(request.tools) or None,
                request.add_generation_prompt is not False,
                variables=request.chat_template_kwargs or {},
            )
            ids = encode_prompt(chat_prompt, model)
    result: dict[str, Any] = {"count": len(ids), "max_model_len": model.info.max_model_len, "tokens": ids}
    if request.return_token_strs:
        assert model.tokenizer is not None
        result["token_strs"] = [model.tokenizer.token_to_piece(token) for token in ids]
    return result


def _detokenize(body: Body, model: ModelContext) -> dict[str, Any]:
    request = decode(body, DetokenizeRequest)
    check_model(request.model or "", model)
    if model.tokenizer is None:
        raise InvalidRequest("tokens", request.tokens, "this server runs without a tokenizer")
    check_token_ids("tokens", request.tokens, model.info.vocab_size)
    return {"prompt": model.tokenizer.decode(request.tokens, skip_special_tokens=bool(request.skip_special_tokens))}
