"""JSON schemas by chance, of every class of keywords that are supported.

Many texts of such a schema may have any length, as most clients' schemas allow. In a bounded one texts, names, lists
and integers have an end, so that a model that writes by chance gets there; a decimal fraction has none in JSON Schema.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = Any
_PATTERNS = ("^[a-z]{2,5}$", "^x-", "[0-9]+$", "^(ab|cd)+$", "^\\d{3}-\\d{2}$", "^[A-Z][a-z]*( [A-Z][a-z]*)?$", "é|ü")
_BOUNDED_PATTERNS = (
    "^[a-z]{2,5}$",
    "^(ab|cd){1,6}$",
    "^\\d{3}-\\d{2}$",
    "^[A-Z][a-z]{0,9}( [A-Z][a-z]{0,9})?$",
    "^(é|ü)$",
)
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_LONGEST = 64  # characters of a bounded text in a format that sets it no end
_VALUES = ("a", "b c", 'q"\\', "ß", 1, -2.5, True, None, [1, "x"], {"k": [None]}, "")
_WORDS = ("name", "n", "size", "a b", "ünit", "x/y", "kind", "next", "list", 'q"')


def schema(draw: random.Random, kind: str, *, bounded: bool = False) -> Schema:
    """One whose root is of the class `kind`, one of `KINDS`."""
    return _Maker(draw, bounded).root(kind)


class _Maker:
    def __init__(self, draw: random.Random, bounded: bool) -> None:
        self._draw, self._bounded = draw, bounded
        self._recursive = False

    def root(self, kind: str) -> Schema:
        made = KINDS[kind](self, 0)
        if self._recursive and isinstance(made, dict):
            self._recursive = False
            value = self.any(2)
            while self._recursive:  # a node whose value must hold a node has no end
                self._recursive = False
                value = self.any(2)
            tree = {
                "type": "object",
                "properties": {"value": value, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["value", "next"],
                "additionalProperties": False,
            }
            made["$defs"] = {"node": tree, "unused": {"type": "string"}}
        return made

    def any(self, depth: int) -> Schema:
        deep = ("object", "map", "array", "tuple", "any_of", "one_of", "all_of", "reference")
        flat = ("string", "pattern", "format", "number", "integer", "multiple", "enum", "const", "types", "plain")
        names = flat if depth >= 3 or self._draw.random() < 0.6 else deep
        return KINDS[self._draw.choice(names)](self, depth + 1)

    def string(self, depth: int) -> Schema:
        low = self._draw.randrange(4)
        made: dict[str, Any] = {"type": "string", "description": "some text"}
        if self._draw.random() < 0.5:
            made["minLength"] = low
        if self._draw.random() < 0.7 or self._bounded:
            made["maxLength"] = low + self._draw.randrange(6)
        return made

    def pattern(self, depth: int) -> Schema:
        return {"type": "string", "pattern": self._draw.choice(_BOUNDED_PATTERNS if self._bounded else _PATTERNS)}

    def format(self, depth: int) -> Schema:
        made = {"type": "string", "format": self._draw.choice(_FORMATS)}
        return {**made, "maxLength": _LONGEST} if self._bounded else made

    def number(self, depth: int) -> Schema:
        low, width = self._draw.randrange(-50, 50), self._draw.randrange(1, 40)
        made = {"type": "number"}
        bounds = {
            self._draw.choice(("minimum", "exclusiveMinimum")): low - self._draw.choice((0, 0.5)),
            self._draw.choice(("maximum", "exclusiveMaximum")): low + width + self._draw.choice((0, 0.25)),
        }
        share = 1.0 if self._bounded else 0.8
        return {**made, **{name: bound for name, bound in bounds.items() if self._draw.random() < share}}

    def integer(self, depth: int) -> Schema:
        return {**self.number(depth), "type": "integer"}

    def multiple(self, depth: int) -> Schema:
        kind, step = self._draw.choice(("integer", "number")), self._draw.choice((2, 5, 10, 0.5, 0.25))
        bounds = {"minimum": -999, "maximum": 9999} if self._bounded else {}
        return {"type": kind, "multipleOf": step, **bounds}

    def enum(self, depth: int) -> Schema:
        return {"enum": self._draw.sample(_VALUES, self._draw.randrange(1, 5))}

    def const(self, depth: int) -> Schema:
        return {"const": self._draw.choice(_VALUES)}

    def types(self, depth: int) -> Schema:
        made = {"type": self._draw.sample(("string", "integer", "boolean", "null"), 2)}
        bounds = {"maximum": 9999} if self._bounded else {}
        return {**made, "maxLength": 5, "minimum": 3, **bounds, "title": "either"}

    def plain(self, depth: int) -> Schema:
        return self._draw.choice(({"type": "boolean"}, {"type": "null"}, {"type": "string", "maxLength": 9}))

    def object(self, depth: int) -> Schema:
        names = self._draw.sample(_WORDS, self._draw.randrange(1, 5))
        made: dict[str, Any] = {"type": "object", "properties": {name: self.any(depth) for name in names}}
        made["required"] = [name for name in names if self._draw.random() < 0.6]
        if self._draw.random() < 0.8 or self._bounded:
            made["additionalProperties"] = False
        return made

    def map(self, depth: int) -> Schema:
        low = self._draw.randrange(3)
        made: dict[str, Any] = {"type": "object", "maxProperties": low + 2}
        if self._draw.random() < 0.5 or self._bounded:
            first = "^[a-c]_[a-z0-9]{0,8}$" if self._bounded else "^[a-c]_"
            made["patternProperties"] = {first: self.any(depth), "^[x-z][0-9]$": self.any(depth)}
            made["additionalProperties"] = False
        else:
            made["additionalProperties"] = self.any(depth)
            made["minProperties"] = min(low, 1)
        return made

    def array(self, depth: int) -> Schema:
        low = self._draw.randrange(3)
        made: dict[str, Any] = {"type": "array", "items": self.any(depth), "uniqueItems": False}
        return {**made, "minItems": low, "maxItems": low + self._draw.randrange(4)}

    def tuple(self, depth: int) -> Schema:
        first = [self.any(depth) for _ in range(self._draw.randrange(1, 4))]
        items = self._draw.choice((False, {"type": "integer"}))
        return {
            "type": "array",
            "prefixItems": first,
            "items": items,
            "minItems": len(first),
            "maxItems": len(first) + 2,
        }

    def any_of(self, depth: int) -> Schema:
        return {"anyOf": [self.any(depth) for _ in range(self._draw.randrange(1, 4))]}

    def one_of(self, depth: int) -> Schema:
        """Told apart by a tag, as discriminated unions are."""

        def tagged(tag: str) -> Schema:
            properties = {"kind": {"const": tag}, "value": self.any(depth)}
            return {"type": "object", "properties": properties, "required": ["kind"], "additionalProperties": False}

        return {"oneOf": [tagged(tag) for tag in self._draw.sample(("cat", "dog", "bird"), 2)]}

    def all_of(self, depth: int) -> Schema:
        first = {"type": "object", "properties": {"a": self.any(depth)}, "required": ["a"]}
        second = {"properties": {"b": self.any(depth)}, "required": ["b"]}
        if self._bounded:
            return {"allOf": [first, second], "properties": {"a": {}, "b": True}, "additionalProperties": False}
        return {"allOf": [first, second], "additionalProperties": True}

    def reference(self, depth: int) -> Schema:
        self._recursive = True
        made = {"type": "object", "properties": {"tree": {"$ref": "#/$defs/node"}}, "required": ["tree"]}
        return {**made, "additionalProperties": False} if self._bounded else made


KINDS: dict[str, Callable[[_Maker, int], Schema]] = {
    "object": _Maker.object,
    "map": _Maker.map,
    "array": _Maker.array,
    "tuple": _Maker.tuple,
    "any_of": _Maker.any_of,
    "one_of": _Maker.one_of,
    "all_of": _Maker.all_of,
    "reference": _Maker.reference,
    "string": _Maker.string,
    "pattern": _Maker.pattern,
    "format": _Maker.format,
    "number": _Maker.number,
    "integer": _Maker.integer,
    "multiple": _Maker.multiple,
    "enum": _Maker.enum,
    "const": _Maker.const,
    "types": _Maker.types,
    "plain": _Maker.plain,
}
