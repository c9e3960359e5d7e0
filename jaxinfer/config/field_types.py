"""Checks that a configuration's fields hold what their annotations say, so that whatever reads them can rely on it."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jaxinfer.config.errors import is_int, require

_WORDS: Mapping[Any, str] = types.MappingProxyType(
    {int: "an integer", float: "a finite number", bool: "True or False", str: "a string", type(None): "None"}
)


def check_field_types(config: object) -> None:
    """Raises ConfigError, naming field, value and what is allowed, where a dataclass's field holds something else.

    An integer may stand for a float, as JSON writes it; a bool is no number, and floats are finite.
    """
    cls: Any = type(config)
    for name, kind in _annotations(cls).items():
        value = getattr(config, name)
        if not _holds(value, kind):
            require(False, f"{name} is {value!r:.200}; it must be {_words(kind)}")


@cache
def _annotations(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _holds(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_holds(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:  # of any length: tuple[element, ...]
        return isinstance(value, tuple) and all(_holds(element, parts[0]) for element in value)
    if kind is int:
        return is_int(value)
    if kind is float:
        return is_int(value) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, origin or kind)


def _words(kind: Any) -> str:
    *most, last = _alternatives(kind)
    return f"{', '.join(most)} or {last}" if most else last


def _alternatives(kind: Any) -> list[str]:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return [words for part in parts for words in _alternatives(part)]
    if origin is Literal:
        return [str(part) for part in parts]
    if origin is tuple:
        return [f"a tuple of which each element is {_words(parts[0])}"]
    return [_WORDS.get(kind, f"of type {getattr(kind, '__name__', kind)}")]
