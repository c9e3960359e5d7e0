"""Answers that call tools, as grammars: calls that must come, or that must be well formed where they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.constraints.arguments import arguments, json_arguments
from jaxinfer.constraints.checking import check_schema
from jaxinfer.constraints.function import Function
from jaxinfer.constraints.grammar import SPACE, Grammar, either, json_options, pattern_of
from jaxinfer.constraints.reasoning import call_message
from jaxinfer.constraints.schema import usable_schema
from jaxinfer.errors import InvalidRequest
from jaxinfer.text.answers import CallSpelling

MAX_CALLS = 32  # of one answer, where a grammar makes them


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a client offers. field: where in its request the schema stands. strict: it asks that arguments
    match the schema."""

    name: str
    parameters: Mapping[str, Any]
    field: str
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolRules:
    """What a client says of the calls of an answer.

    Args:
        tools: Those that may be called.
        required: There must be a call.
        single: There is one call at most.
        limited: The client offers others too, which must not be called.
    """

    tools: tuple[Tool, ...]
    required: bool = False
    single: bool = False
    limited: bool = False

    @property
    def constrain(self) -> bool:
        """Whether an answer needs a grammar for them."""
        return self.required or self.limited or any(tool.strict for tool in self.tools)


def functions(rules: ToolRules) -> list[Function]:
    """What each call may be. Arguments of a function that is not strict are any object, where its schema is one that no
    grammar can be made of. Raises InvalidRequest for a strict one."""
    return [Function(tool.name, _parameters(tool), tool.field, tool.strict) for tool in rules.tools]


def _parameters(tool: Tool) -> Mapping[str, Any]:
    try:
        schema = usable_schema(tool.field, tool.parameters, closed=True)
        if not isinstance(schema, dict) or schema.get("type", "object") != "object":
            raise InvalidRequest(tool.field, tool.parameters, "arguments are an object: its type must be object")
        schema = {"type": "object", **schema}
        check_schema(tool.field, schema, json_options())
    except InvalidRequest:
        if tool.strict:
            raise
        return {"type": "object"}
    return schema


def calls(spelling: CallSpelling, allowed: Sequence[Function], grammar: Grammar, *, single: bool) -> str:
    """One call or several, as the whole of what is left of an answer."""
    head = spelling.opening + spelling.before_name
    return f"{grammar.text(head)} {_behind(spelling, allowed, grammar, single=single)}"


def text_or_calls(
    spelling: CallSpelling, tags: Sequence[str], allowed: Sequence[Function], grammar: Grammar, *, single: bool
) -> str:
    """Text of the model's, in which calls follow where a tag stands: these are the end of the answer. tags: those that
    a parser takes for the beginning of a call."""
    rest = _behind(spelling, allowed, grammar, single=single)
    head = spelling.opening + spelling.before_name
    own = next((tag for tag in tags if head.startswith(tag)), "")
    found = []
    for tag in tags:
        behind = head.partition(tag)[2] if tag in head else head[len(own) :]
        found.append(_joined(grammar.until((tag,)), grammar.text(behind), rest))
    if own:
        return either(grammar.any_text(), *found)
    # An answer that begins as calls do is one.
    first = pattern_of(head.lstrip()[0])
    text = grammar.terminal(rf"/[\x20\t\r\n]*([^\x20\t\r\n{first}](.|\n)*)?/")
    return either(text, *found, f"{grammar.terminal(SPACE)}? {grammar.text(head)} {rest}")


def _behind(spelling: CallSpelling, allowed: Sequence[Function], grammar: Grammar, *, single: bool) -> str:
    """From the name of the first call to the end of the last."""
    one = grammar.rule(" | ".join(_call(function, spelling, grammar) for function in allowed))
    next_call = _joined(grammar.text(spelling.between + spelling.before_name), one)
    others = "" if single else f"({next_call}){{0,{MAX_CALLS - 1}}}"
    return _joined(one, others, grammar.text(spelling.closing))


def _call(function: Function, spelling: CallSpelling, grammar: Grammar) -> str:
    """From its name on."""
    head = grammar.text(function.name + spelling.before_arguments)
    return _joined(head, arguments(function, spelling, grammar), grammar.text(spelling.after_arguments))


def call_messages(allowed: Sequence[Function], grammar: Grammar) -> str:
    """Harmony's: one message, for a call ends the answer."""
    messages = (call_message(f.name, json_arguments(f, grammar), grammar) for f in allowed)
    return grammar.rule(" | ".join(messages))


def _joined(*expressions: str) -> str:
    return " ".join(filter(None, expressions))
