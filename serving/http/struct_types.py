"""The types of a request's fields, as msgspec knows them."""

from __future__ import annotations

from functools import cache

import msgspec


@cache
def fields_of(kind: type[msgspec.Struct]) -> dict[str, tuple[msgspec.inspect.Type, ...]]:
    """Each field's name in JSON -> the types of which its value may be."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return {field.encode_name: members_of(field.type) for field in info.fields}


def members_of(kind: msgspec.inspect.Type) -> tuple[msgspec.inspect.Type, ...]:
    """Those of a union; of any other type that type alone."""
    if isinstance(kind, msgspec.inspect.Metadata):
        return members_of(kind.type)
    return tuple(kind.types) if isinstance(kind, msgspec.inspect.UnionType) else (kind,)
