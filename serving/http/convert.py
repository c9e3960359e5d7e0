"""From an HTTP request to the requests that the engine takes, under the names that every server shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from jaxinfer.errors import ChatTemplateError, InvalidRequest, renamed
from jaxinfer.sampling_fields import Kind
from jaxinfer.sampling_params import FIELDS, MAX_TOKEN_LIST, check_token_ids, clamped_bias
from serving.http import chat_input, ignored, structured
from serving.http.models import (
    MAX_PROMPTS,
    ChatRequest,
    CompletionRequest,
    Sampling,
    StreamOptions,
    TextSampling,
    TokenizeRequest,
)
from serving.request import ChatPrompt, GenerationRequest, ModelContext, Prompt, TextPrompt, TokenPrompt, check_count

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's and vLLM's
MAX_NAMED_TOKENS = 128  # of logprob_token_ids, as in vLLM


def sampling(request: Sampling) -> dict[str, Any]:
    """The sampling fields that the client set, by SamplingParams' names. Raises InvalidRequest."""
    given = {}
    for name in request.__struct_fields__:
        declared = FIELDS.get(name)
        if declared is not None and declared.http != "own" and getattr(request, name) is not None:
            given[name] = _plain(declared.kind, getattr(request, name))
    given |= structured.form_of(request)
    if isinstance(request, TextSampling):
        if request.prompt_logprobs is not None and request.stream:
            raise InvalidRequest("prompt_logprobs", request.prompt_logprobs, "it needs an answer without stream")
        _check_ways(request)
        if not request.stream and request.stream_options not in (None, StreamOptions()):
            raise InvalidRequest("stream_options", msgspec.to_builtins(request.stream_options), "it needs stream")
    return given


def _check_ways(request: TextSampling) -> None:
    """Of fields that say how another one is meant."""
    side, interval = request.truncation_side, request.stream_interval
    if side not in ("left", "right", None):
        raise InvalidRequest("truncation_side", side, "it must be left or right")
    if side is not None and getattr(request, "truncate_prompt_tokens", None) is None:
        ignored.without_effect("truncation_side", side, "it needs truncate_prompt_tokens")
    if interval is not None and interval < 1:
        raise InvalidRequest("stream_interval", interval, "it must be a positive integer")
    if interval is not None and not request.stream:
        ignored.without_effect("stream_interval", interval, "it needs stream")


def check_named_tokens(request: Sampling, context: ModelContext) -> None:
    """Raises InvalidRequest for a logprob_token_ids that cannot be had: the engine tells of the likeliest tokens, so of
    all where it must not miss one."""
    ids = getattr(request, "logprob_token_ids", None)
    if not ids:
        return
    check_count("logprob_token_ids", ids, MAX_NAMED_TOKENS)
    check_token_ids("logprob_token_ids", ids, context.info.vocab_size)
    if getattr(request, "logprobs", None) in (None, False):
        raise InvalidRequest("logprob_token_ids", ids, "it needs logprobs")
    if getattr(request, "echo", None):
        raise InvalidRequest("logprob_token_ids", ids, "it does not go with echo")
    if context.info.max_logprobs < context.info.vocab_size:
        raise InvalidRequest("logprob_token_ids", ids, "it needs a server with --max-logprobs -1")


def _plain(kind: Kind, value: Any) -> Any:
    if kind == "strings":
        return (value,) if isinstance(value, str) else tuple(value)
    return _logit_bias(value) if kind == "logit_bias" else value


def _logit_bias(bias: Mapping[str, float]) -> dict[int, float]:
    check_count("logit_bias", bias, MAX_TOKEN_LIST)
    for token in bias:
        if not (token.isascii() and token.isdigit() and len(token) < 11):
            raise InvalidRequest("logit_bias", token, "keys must be token ids")
    return {int(token): clamped_bias(value) for token, value in bias.items()}


def generation(request: Sampling, prompt: Prompt, given: Mapping[str, Any], **more: Any) -> GenerationRequest:
    if isinstance(request, TextSampling):
        more["keeps_beginning"] = request.truncation_side == "right"
        more["bad_words"] = tuple(request.bad_words or ())
        more["interval"] = request.stream_interval or 1
    return GenerationRequest(
        prompt,
        given,
        model=request.model or "",
        request_id=request.request_id or "",
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
        final_only=not request.stream,
        user=request.user or getattr(request, "safety_identifier", None) or "",
        **more,
    )


