"""A body without the names that its type does not know, each of which is reported (see ignored.py)."""

from __future__ import annotations

from typing import Any

import msgspec

from serving.http import ignored
from serving.http.struct_types import fields_of, members_of

_Type = msgspec.inspect.Type


def known_fields_only(value: Any, kind: type[msgspec.Struct]) -> Any:
    """`value`, decoded JSON, as far as `kind` knows its names. null says nothing under any name, and is not reported.
    What is of any type, such as messages and tools, stays as it is: whoever reads it reports."""
    return _struct("", value, kind)


def _struct(path: str, value: Any, kind: type[msgspec.Struct]) -> Any:
    if not isinstance(value, dict):
        return value
    fields = fields_of(kind)
    known: dict[str, Any] = {}
    for name, each in value.items():
        at = f"{path}.{name}" if path else name
        if name in fields:
            known[name] = _value(at, each, fields[name])
        elif each is not None:
            ignored.unknown(at, each, tuple(fields))
    return known


def _value(path: str, value: Any, types: tuple[_Type, ...]) -> Any:
    """types: those of a union."""
    for each in types:
        if isinstance(value, dict) and isinstance(each, msgspec.inspect.StructType):
            return _struct(path, value, each.cls)
        if isinstance(value, list) and isinstance(each, msgspec.inspect.ListType) and _has_struct(each.item_type):
            members = members_of(each.item_type)
            return [_value(f"{path}[{i}]", item, members) for i, item in enumerate(value)]
    return value


def _has_struct(kind: _Type) -> bool:
    """A list of numbers can be long, and is not looked into."""
    return any(
        isinstance(each, msgspec.inspect.StructType)
        or (isinstance(each, msgspec.inspect.ListType) and _has_struct(each.item_type))
        for each in members_of(kind)
    )
