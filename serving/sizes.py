"""What of a request is too large, and how that is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import EngineInfo
from jaxinfer.sampling_params import SamplingParams

MAX_MESSAGES = 4096  # of one conversation
MAX_TOOLS = 128
MAX_TOOL_LENGTH = 1 << 16  # of one function's schema, about as many characters as its JSON has
MAX_VARIABLES_LENGTH = 1 << 16  # of all template variables
MAX_NESTING = 32  # objects and lists within each other, in a schema or a variable


def check_count(name: str, values: Sized, limit: int, what: str = "entries") -> None:
    """Raises InvalidRequest where there are more than `limit`."""
    if len(values) > limit:
        raise InvalidRequest(name, f"{len(values)} {what}", f"at most {limit} are allowed")


def check_chat(messages: Sized, tools: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> None:
    """Bounds what a template has to go through, beside the texts themselves. Raises InvalidRequest."""
    check_count("messages", messages, MAX_MESSAGES, "messages")
    check_count("tools", tools, MAX_TOOLS, "tools")
    for i, tool in enumerate(tools):
        check_size(f"tools[{i}]", tool, MAX_TOOL_LENGTH)
    variables = {name: value for name, value in variables.items() if name != "documents"}  # those are text
    check_size("template_variables", variables, MAX_VARIABLES_LENGTH)


def check_size(name: str, value: Any, limit: int) -> None:
    """Raises InvalidRequest where a value has more than `limit` characters of JSON, or too many levels. It is not
    encoded."""
    length, level = 0, [value]
    for _ in range(MAX_NESTING):
        below: list[Any] = []
        for found in level:
            length += len(found) + 2 if isinstance(found, str) else 2
            if isinstance(found, Mapping):
                below += [*found, *found.values()]
            elif isinstance(found, list | tuple):
                below += found
            if length > limit:
                raise InvalidRequest(name, "a value of that size", f"at most {limit} characters of JSON are allowed")
        if not below:
            return
        level = below
    raise InvalidRequest(name, "a value of that depth", f"at most {MAX_NESTING} levels are allowed")


def too_many_tokens(tokens: int, context_len: int) -> InvalidRequest:
    """Of a prompt."""
    allowed = f"with room for one more token, at most {context_len - 1} fit the context of {context_len}"
    return InvalidRequest("prompt", f"{tokens} tokens", allowed)


def too_many_characters(characters: int, allowed: int, context_len: int) -> InvalidRequest:
    """Of a prompt."""
    most = f"the context of {context_len} tokens stands for at most {allowed}, with room for one more token"
    return InvalidRequest("prompt", f"{characters} characters", most)


def fit_context(params: SamplingParams, prompt_len: int, info: EngineInfo) -> SamplingParams:
    """Resolves max_tokens: at most what context and pool leave, as in vLLM's get_max_tokens, for clients send the most
    that they would take. min_tokens is a promise and does not shrink."""
    context_len = info.max_model_len
    if not prompt_len:
        raise InvalidRequest("prompt", "", "it must hold at least one token")
    room = context_len - prompt_len
    if room < 1:
        raise too_many_tokens(prompt_len, context_len)
    if params.min_tokens > room:
        allowed = f"with a prompt of {prompt_len} tokens at most {room} fit the context of {context_len}"
        raise InvalidRequest("min_tokens", params.min_tokens, allowed)
    # A pool that cannot hold the prompt is the engine's to refuse.
    fits_pool = info.pool_length - prompt_len
    left = min(room, fits_pool) if fits_pool >= max(1, params.min_tokens) else room
    wanted = left if params.max_tokens is None else min(params.max_tokens, left)
    return params.with_changes(max_tokens=wanted)
