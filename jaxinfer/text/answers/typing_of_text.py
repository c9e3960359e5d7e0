"""The types that a tool's JSON schema gives to arguments of which a model has written the text alone."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from jaxinfer.text.answers.scanning import SPACE, is_json

_TEXT = frozenset({"string"})
_WORDS = {"True": "true", "False": "false", "None": "null"}
_KINDS = {
    str: _TEXT,
    bool: frozenset({"boolean"}),
    type(None): frozenset({"null"}),
    list: frozenset({"array"}),
    dict: frozenset({"object"}),
}


class ValueSchema:
    """What is known of one value: a part of a tool's parameters' schema. References into the same schema are followed.
    What was found stays, for lists of many alike.

    root: the whole schema; node: the part, None where nothing is said.
    """

    def __init__(self, root: object, node: object) -> None:
        self._root = root
        self._node = node
        self._inner: dict[str | None, ValueSchema] = {}  # None: of items

    @classmethod
    def of_parameters(cls, schema: object) -> ValueSchema:
        return cls(schema, schema)

    def types(self) -> frozenset[str] | None:
        """JSON Schema's names of the types that the value may have; None where the schema names none."""
        return self._types

    @cached_property
    def _types(self) -> frozenset[str] | None:
        return frozenset(_types(self._root, self._node)) or None

    def member(self, key: str) -> ValueSchema:
        """Of an object's member."""
        return self._find("properties", key)

    def item(self) -> ValueSchema:
        """Of a list's items."""
        return self._find("items", None)

    def _find(self, keyword: str, key: str | None) -> ValueSchema:
        if key not in self._inner:
            self._inner[key] = ValueSchema(self._root, _below(self._root, self._node, keyword, key))
        return self._inner[key]


def typed(text: str, types: frozenset[str] | None) -> str:
    """The JSON of a value written as `text`. types: what the value may be; None: whatever the text is in JSON.

    A text is what it looks like in JSON, or in Python (True, None), where the types allow it or allow no string;
    everything else is a string, and where only a string is allowed so is 5.
    """
    if types == _TEXT:
        return json.dumps(text, ensure_ascii=False)
    value = text.strip(SPACE)
    value = value.lower() if value.lower() in _WORDS.values() else _WORDS.get(value, value)
    found = value if is_json(value) else _mended(value)
    if found is not None and (types is None or "string" not in types or _kinds(found) & (types - _TEXT)):
        return found
    return json.dumps(text, ensure_ascii=False)


def _mended(text: str) -> str | None:
    """An object or list whose strings have raw line breaks, as models write them."""
    if not text.startswith(("{", "[")):
        return None
    try:
        mended = json.dumps(json.loads(text, strict=False), ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
    return mended.encode("utf-8", "replace").decode("utf-8") if is_json(mended) else None


def _kinds(text: str) -> frozenset[str]:
    value = json.loads(text)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return frozenset({"integer", "number"}) if value == value // 1 else frozenset({"number"})
    return _KINDS[type(value)]


def _reached(root: object, node: object) -> Iterator[Mapping[str, Any]]:
    """The node, and every part of the schema that it refers to or is made of, each once."""
    waiting, seen = deque([node]), set[int]()
    while waiting:
        part = waiting.popleft()
        if isinstance(part, Mapping) and id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting.extend(_alternatives(root, part))


def _types(root: object, node: object) -> set[str]:
    found: set[str] = set()
    for part in _reached(root, node):
        named = part.get("type")
        own = {name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str)}
        if not own:
            values = part["enum"] if isinstance(part.get("enum"), list) else [part["const"]] if "const" in part else []
            own.update(*(_kinds(json.dumps(value)) for value in values))
        found |= own
    return found


def _below(root: object, node: object, keyword: str, key: str | None) -> object:
    """The schema under node[keyword], and there under `key` unless that is None; None where there is none."""
    for part in _reached(root, node):
        inner = part.get(keyword)
        if key is not None:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if inner is not None:
            return inner
    return None


def _alternatives(root: object, node: Mapping[str, Any]) -> list[object]:
    """What the node refers to or is made of."""
    found: list[object] = []
    for keyword in ("anyOf", "oneOf", "allOf"):
        if isinstance(node.get(keyword), list):
            found += node[keyword]
    reference = node.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target = root
        for step in reference[2:].split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            target = target.get(name) if isinstance(target, Mapping) else None
        found.append(target)
    return found
