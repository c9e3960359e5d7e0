"""What of a request is too large, and how that is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

from jaxinfer.errors import InvalidRequest

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
