"""A schema taken apart for notations that are not JSON, whose grammars llguidance cannot make of it by itself."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxinfer.constraints.grammar import Grammar, json_options, pattern_of
from jaxinfer.constraints.schema import ANNOTATIONS, at, escaped
from jaxinfer.errors import InvalidRequest

_OF_TEXT = frozenset({"type", "enum", "const", "minLength", "maxLength", "pattern"})
_REFERENCES = 16  # that lead to each other


@dataclass(frozen=True, slots=True)
class Leaf:
    """One alternative of a value's schema: no reference, and no alternatives of its own. pointer: where it stands."""

    schema: Mapping[str, Any]
    pointer: str

    @property
    def types(self) -> frozenset[str]:
        """JSON Schema's names; all of them where it names none."""
        named = self.schema.get("type")
        if named is None:
            return frozenset(("string", "number", "integer", "boolean", "null", "array", "object"))
        return frozenset([named] if isinstance(named, str) else named)

    @property
    def values(self) -> list[Any] | None:
        """The only values, where they are listed."""
        if "const" in self.schema:
            return [self.schema["const"]]
        return self.schema.get("enum")


class Parts:
    """The schema of a function's parameters. field: where it stands in the request, for errors."""

    def __init__(self, root: Mapping[str, Any], field: str) -> None:
        self._root, self._field = root, field

    def refuse(self, pointer: str, value: Any, why: str) -> InvalidRequest:
        return InvalidRequest(at(self._field, pointer), value, f"{why} in the model's format of tool calls")

    def members(self, leaf: Leaf) -> list[tuple[str, bool, Any, str]]:
        """(name, whether it is required, schema, pointer) of an object's members, in order."""
        known = {"type", "properties", "required", "additionalProperties", *ANNOTATIONS}
        unknown = next((name for name in leaf.schema if name not in known), None)
        if unknown is not None:
            raise self.refuse(f"{leaf.pointer}/{unknown}", leaf.schema[unknown], "no grammar can be made of it")
        properties = leaf.schema.get("properties", {})
        required = leaf.schema.get("required", ())
        for name in required:
            if name not in properties:
                raise self.refuse(f"{leaf.pointer}/required", name, "what is required must be one of properties")
        return [
            (name, name in required, schema, f"{leaf.pointer}/properties/{escaped(name)}")
            for name, schema in properties.items()
        ]

    def leaves(self, schema: Any, pointer: str, depth: int = 0) -> Iterator[Leaf]:
        """The alternatives of a value."""
        if not isinstance(schema, Mapping):
            schema = {} if schema is True else {"enum": []}
        own = {name: value for name, value in schema.items() if name not in ANNOTATIONS}
        if depth > _REFERENCES:
            raise self.refuse(pointer, schema, "references must not lead to themselves")
        choice = next((name for name in ("anyOf", "oneOf", "$ref", "allOf") if name in own), None)
        if choice is None:
            yield Leaf(own, pointer)
            return
        if (choice == "allOf" and len(own["allOf"]) != 1) or set(own) - {choice, "type"}:
            raise self.refuse(f"{pointer}/{choice}", own[choice], "it must stand alone")
        if choice == "$ref":
            yield from self.leaves(self._at(own["$ref"]), own["$ref"].removeprefix("#"), depth + 1)
            return
        for i, each in enumerate(own[choice]):
            yield from self.leaves(each, f"{pointer}/{choice}/{i}", depth + 1)

    def _at(self, reference: str) -> Any:
        found: Any = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            found = found[step.replace("~1", "/").replace("~0", "~")]
        return found

    def text(self, leaf: Leaf, ends: Collection[str], grammar: Grammar, *, mixed: bool) -> str | None:
        """A terminal's expression for the texts that a leaf allows; None where it allows none. ends: what a text cannot
        hold. mixed: other values are written like texts, so that none may look like one of them."""
        if "string" not in leaf.types:
            return None
        unknown = next((name for name in leaf.schema if name not in _OF_TEXT), None)
        if unknown is not None and "type" in leaf.schema and leaf.types == {"string"}:
            raise self.refuse(f"{leaf.pointer}/{unknown}", leaf.schema[unknown], "a text cannot be held to it")
        if leaf.values is not None:
            kept = [v for v in leaf.values if isinstance(v, str) and not any(end in v for end in ends)]
            kept = [v for v in kept if not (mixed and _looks_like_json(v))]
            return " | ".join(f"/{pattern_of(v)}/" if v else '""' for v in kept) or None
        kinds = [_without(ends)]
        low, high = leaf.schema.get("minLength", 0), leaf.schema.get("maxLength", "")
        if low or high != "":
            kinds.append(rf"/(?s:.{{{low},{high}}})/")
        if "pattern" in leaf.schema:
            kinds.append(f"/{_searched(leaf.schema['pattern'])}/")
        if mixed:
            kinds += [r"/([^\s\-0-9\[\{\"](?s:.*))?/", r"~/(?i:true|false|null|none)\s*/"]
        return "(" + " & ".join(kinds) + ")"

    @property
    def shared(self) -> Mapping[str, Any]:
        """What references may lead to."""
        return {name: self._root[name] for name in ("$defs", "definitions") if name in self._root}

    def json(
        self, leaf: Leaf, grammar: Grammar, kinds: Collection[str], shared: Mapping[str, Any] | None = None
    ) -> str | None:
        """JSON of the values of these types, written as JSON; None where the leaf allows none. shared: instead of the
        schema's own."""
        if leaf.values is not None:
            kept = [value for value in leaf.values if not isinstance(value, str) or "string" in kinds]
            return grammar.schema({"enum": kept}, json_options()) if kept else None
        types = sorted(leaf.types & set(kinds))
        if not types:
            return None
        return grammar.schema(
            {**(self.shared if shared is None else shared), **leaf.schema, "type": types}, json_options()
        )


def _without(ends: Collection[str]) -> str:
    inner = "|".join(map(pattern_of, ends))
    return rf"/(?s:.*)/ & ~/(?s:.*)({inner})(?s:.*)/"


def _searched(pattern: str) -> str:
    """An expression for whole texts, of one that is looked for in them."""
    from llguidance import regex_to_lark

    start, end = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[1 if start else 0 : -1 if end else None]
    return f"{'' if start else '(?s:.*)'}({regex_to_lark(inner, 'dw')}){'' if end else '(?s:.*)'}"


def _looks_like_json(text: str) -> bool:
    try:
        return not isinstance(json.loads(text.strip().lower().replace("none", "null")), str)
    except ValueError:
        return False
