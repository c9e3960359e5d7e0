"""Which schemas are refused, by the name of the part that is at fault."""

from __future__ import annotations

from typing import Any

import pytest

from jaxinfer.constraints.checking import fault_of
from jaxinfer.constraints.constraint import AnswerShape, constraint_of
from jaxinfer.constraints.ecma import as_rust
from jaxinfer.constraints.params import MAX_TEXT_BYTES, StructuredOutputsParams
from jaxinfer.constraints.schema import (
    ANNOTATIONS,
    FORMATS,
    MAX_COUNT,
    MAX_DEPTH,
    MAX_ENUM_VALUES,
    MAX_PROPERTIES,
    SUPPORTED,
    UNSUPPORTED,
    usable_schema,
)
from jaxinfer.errors import InvalidRequest
from tests.jaxinfer.constraints.walks import accepts, compact


def made(schema: Any, **options: Any) -> str:
    return constraint_of(StructuredOutputsParams(json=schema, **options), None, AnswerShape())


def deep(levels: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def refusal(schema: Any) -> tuple[str, str]:
    """(field, what is allowed)"""
    with pytest.raises(InvalidRequest) as caught:
        made(schema)
    return caught.value.field.removeprefix("structured_outputs.json"), caught.value.allowed


@pytest.mark.parametrize("keyword", UNSUPPORTED)
def test_a_keyword_without_support_is_refused_where_it_stands(keyword: str) -> None:
    value = {"dependentRequired": {"a": ["b"]}, "uniqueItems": True, "nullable": True}.get(keyword, {"type": "string"})
    where, _ = refusal({"properties": {"a/b": {"anyOf": [{"type": "null"}, {keyword: value}]}}})
    assert where == f"#/properties/a~1b/anyOf/1/{keyword}"


# Keyword -> a value that means something.
VALUES: dict[str, Any] = {
    "anyOf": [{}], "oneOf": [{}], "allOf": [{}], "prefixItems": [{}], "$ref": "#/$defs/x", "const": 1, "enum": [1],
    "type": "string", "items": {}, "additionalItems": {}, "additionalProperties": {}, "properties": {}, "required": [],
    "patternProperties": {}, "pattern": "a", "format": "date", "multipleOf": 2, "minProperties": 0,
}  # fmt: skip


@pytest.mark.parametrize("keyword", [*SUPPORTED, *UNSUPPORTED])
def test_the_library_knows_the_keywords_that_are_supported_and_no_other(keyword: str) -> None:
    """It passes over annotations and refuses what it does not implement: no keyword is ignored here."""
    schema = compact({"$defs": {"x": {}}, keyword: VALUES.get(keyword, 3)})
    fault = fault_of(f'{{"grammars": [{{"json_schema": {schema}}}]}}')
    if keyword in SUPPORTED:
        assert fault is None
    elif keyword not in ("nullable", "x-guidance", "$recursiveAnchor", "$recursiveRef", "dependencies"):
        assert fault is not None
        assert keyword in fault


def test_annotations_say_nothing() -> None:
    schema = {"type": "integer", **{name: f"#{name}" for name in ANNOTATIONS if "$" not in name}, "x-order": 1}
    schema.update({"$comment": "c", "$defs": {}, "definitions": {}, "markdownDescription": "*b*"})
    assert accepts(made(schema), "12")


# By the JSON Schema Test Suite, which scripts/bench/schema_suite.py reads whole, and by calendars.
TEXTS_OF: list[tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = [
    ({"format": "date"}, ("2020-02-29", "2000-02-29", "2021-12-31", "0001-01-01", "0004-02-29"),
     ("2021-02-29", "1900-02-29", "2020-02-30", "2021-04-31", "0000-01-01", "2021-13-01", "0000-02-29")),
    ({"format": "time"}, ("23:59:59Z", "08:30:06.283185z", "00:00:00-23:59"),
     ("22:59:60Z", "23:59:60Z", "23:59:60+01:00", "24:00:00Z", "12:00:00", "12:00:00+24:00")),
    ({"format": "date-time"}, ("1963-06-19T08:30:06.283185Z", "2020-02-29t00:00:00+05:30"),
     ("1998-12-31T23:58:60Z", "2021-02-29T00:00:00Z", "2020-01-01 00:00:00Z")),
    ({"format": "date", "pattern": "^2020", "allOf": [{"pattern": "1$"}]}, ("2020-01-01",), ("2020-01-02", "1")),
    ({"pattern": r"^\S$"}, ("a", "\x85"), ("\ufeff", " ", "\u2028")),
    ({"pattern": r"^[a\s]$"}, ("a", "\ufeff", "\u3000"), ("b", "\x85")),
    ({"pattern": r"^[^a\S]$"}, (" ",), ("b", "a")),
    ({"pattern": "^.$"}, ("a", "\x85"), ("\n", "\r", "\u2029")),
    ({"pattern": r"^[.]\.$"}, ("..",), ("a.", ".a")),
    ({"pattern": "^(?s:.)$"}, ("a", "\n"), ("",)),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "valid", "invalid"), TEXTS_OF)
def test_texts_of_formats_and_expressions(
    schema: dict[str, Any], valid: tuple[str, ...], invalid: tuple[str, ...]
) -> None:
    constraint = made({"type": "string", **schema})
    assert [text for text in valid if not accepts(constraint, compact(text))] == []
    assert [text for text in invalid if accepts(constraint, compact(text))] == []


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str) -> None:
    assert made({"type": "string", "format": name})