def chat_prompt(
    request: ChatRequest | TokenizeRequest, offered: list[dict[str, Any]] | None, variables: Mapping[str, Any]
) -> ChatPrompt:
    """offered: the tools that the model gets to see. Raises InvalidRequest."""
    continued = bool(request.continue_final_message)
    if continued and request.add_generation_prompt:
        raise InvalidRequest("add_generation_prompt", True, "it does not go with continue_final_message")
    return ChatPrompt(
        chat_input.messages(request.messages or ()),
        offered,
        not continued and request.add_generation_prompt is not False,
        request.chat_template,
        variables,
        continued,
    )


def completion(request: CompletionRequest) -> list[GenerationRequest]:
    """One request for each prompt. Raises InvalidRequest."""
    given = sampling(request)
    defaults: dict[str, Any] = {}
    if request.max_tokens is None:
        defaults["max_tokens"] = DEFAULT_COMPLETION_TOKENS
    elif request.max_tokens == 0 and request.echo:
        given["max_tokens"] = 1  # the engine generates at least one token; nobody will see it
    else:
        given["max_tokens"] = request.max_tokens
    if request.best_of is not None and (isinstance(request.best_of, bool) or request.best_of != (request.n or 1)):
        raise InvalidRequest("best_of", request.best_of, f"it must be the value of n, {request.n or 1}")
    if request.logprobs is not None:
        given["logprobs"] = -1 if request.logprob_token_ids else request.logprobs
        if request.echo:
            given["prompt_logprobs"] = _most(request.logprobs, request.prompt_logprobs)
    prompts = _prompts(request)
    check_count("prompt", prompts, MAX_PROMPTS, "prompts")
    several, more = len(prompts) > 1, {"defaults": defaults, "shows_prompt": bool(request.echo)}
    return [
        generation(request, prompt, given, suffix=f"-{i}" if several else "", **more)
        for i, prompt in enumerate(prompts)
    ]


def _most(logprobs: int, prompt_logprobs: int | None) -> int:
    """The larger number of alternatives; -1 is all of them."""
    asked = (logprobs, 0 if prompt_logprobs is None else prompt_logprobs)
    return -1 if -1 in asked else max(asked)


def _prompts(request: CompletionRequest) -> list[Prompt]:
    prompt, special = request.prompt, request.add_special_tokens

    def text(value: str) -> Prompt:
        return TextPrompt(value, special if special is not None else True)

    if isinstance(prompt, str):
        return [text(prompt)]
    kinds = {type(entry) for entry in prompt}
    if len(kinds) != 1:
        allowed = "it must hold texts, token ids, or lists of token ids, and at least one"
        raise InvalidRequest("prompt", prompt, allowed if not kinds else allowed + " of one kind")
    if kinds == {str}:
        return [text(entry) for entry in prompt if isinstance(entry, str)]
    if special is not None:
        raise InvalidRequest("add_special_tokens", special, "it applies to a text prompt only")
    lists: Sequence[Any] = [prompt] if kinds == {int} else prompt
    return [TokenPrompt(ids) for ids in lists]


@contextmanager
def in_names_of_the_client(names: Mapping[str, str]) -> Iterator[None]:
    """Errors name fields as the client wrote them. names: the servers' shared name -> the client's."""
    try:
        yield
    except InvalidRequest as error:
        raise renamed(error, names, lambda text: _rename(text, names)) from error
    except ChatTemplateError as error:
        if error.field is None:
            raise
        # The message may hold the path of the field too.
        field = _rename_path(error.field, names)
        raise type(error)(str(error).replace(error.field, field, 1), field) from error


def _rename(text: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        if ours in ("max_tokens", "min_tokens"):
            text = text.replace(ours, theirs)
    return text


def _rename_path(text: str, names: Mapping[str, str]) -> str:
    for ours in ("messages", "tools"):
        if ours in names and text.startswith(ours):
            return names[ours] + text[len(ours) :]
    return text
