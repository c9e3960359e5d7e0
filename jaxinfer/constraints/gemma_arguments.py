"""Arguments in Gemma's notation: `GemmaArguments` of jaxinfer/text/answers/spelling.py."""

from __future__ import annotations

import json
from typing import Any

from jaxinfer.constraints.function import Function
from jaxinfer.constraints.grammar import Grammar, literal
from jaxinfer.constraints.leaves import Leaf, Parts
from jaxinfer.errors import InvalidRequest
from jaxinfer.text.answers import GemmaArguments

_SCALARS = ("number", "integer", "boolean", "null")
_DEEPEST = 12  # objects and lists within each other
_FREE = 16  # members of an object of which the schema says nothing, at most
_NAME = r"/[A-Za-z_][A-Za-z0-9_]{0,63}/"
_OF_LIST = {"type", "items", "minItems", "maxItems"}


def as_members(function: Function, spelling: GemmaArguments, grammar: Grammar) -> str:
    """Members in the order of the schema. Raises InvalidRequest for a strict function of which that cannot hold."""
    writer = _Writer(Parts(function.parameters, function.field), spelling.quote, grammar)
    try:
        return writer.members(Leaf(function.parameters, ""), 0)
    except InvalidRequest:
        if function.strict:
            raise
        return writer.free_members()


class _Writer:
    def __init__(self, parts: Parts, quote: str, grammar: Grammar) -> None:
        self._parts, self._quote, self._grammar = parts, quote, grammar

    def value(self, schema: Any, pointer: str, depth: int) -> str:
        if depth > _DEEPEST:
            raise self._parts.refuse(pointer, schema, f"at most {_DEEPEST} values may lie within each other")
        found: list[str] = []
        for leaf in self._parts.leaves(schema, pointer):
            found += self._leaf(leaf, depth)
        if not found:
            raise self._parts.refuse(pointer, schema, "it allows no value that can be written")
        return self._grammar.rule(" | ".join(found))

    def _leaf(self, leaf: Leaf, depth: int) -> list[str]:
        found = []
        text = self._parts.text(leaf, (self._quote,), self._grammar, mixed=False)
        if text is not None:
            found.append(f"{self._grammar.text(self._quote)} {self._grammar.ended(text, self._quote)}")
        if leaf.values is not None:
            scalars = [each for each in leaf.values if not isinstance(each, str)]
            if any(isinstance(each, dict | list) for each in scalars):
                raise self._parts.refuse(leaf.pointer, leaf.values, "listed values must be texts, numbers or words")
            return [*found, *(literal(json.dumps(each)) for each in scalars)]
        scalar = self._parts.json(leaf, self._grammar, _SCALARS)
        if scalar is not None:
            found.append(scalar)
        if "type" in leaf.schema and "array" in leaf.types:
            found.append(self._list(leaf, depth))
        if "type" in leaf.schema and "object" in leaf.types:
            inner = self.members(leaf, depth) if "properties" in leaf.schema else self.free_members()
            found.append(f'"{{" {inner} "}}"')
        return found

    def _list(self, leaf: Leaf, depth: int) -> str:
        unknown = next((name for name in leaf.schema if name not in _OF_LIST), None)
        if unknown is not None:
            raise self._parts.refuse(f"{leaf.pointer}/{unknown}", leaf.schema[unknown], "no grammar can be made of it")
        low, high = leaf.schema.get("minItems", 0), leaf.schema.get("maxItems")
        if high == 0:
            return '"[]"'
        one = self.value(leaf.schema.get("items", {}), f"{leaf.pointer}/items", depth + 1)
        more = f'("," {one}){{{max(0, low - 1)},{"" if high is None else high - 1}}}'
        return f'"[" {one} {more} "]"' if low else f'"[" ({one} {more})? "]"'

    def members(self, leaf: Leaf, depth: int) -> str:
        """Of an object, without its braces."""
        found = self._parts.members(leaf)
        for name, _, _, pointer in found:
            if not name or name != name.strip() or any(mark in name for mark in ':,{}[]<>"'):
                raise self._parts.refuse(pointer, name, "a member cannot have this name")
        # Behind the last nothing follows; before it, what follows depends on whether a comma is needed.
        first = more = '""'
        for name, required, schema, pointer in reversed(found):
            one = f"{self._grammar.text(name + ':')} {self.value(schema, pointer, depth + 1)}"
            first, more = (
                self._grammar.rule(f"{comma}{one} {more}" + ("" if required else f" | {rest}"))
                for comma, rest in (("", first), ('"," ', more))
            )
        return first

    def free_members(self) -> str:
        """Texts and words of any names."""
        one = f'{self._grammar.terminal(_NAME)} ":" {self.value({}, "", 0)}'
        return f'({one} ("," {one}){{0,{_FREE - 1}}})?'
