"""Answers that call tools, as grammars: calls that must come, or that must be well formed where they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.constraints.call_formats import CallFormat, Function, json_arguments
from jaxinfer.constraints.checking import check_schema
from jaxinfer.constraints.grammar import SPACE, Grammar, either, json_options
from jaxinfer.constraints.reasoning import call_message
from jaxinfer.constraints.schema import usable_schema
from jaxinfer.errors import InvalidRequest

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
    """

    tools: tuple[Tool, ...]
    required: bool = False
    single: bool = False

    @property
    def constrain(self) -> bool:
        """Whether an answer needs a grammar for them."""
        return self.required or any(tool.strict for tool in self.tools)


def functions(rules: ToolRules) -> list[Function]:
    """What each call may be. Arguments of a function that is not strict are any object, where its schema is one that no
    grammar can be made of. Raises InvalidRequest for a strict one."""
    return [Function(tool.name, _parameters(tool)) for tool in rules.tools]


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


def calls(form: CallFormat, allowed: Sequence[Function], grammar: Grammar, *, single: bool) -> str:
    """One call or several, as the whole of what is left of an answer."""
    if not form.tag:
        return behind_tag(form, allowed, grammar, single=single)
    return f"{grammar.text(form.tag)} {behind_tag(form, allowed, grammar, single=single)}"


def behind_tag(form: CallFormat, allowed: Sequence[Function], grammar: Grammar, *, single: bool) -> str:
    """The same where the first tag stands already."""
    one = grammar.rule(" | ".join(form.body(function, grammar) for function in allowed))
    begin, between, end = grammar.text(form.open), grammar.text(form.between), grammar.text(form.close)
    more = f"{{0,{MAX_CALLS - 1}}}"
    if form.grouped:
        others = "" if single else f"({between} {one}){more}"
        return _joined(begin, one, others, end)
    others = "" if single else f"({_joined(between, grammar.text(form.tag), begin, one, end)}){more}"
    return _joined(begin, one, end, others)


def text_or_calls(form: CallFormat, allowed: Sequence[Function], grammar: Grammar, *, single: bool) -> str:
    """Text of the model's, in which calls follow where their tag stands: these are the end of the answer."""
    rest = behind_tag(form, allowed, grammar, single=single)
    text = grammar.any_text()
    found = [f"{grammar.until(form.triggers)} {rest}"]
    if not form.tag:  # an answer that begins as calls do is one
        text = grammar.terminal(r"/[\x20\t\r\n]*([^\x20\t\r\n{](.|\n)*)?/")
        found.append(f"{grammar.terminal(SPACE)}? {rest}")
    return either(text, *found)


def call_messages(allowed: Sequence[Function], grammar: Grammar) -> str:
    """Harmony's: one message, for a call ends the answer."""
    messages = (call_message(f.name, json_arguments(f, grammar), grammar) for f in allowed)
    return grammar.rule(" | ".join(messages))


def _joined(*expressions: str) -> str:
    return " ".join(filter(None, expressions))
