"""JSON schemas by chance, of every class of keywords that are supported."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = Any
_PATTERNS = ("^[a-z]{2,5}$", "^x-", "[0-9]+$", "^(ab|cd)+$", "^\\d{3}-\\d{2}$", "^[A-Z][a-z]*( [A-Z][a-z]*)?$", "é|ü")
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_VALUES = ("a", "b c", 'q"\\', "ß", 1, -2.5, True, None, [1, "x"], {"k": [None]}, "")
_WORDS = ("name", "n", "size", "a b", "ünit", "x/y", "kind", "next", "list", 'q"')


def schema(draw: random.Random, kind: str) -> Schema:
    """One whose root is of the class `kind`, one of `KINDS`."""
    return _Maker(draw).root(kind)


class _Maker:
    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._recursive = False

    def root(self, kind: str) -> Schema:
        made = KINDS[kind](self, 0)
        if self._recursive and isinstance(made, dict):
            tree = {
                "type": "object",
                "properties": {"value": self.any(2), "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
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
        if self._draw.random() < 0.7:
            made["maxLength"] = low + self._draw.randrange(6)
        return made

    def pattern(self, depth: int) -> Schema:
        return {"type": "string", "pattern": self._draw.choice(_PATTERNS)}

    def format(self, depth: int) -> Schema:
        return {"type": "string", "format": self._draw.choice(_FORMATS)}

    def number(self, depth: int) -> Schema:
        low, width = self._draw.randrange(-50, 50), self._draw.randrange(1, 40)
        made = {"type": "number"}
        bounds = {
            self._draw.choice(("minimum", "exclusiveMinimum")): low - self._draw.choice((0, 0.5)),
            self._draw.choice(("maximum", "exclusiveMaximum")): low + width + self._draw.choice((0, 0.25)),
        }
        return {**made, **{name: bound for name, bound in bounds.items() if self._draw.random() < 0.8}}

    def integer(self, depth: int) -> Schema:
        return {**self.number(depth), "type": "integer"}

    def multiple(self, depth: int) -> Schema:
        return {
            "type": self._draw.choice(("integer", "number")),
            "multipleOf": self._draw.choice((2, 5, 10, 0.5, 0.25)),
        }

    def enum(self, depth: int) -> Schema:
        return {"enum": self._draw.sample(_VALUES, self._draw.randrange(1, 5))}

    def const(self, depth: int) -> Schema:
        return {"const": self._draw.choice(_VALUES)}

    def types(self, depth: int) -> Schema:
        made = {"type": self._draw.sample(("string", "integer", "boolean", "null"), 2)}
        return {**made, "maxLength": 5, "minimum": 3, "title": "either"}

    def plain(self, depth: int) -> Schema:
        return self._draw.choice(({"type": "boolean"}, {"type": "null"}, {"type": "string", "maxLength": 9}))

    def object(self, depth: int) -> Schema:
        names = self._draw.sample(_WORDS, self._draw.randrange(1, 5))
        made: dict[str, Any] = {"type": "object", "properties": {name: self.any(depth) for name in names}}
        made["required"] = [name for name in names if self._draw.random() < 0.6]
        if self._draw.random() < 0.8:
            made["additionalProperties"] = False
        return made

    def map(self, depth: int) -> Schema:
        low = self._draw.randrange(3)
        made: dict[str, Any] = {"type": "object", "maxProperties": low + 2}
        if self._draw.random() < 0.5:
            made["patternProperties"] = {"^[a-c]_": self.any(depth), "^[x-z][0-9]$": self.any(depth)}
            made["additionalProperties"] = False
        else:
            made["additionalProperties"] = self.any(depth)
            made["minProperties"] = low
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
        return {"allOf": [first, second], "additionalProperties": True}

    def reference(self, depth: int) -> Schema:
        self._recursive = True
        return {"type": "object", "properties": {"tree": {"$ref": "#/$defs/node"}}, "required": ["tree"]}


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
