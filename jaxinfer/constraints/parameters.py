"""Arguments as parameters between tags: `ParameterArguments` of jaxinfer/text/answers/spelling.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from jaxinfer.constraints.function import Function
from jaxinfer.constraints.grammar import Grammar
from jaxinfer.constraints.leaves import Leaf, Parts
from jaxinfer.constraints.schema import parts as parts_of
from jaxinfer.errors import InvalidRequest
from jaxinfer.text.answers import ParameterArguments
from jaxinfer.text.answers.typing_of_text import ValueSchema

_NOT_TEXT = ("number", "integer", "boolean", "null", "array", "object")
_FREE = 16  # parameters of a function whose schema says nothing of them, at most
_NAME = r"/[A-Za-z_][A-Za-z0-9_]{0,63}/"


def as_parameters(function: Function, spelling: ParameterArguments, grammar: Grammar) -> str:
    """Parameters in the order of the schema. Raises InvalidRequest for a strict function of which that cannot hold."""
    try:
        return _parameters(function, spelling, grammar)
    except InvalidRequest:
        if function.strict:
            raise
        return _any_parameters(spelling, grammar)


def _parameters(function: Function, spelling: ParameterArguments, grammar: Grammar) -> str:
    parts = Parts(function.parameters, function.field)
    written = []
    for name, required, schema, pointer in parts.members(Leaf(function.parameters, "")):
        if not name.strip() == name or any(mark in name for mark in '<>"\n') or not name:
            raise parts.refuse(pointer, name, "a parameter cannot have this name")
        types = ValueSchema.of_parameters(function.parameters).member(name).types()
        values = _values(parts, schema, pointer, types, spelling, grammar)
        one = grammar.rule(" | ".join(f"{grammar.text(spelling.before_key + name + head)} {v}" for head, v in values))
        written.append(one if required else f"{one}?")
    return " ".join(written)


def _values(
    parts: Parts,
    schema: Any,
    pointer: str,
    types: frozenset[str] | None,
    spelling: ParameterArguments,
    grammar: Grammar,
) -> list[tuple[str, str]]:
    """(what stands before the value, the value with what ends it) of each alternative. types: as the parser takes
    them, which holds a value of which nothing is known to be a text."""
    marked = spelling.before_json != spelling.before_text  # the format says itself what is a text
    mixed = types is not None and types != {"string"}
    found = []
    for leaf in parts.leaves(schema, pointer):
        text = parts.text(leaf, spelling.ends, grammar, mixed=mixed)
        if text is not None:
            found.append((spelling.before_text, grammar.ended(text, spelling.after)))
        if types is None and not marked:
            continue
        _refuse_ends(parts, leaf, spelling.ends)
        value = parts.json(safe(leaf, spelling.ends), grammar, _NOT_TEXT, safe(parts.shared, spelling.ends))
        if value is not None:
            found.append((spelling.before_json, f"{value} {grammar.text(spelling.after)}"))
    if not found:
        raise parts.refuse(pointer, schema, "it allows no value that can be written")
    return found


def _any_parameters(spelling: ParameterArguments, grammar: Grammar) -> str:
    """Texts of any names."""
    parts = Parts({}, "")
    text = parts.text(Leaf({"type": "string"}, ""), spelling.ends, grammar, mixed=False)
    assert text is not None
    name = grammar.terminal(_NAME)
    head = f"{grammar.text(spelling.before_key)} {name} {grammar.text(spelling.before_text)}"
    return f"({head} {grammar.ended(text, spelling.after)}){{0,{_FREE}}}"


def _refuse_ends(parts: Parts, leaf: Leaf, ends: tuple[str, ...]) -> None:
    """Raises InvalidRequest for names and listed values that would end the parameter which they stand in. A leaf's own
    texts are not among them: the leaf leaves such out."""
    schema = {name: value for name, value in leaf.schema.items() if name not in ("enum", "const")}
    listed = [value for value in leaf.values or () if not isinstance(value, str)]
    for each in (schema, listed, parts.shared if _refers(schema) else {}):
        text = json.dumps(each, ensure_ascii=False)
        if any(end in text for end in ends):  # a description does not count, and is rare to hold one
            found = next((value for value in _fixed(each) if any(end in value for end in ends)), None)
            if found is not None:
                raise parts.refuse(leaf.pointer, found, "it would end the value that it stands in")


def _refers(schema: Any) -> bool:
    return '"$ref"' in json.dumps(schema)


def _fixed(schema: Any) -> Iterator[str]:
    """Names and listed values of a schema and of those within it, as JSON; of a list, its values."""
    if isinstance(schema, list):
        yield from (json.dumps(value, ensure_ascii=False) for value in schema)
        return
    for _, part in parts_of(schema):
        if isinstance(part, Mapping):
            yield from part.get("properties", ())
            yield from _fixed([*part.get("enum", ()), *([part["const"]] if "const" in part else [])])


S = TypeVar("S", Leaf, Mapping[str, Any])


def safe(given: S, ends: tuple[str, ...]) -> S:
    """A leaf, or a schema's definitions, with strings inside of values that hold nothing like one of `ends`, which
    would end the value."""
    seconds = "".join(sorted({end[1] for end in ends}))
    assert all(end[0] == "<" for end in ends), ends
    pattern = (
        f"^([^<]|<+[^<{seconds}])*<*$".replace("/", "\\/") if "/" not in seconds else f"^([^<]|<+[^<{seconds}])*<*$"
    )
    if isinstance(given, Leaf):
        return Leaf(_safe(given.schema, pattern), given.pointer)
    return _safe(given, pattern) if given else given


def _safe(schema: Any, pattern: str) -> Any:
    if schema is True or schema == {}:
        return {"anyOf": [{"type": ["number", "boolean", "null"]}, {"type": "string", "pattern": pattern}]}
    if not isinstance(schema, Mapping):
        return schema
    result: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in ("properties", "$defs", "definitions"):
            result[keyword] = {name: _safe(each, pattern) for name, each in value.items()}
        elif keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
            result[keyword] = [_safe(each, pattern) for each in value]
        elif keyword in ("items", "additionalProperties"):
            result[keyword] = _safe(value, pattern)
        else:
            result[keyword] = value
    return _with_safe_texts(result, pattern)


def _with_safe_texts(schema: dict[str, Any], pattern: str) -> dict[str, Any]:
    named = schema.get("type", ())
    types = [named] if isinstance(named, str) else list(named)
    if "object" in types and schema.get("additionalProperties", True) is not False:
        others = schema.pop("additionalProperties", True)
        named_ones = schema.get("patternProperties", {})
        if not named_ones:
            schema |= {"patternProperties": {pattern: _safe(others, pattern)}, "additionalProperties": False}
    if "array" in types and "items" not in schema:
        schema["items"] = _safe(True, pattern)
    if "string" in types and "enum" not in schema and "const" not in schema:
        if "pattern" in schema or "format" in schema:
            schema["allOf"] = [*schema.get("allOf", ()), {"pattern": pattern}]
        else:
            schema["pattern"] = pattern
    return schema
