"""Integers that a client wrote as 16.0 or 1e2, as JavaScript's and spreadsheets' encoders do. 16.5 stays what it is."""

from __future__ import annotations

from typing import Any

import msgspec

from serving.http.struct_types import fields_of, members_of

_Type = msgspec.inspect.Type


def with_whole_numbers(value: Any, kind: type[msgspec.Struct]) -> Any:
    """`value` (decoded JSON) with an int in place of each float without a fraction where `kind` has integers alone.
    What is of any type, such as messages and tools, stays as it is."""
    return _struct(value, kind)


def _struct(value: Any, kind: type[msgspec.Struct]) -> Any:
    if not isinstance(value, dict):
        return value
    fields = fields_of(kind)
    return {name: _value(each, fields[name]) if name in fields else each for name, each in value.items()}


def _value(value: Any, types: tuple[_Type, ...]) -> Any:
    """types: those of a union."""
    if isinstance(value, float):
        return int(value) if _takes_ints_alone(types) and value.is_integer() else value
    for each in types:
        if isinstance(value, list) and isinstance(each, msgspec.inspect.ListType):
            return _list(value, members_of(each.item_type))
        if isinstance(value, dict) and isinstance(each, msgspec.inspect.StructType):
            return _struct(value, each.cls)
    return value


def _list(values: list[Any], types: tuple[_Type, ...]) -> list[Any]:
    """A prompt can be millions of numbers: they are looked at in one go."""
    kinds = set(map(type, values))
    if list in kinds or dict in kinds:
        return [_value(item, types) for item in values]
    if float not in kinds or not _takes_ints_alone(types):
        return values
    return [int(item) if type(item) is float and item.is_integer() else item for item in values]


def _takes_ints_alone(types: tuple[_Type, ...]) -> bool:
    """Of all kinds of numbers."""
    takes_float = any(isinstance(each, msgspec.inspect.FloatType | msgspec.inspect.AnyType) for each in types)
    return not takes_float and any(isinstance(each, msgspec.inspect.IntType) for each in types)
