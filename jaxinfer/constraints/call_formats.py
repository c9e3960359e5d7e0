"""How each format spells tool calls: one `CallFormat` for each name of jaxinfer/text/answers/formats.py that has them.

A new format adds its `CallFormat` to `CALL_FORMATS`; where its calls are no JSON object with name and arguments, also
a function that makes the expression of one call. What it lets through, the format's parser must find:
tests/jaxinfer/constraints/test_calls_are_found.py draws calls of every format and reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxinfer.constraints.grammar import Grammar, TokenOf, json_options, literal


@dataclass(frozen=True, slots=True)
class Function:
    """A function that may be called. parameters: a usable schema of an object, which its arguments must match."""

    name: str
    parameters: Mapping[str, Any]


Body = Callable[[Function, Grammar], str]


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How calls are spelled.

    Args:
        body: The expression of one call, without what follows.
        tag: What begins a call; "" where a call may be the beginning of an answer without one.
        triggers: What ends text of the model's that stands before a call; the tag, if it has one.
        open, close: Around a call, behind the tag.
        between: Between two calls.
        grouped: One tag, `open` and `close` stand around all calls, not around each.
    """

    body: Body
    tag: str = ""
    triggers: tuple[str, ...] = ()
    open: str = ""
    close: str = ""
    between: str = ""
    grouped: bool = False


def json_call(arguments: str, function: Function, grammar: Grammar) -> str:
    """{"name": ..., `arguments`: {...}}"""
    head = f'{{"name": {json.dumps(function.name)}, "{arguments}": '
    return f"{literal(head)} {json_arguments(function, grammar)} {literal('}')}"


def json_arguments(function: Function, grammar: Grammar) -> str:
    """The object of a call's arguments."""
    return grammar.schema(function.parameters, json_options())


def _named(function: Function, grammar: Grammar) -> str:
    """Mistral's newer form: the name, [ARGS], the arguments."""
    return f"{grammar.text(function.name + '[ARGS]')} {json_arguments(function, grammar)}"


_ARGUMENTS = partial(json_call, "arguments")
_MISTRAL_NAMED = CallFormat(_named, "[TOOL_CALLS]", ("[TOOL_CALLS]",))

CALL_FORMATS: Mapping[str, CallFormat] = {
    "hermes": CallFormat(_ARGUMENTS, "<tool_call>", ("<tool_call>",), open="\n", close="\n</tool_call>", between="\n"),
    "llama3": CallFormat(partial(json_call, "parameters"), "", ("<|python_tag|>",), between="; ", grouped=True),
    "mistral": CallFormat(
        _ARGUMENTS, "[TOOL_CALLS]", ("[TOOL_CALLS]",), open="[", close="]", between=", ", grouped=True
    ),
    "granite": CallFormat(
        _ARGUMENTS, "<|tool_call|>", ("<|tool_call|>", "<tool_call>"), open="[", close="]", between=", ", grouped=True
    ),
}
"""By the names of the formats, but for harmony, whose calls are messages (see reasoning.py)."""


def call_format(name: str, token_of: TokenOf) -> CallFormat | None:
    """The format of that name, as a model with these tokens writes it; None where its calls cannot be spelled yet."""
    if name == "mistral" and token_of("[ARGS]") is not None:  # its vocabularies have it since the newer form
        return _MISTRAL_NAMED
    return CALL_FORMATS.get(name)
