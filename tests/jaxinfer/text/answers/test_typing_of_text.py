"""Which types a tool's schema gives to what a model has written as text."""

from __future__ import annotations

from typing import Any

import pytest

from jaxinfer.text.answers.typing_of_text import ValueSchema, typed

SCHEMA: dict[str, Any] = {
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "either": {"type": ["string", "null"]},
        "any_of": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/Colour"}]},
        "named": {"$ref": "#/$defs/Place"},
        "const": {"const": 5},
        "nothing": {},
        "always": True,
        "escaped": {"$ref": "#/$defs/a~1b"},
        "elsewhere": {"$ref": "https://example.org/schema"},
        "loop": {"$ref": "#/$defs/Loop"},
    },
    "$defs": {
        "Colour": {"enum": ["red", "blue", None]},
        "Place": {"type": "object", "properties": {"at": {"type": "array", "items": {"type": "number"}}}},
        "a/b": {"type": "boolean"},
        "Loop": {"anyOf": [{"$ref": "#/$defs/Loop"}, {"$ref": "#/$defs/Twice"}] * 30},
        "Twice": {"allOf": [{"$ref": "#/$defs/Loop"}, {"type": "object"}]},
    },
}


@pytest.mark.parametrize(
    ("key", "types"),
    [
        *(("text", {"string"}), ("count", {"integer"}), ("either", {"string", "null"}), ("named", {"object"})),
        *(("any_of", {"integer", "string", "null"}), ("const", {"integer", "number"}), ("escaped", {"boolean"})),
        *(("nothing", None), ("always", None), ("elsewhere", None), ("unknown", None), ("loop", {"object"})),
    ],
)
def test_types_of_members(key: str, types: set[str] | None) -> None:
    assert ValueSchema.of_parameters(SCHEMA).member(key).types() == types


def test_members_and_items_of_references() -> None:
    at = ValueSchema.of_parameters(SCHEMA).member("named").member("at")
    assert at.types() == {"array"}
    assert at.item().types() == {"number"}
    assert at.item().member("x").types() is None
    assert ValueSchema.of_parameters(None).member("x").types() is None


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("5", "string", '"5"'),
        ("null", "string", '"null"'),
        ('say "a"\n', "string", r'"say \"a\"\n"'),
        (" 5 ", "integer", "5"),
        ("5.0", "integer", "5.0"),
        ("five", "integer", '"five"'),
        ("True", "boolean", "true"),
        ("None", "string null", "null"),
        ("none", "string null", '"none"'),
        ("NULL", "string null", "null"),
        ("none of it", "string null", '"none of it"'),
        ("5", "string integer", "5"),
        ("5.5", "string integer", '"5.5"'),
        ("5", "string null", '"5"'),
        ('{"a": 1}', "string null", r'"{\"a\": 1}"'),
        ('{"a": 1}', "object", '{"a": 1}'),
        ('["a\nb"]', "array", r'["a\nb"]'),
        ("[1,]", "array", '"[1,]"'),
        ("NaN", "number", '"NaN"'),
        ("12345678901234567890123", "integer", "12345678901234567890123"),
        ('"quoted"', "integer", '"quoted"'),
    ],
)
def test_values(text: str, types: str, value: str) -> None:
    assert typed(text, frozenset(types.split())) == value


def test_without_types_a_value_is_what_it_is_in_json() -> None:
    assert [typed(text, None) for text in ("5", "true", "Bern", '["a"]')] == ["5", "true", '"Bern"', '["a"]']