@pytest.mark.parametrize(
    ("schema", "where", "said"),
    [
        ({"properties": {"a": {"minlength": 3}}}, "#/properties/a/minlength", "did you mean minLength"),
        ({"items": {"type": "string", "format": "color"}}, "#/items", "Unknown format: color"),
        ({"$defs": {"x": {"oneOf": [{"type": "string"}, {"minLength": 2}]}}}, "", "never"),
        ({"properties": {"q": {"oneOf": [{"type": "string"}, {"minLength": 2}]}}}, "#/properties/q", "anyOf always is"),
        ({"$ref": "http://example.org/x"}, "#/$ref", "it must point into this schema"),
        ({"$ref": "#/$defs/none"}, "", "does not exist"),
        ({"items": {"type": "strin"}}, "#/items", "Invalid type"),
        ({"items": 5}, "#/items", "an object, true or false"),
        ({"anyOf": {}}, "#/anyOf", "a list of schemas"),
        ({"properties": []}, "#/properties", "an object of schemas"),
        ({"enum": []}, "#/enum", "at least one value"),
        ({"required": [1]}, "#/required", "a list of strings"),
        ({"type": "string", "pattern": "("}, "", "unclosed group"),
        ({"type": "string", "pattern": "(?=a)b"}, "", "look-around"),
        ({"type": "string", "pattern": "a" * 9000}, "#/pattern", "at most 8192"),
        ({"type": "string", "maxLength": MAX_COUNT + 1}, "#/maxLength", str(MAX_COUNT)),
        ({"minItems": -1}, "#/minItems", "a whole number"),
        ({"minItems": 1.5}, "#/minItems", "a whole number"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "", "greater than maximum"),
        ({"enum": list(range(MAX_ENUM_VALUES + 1))}, "#/enum", f"at most {MAX_ENUM_VALUES}"),
        (
            {"properties": {f"p{i}": True for i in range(MAX_PROPERTIES + 1)}},
            "#/properties",
            f"at most {MAX_PROPERTIES}",
        ),
        ({"description": "x" * MAX_TEXT_BYTES}, "", f"at most {MAX_TEXT_BYTES}"),
        ({"properties": {"a": {}, "b": {}}, "minProperties": 1}, "", "all of properties are required"),
        ({"minProperties": 2}, "#/minProperties", "at most 1: of the names that are not listed two may be the same"),
        ({"required": ["a"], "minProperties": 3}, "#/minProperties", "at most 2"),
        (deep(MAX_DEPTH + 1), "#" + "/items" * (MAX_DEPTH + 1), f"at most {MAX_DEPTH} schemas"),
        ("{", "", "it must be JSON"),
        (False, "", "Unsatisfiable"),
        (
            {"allOf": [{"items": [{}]}], "items": [{}], "additionalItems": False},
            "#/additionalItems",
            "write prefixItems",
        ),
        ({"patternProperties": {r"^\s$": True, f"^{as_rust(chr(92) + 's')}$": {}}}, "#/patternProperties", "spellings"),
    ],
)
def test_what_is_refused(schema: Any, where: str, said: str) -> None:
    if said == "never":  # what nothing refers to is not used
        assert made(schema)
        return
    found, allowed = refusal(schema)
    assert (found, said in allowed) == (where, True), (found, allowed)


def test_limits_are_taken_themselves() -> None:
    assert made(deep(MAX_DEPTH))
    assert made({"type": "string", "maxLength": MAX_COUNT})
    assert made({"enum": list(range(MAX_ENUM_VALUES))})


def test_what_allows_everything_is_left_out() -> None:
    neutral = {name: value for name, value in UNSUPPORTED.items() if value is not None}
    assert usable_schema("s", {"type": "array", **neutral, "minItems": 2.0}) == {"type": "array", "minItems": 2}


def test_closed_objects() -> None:
    schema = {"properties": {"a": {"properties": {"b": {}}}, "c": {"properties": {}, "additionalProperties": True}}}
    closed = usable_schema("s", schema, closed=True)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["additionalProperties"] is False
    assert closed["properties"]["c"]["additionalProperties"] is True
    assert usable_schema("s", {"items": {"type": "object"}}, closed=True) == {"items": {"type": "object"}}


def test_white_space_is_bounded() -> None:
    constraint = made({"type": "array", "items": {"type": "integer"}})
    for text in ("[1,2]", "[1, 2]", "[\n  1,\n  2\n]", "[\r\n\t1]", "[" + "\n" + " " * 80 + "1]"):
        assert accepts(constraint, text), text
    for text in ("[\n\n1]", "[" + " " * 5 + "1]", " [1]", "[1] "):
        assert not accepts(constraint, text), text
    own = made({"type": "array", "items": {"type": "integer"}}, whitespace_pattern="-+")
    assert accepts(own, "[--1]")
    assert not accepts(own, "[ 1]")
    with pytest.raises(InvalidRequest, match=r"^structured_outputs\.whitespace_pattern is "):
        made({}, whitespace_pattern="(")
