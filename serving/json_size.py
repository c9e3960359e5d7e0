"""How large a value is that a client gave as JSON: in characters and levels, without encoding it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxinfer.errors import InvalidRequest

MAX_NESTING = 32  # objects and lists within each other, in a schema or a variable


def check_size(name: str, value: Any, limit: int) -> None:
    """Raises InvalidRequest where it has more than `limit` characters, or too many levels."""
    length, level = 0, [value]
    for _ in range(MAX_NESTING):
        below: list[Any] = []
        for found in level:
            length += len(found) + 2 if isinstance(found, str) else 2
            if isinstance(found, Mapping):
                below += [*found, *found.values()]
            elif isinstance(found, list | tuple):
                below += found
            if length > limit:
                raise InvalidRequest(name, "a value of that size", f"at most {limit} characters of JSON are allowed")
        if not below:
            return
        level = below
    raise InvalidRequest(name, "a value of that depth", f"at most {MAX_NESTING} levels are allowed")
