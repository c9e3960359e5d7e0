"""JSON schemas as clients send them: what is refused by name, and the copy that the grammar is made of.

Keywords are JSON Schema's, of draft 4 to 2020-12. llguidance implements `SUPPORTED`; what else validates is refused
here with its place, as a JSON pointer. Names that JSON Schema does not have are annotations, as its standard says
(2020-12 Core, 6.5), unless they look like a keyword that is misspelt.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxinfer.constraints.dates import with_own_formats
from jaxinfer.constraints.ecma import as_rust
from jaxinfer.constraints.params import MAX_TEXT_BYTES
from jaxinfer.errors import InvalidRequest

MAX_DEPTH = 32  # schemas within each other
MAX_PROPERTIES = 5000  # of all objects together: OpenAI's limit
MAX_ENUM_VALUES = 5000  # of all enums together
MAX_PATTERN = 8192  # characters
MAX_COUNT = 1 << 20  # of minLength, maxItems and the like

# Each keyword with an effect on the grammar, as llguidance documents them.
_IN_LIST = ("anyOf", "oneOf", "allOf", "prefixItems")
_IN_OBJECT = ("properties", "patternProperties", "$defs", "definitions")
_ONE = ("items", "additionalItems", "additionalProperties")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
SUPPORTED = (
    *_IN_LIST,
    *("$ref", "const", "enum", "type"),
    *_ONE,
    *("properties", "patternProperties", "required"),
    *_COUNTS,
    *("pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
)
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
ANNOTATIONS = (
    *("$anchor", "$comment", "$defs", "$id", "$schema", "$vocabulary", "contentEncoding", "contentMediaType"),
    *("contentSchema", "default", "definitions", "deprecated", "description", "discriminator", "example", "examples"),
    *("externalDocs", "id", "readOnly", "title", "writeOnly", "xml"),
)
# Keyword -> the value with which it allows everything.
UNSUPPORTED: Mapping[str, Any] = {
    "$dynamicAnchor": None,
    "$dynamicRef": None,
    "$recursiveAnchor": False,
    "$recursiveRef": None,
    "contains": None,
    "dependencies": {},
    "dependentRequired": {},
    "dependentSchemas": {},
    "else": True,
    "if": None,
    "maxContains": None,
    "minContains": 0,
    "not": False,
    "propertyNames": True,
    "then": True,
    "unevaluatedItems": True,
    "unevaluatedProperties": True,
    "uniqueItems": False,
    "nullable": False,  # OpenAPI 3.0's
    "x-guidance": None,
}
_WHY = {
    "nullable": 'it is OpenAPI\'s; write "type": [..., "null"]',
    "x-guidance": "structured_outputs.whitespace_pattern and disable_any_whitespace say how white space is written",
}
_MOST_COMPARED, _LONGEST_KEYWORD = 64, 32  # names that are compared with keywords, which takes long; characters
_LONGEST_POINTER = 256  # characters, in an error
_KNOWN = (*SUPPORTED, *ANNOTATIONS, *UNSUPPORTED)


@dataclass
class _Counts:
    properties: int = 0
    enum_values: int = 0
    unknown: int = 0


def usable_schema(name: str, schema: Any, *, closed: bool = False) -> Any:
    """The schema without what allows everything. name: the field it was sent in, for errors. closed: objects that list
    properties have no others unless they say so. Raises InvalidRequest with the field and the pointer to its part."""
    try:
        size = len(json.dumps(schema, ensure_ascii=False).encode())
    except (UnicodeEncodeError, RecursionError) as error:
        raise InvalidRequest(
            name, "a schema", f"it must be JSON of valid Unicode, not nested deeply: {error}"
        ) from error
    if size > MAX_TEXT_BYTES:
        raise InvalidRequest(name, f"a schema of {size} bytes", f"at most {MAX_TEXT_BYTES} are allowed")
    return _Walk(name, closed).schema(schema, "", 0)


class _Walk:
    def __init__(self, name: str, closed: bool) -> None:
        self._name, self._closed = name, closed
        self._counts = _Counts()

    def _refuse(self, pointer: str, value: Any, allowed: str) -> InvalidRequest:
        return InvalidRequest(at(self._name, pointer), value, allowed)

    def schema(self, schema: Any, pointer: str, depth: int) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise self._refuse(pointer, schema, "a schema is an object, true or false")
        if depth > MAX_DEPTH:
            raise self._refuse(pointer, "a schema", f"at most {MAX_DEPTH} schemas may lie within each other")
        result: dict[str, Any] = {}
        for keyword, value in schema.items():
            part = f"{pointer}/{escaped(keyword)}"
            if self._is_kept(keyword, value, part):
                result[keyword] = self._keyword(keyword, value, part, depth)
        _check_additional_items(
            result, lambda value, allowed: self._refuse(f"{pointer}/additionalItems", value, allowed)
        )
        result = with_own_formats(result)
        lists = "properties" in result or "patternProperties" in result
        if self._closed and lists and "additionalProperties" not in result:
            result["additionalProperties"] = False
        self._check_names(result, pointer)
        return result

    def _check_names(self, schema: Mapping[str, Any], pointer: str) -> None:
        """A grammar counts names that it does not list each time they are written, and a reader of JSON once."""
        least, most = schema.get("minProperties", 0), len(set(schema.get("required", ()))) + 1
        free = schema.get("additionalProperties", True) is not False or "patternProperties" in schema
        if free and least > most:
            allowed = f"it must be at most {most}: of the names that are not listed two may be the same"
            raise self._refuse(f"{pointer}/minProperties", least, allowed)

    def _is_kept(self, keyword: str, value: Any, pointer: str) -> bool:
        if keyword in UNSUPPORTED:
            neutral = UNSUPPORTED[keyword]
            if neutral is not None and value == neutral and type(value) is type(neutral):
                return False
            allowed = _WHY.get(keyword, "this keyword is not supported: a grammar cannot enforce it")
            raise self._refuse(pointer, value, allowed)
        if keyword not in _KNOWN and len(keyword) <= _LONGEST_KEYWORD and self._counts.unknown < _MOST_COMPARED:
            self._counts.unknown += 1
            close = difflib.get_close_matches(keyword, _KNOWN, n=1, cutoff=0.85)
            if close:
                raise self._refuse(pointer, value, f"JSON Schema has no such keyword; did you mean {close[0]}?")
        return True

    def _keyword(self, keyword: str, value: Any, pointer: str, depth: int) -> Any:
        if keyword in _IN_OBJECT:
            return self._named(keyword, value, pointer, depth)
        if keyword in _IN_LIST or (keyword == "items" and isinstance(value, list)):
            if not isinstance(value, list):
                raise self._refuse(pointer, value, "it must be a list of schemas")
            return [self.schema(each, f"{pointer}/{i}", depth + 1) for i, each in enumerate(value)]
        if keyword in _ONE:
            return self.schema(value, pointer, depth + 1)
        return self._value(keyword, value, pointer)

    def _named(self, keyword: str, value: Any, pointer: str, depth: int) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self._refuse(pointer, value, "it must be an object of schemas")
        if keyword in ("properties", "patternProperties"):
            self._counts.properties += len(value)
            if self._counts.properties > MAX_PROPERTIES:
                allowed = f"at most {MAX_PROPERTIES} are allowed in a schema"
                raise self._refuse(pointer, f"the {self._counts.properties}th property", allowed)
        names = {name: name for name in value}
        if keyword == "patternProperties":
            names = {name: self._pattern(name, f"{pointer}/{escaped(name)}") for name in value}
            if len(set(names.values())) < len(names):
                raise self._refuse(pointer, list(value), "two of its names are spellings of one expression")
        return {names[name]: self.schema(each, f"{pointer}/{escaped(name)}", depth + 1) for name, each in value.items()}

    def _value(self, keyword: str, value: Any, pointer: str) -> Any:
        if keyword == "enum":
            if not isinstance(value, list) or not value:
                raise self._refuse(pointer, value, "it must be a list of at least one value")
            self._counts.enum_values += len(value)
            if self._counts.enum_values > MAX_ENUM_VALUES:
                allowed = f"at most {MAX_ENUM_VALUES} are allowed in a schema"
                raise self._refuse(pointer, f"the {self._counts.enum_values}th value", allowed)
        elif keyword == "pattern":
            return self._pattern(value, pointer)
        elif keyword in _COUNTS:
            whole = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
            if not whole or not 0 <= value <= MAX_COUNT:
                raise self._refuse(pointer, value, f"it must be a whole number from 0 to {MAX_COUNT}")
            return int(value)
        elif keyword == "required":
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise self._refuse(pointer, value, "it must be a list of strings")
        elif keyword == "$ref" and not (isinstance(value, str) and value.startswith("#")):
            raise self._refuse(pointer, value, 'it must point into this schema, as in "#/$defs/name"')
        return value

    def _pattern(self, pattern: Any, pointer: str) -> str:
        if not isinstance(pattern, str):
            raise self._refuse(pointer, pattern, "it must be a regular expression, as a string")
        if len(pattern) > MAX_PATTERN:
            raise self._refuse(pointer, f"{len(pattern)} characters", f"at most {MAX_PATTERN} are allowed")
        return as_rust(pattern)


def _check_additional_items(schema: Mapping[str, Any], refuse: Callable[[Any, str], InvalidRequest]) -> None:
    """llguidance lets it say nothing of an item that a list inside of allOf or the like speaks of."""
    if isinstance(schema.get("items"), list) and "additionalItems" in schema:
        beside = next((name for name in ("allOf", "anyOf", "oneOf") if name in schema), None)
        if beside is not None:
            allowed = f"it is not supported beside {beside}: write prefixItems and items, as of draft 2020-12"
            raise refuse(schema["additionalItems"], allowed)


def at(name: str, pointer: str) -> str:
    """The name of a part of the schema that the field `name` has. Of a long pointer only the end is told."""
    if len(pointer) > _LONGEST_POINTER:
        pointer = "..." + pointer[-_LONGEST_POINTER:]
    return f"{name}#{pointer}" if pointer else name


def escaped(key: str) -> str:
    """A key as a JSON pointer (RFC 6901) has it."""
    return key.replace("~", "~0").replace("/", "~1")


def parts(schema: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:
    """(pointer, schema) of a usable schema and of all within it, inner ones first."""
    if not isinstance(schema, Mapping):
        return
    for keyword, value in schema.items():
        part = f"{pointer}/{escaped(keyword)}"
        if keyword in _IN_OBJECT:
            for name, each in value.items():
                yield from parts(each, f"{part}/{escaped(name)}")
        elif keyword in _IN_LIST or (keyword == "items" and isinstance(value, list)):
            for i, each in enumerate(value):
                yield from parts(each, f"{part}/{i}")
        elif keyword in _ONE:
            yield from parts(value, part)
    yield pointer, schema


def alone(part: Any, root: Any) -> Any:
    """A part as a schema of its own, with the definitions that it may refer to."""
    shared = {key: root[key] for key in ("$schema", "$defs", "definitions") if key in root}
    return {**shared, **part} if isinstance(part, Mapping) and isinstance(root, Mapping) else part
