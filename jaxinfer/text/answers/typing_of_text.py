"""The types that a tool's JSON schema gives to arguments of which a model has written the text alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jaxinfer.text.answers.scanning import SPACE, is_json

_TEXT = frozenset({"string"})
_MAX_DEPTH = 16  # of references and alternatives within each other
_WORDS = {"true": "true", "false": "false", "null": "null", "none": "null"}
_KINDS = {
    str: _TEXT,
    bool: frozenset({"boolean"}),
    type(None): frozenset({"null"}),
    list: frozenset({"array"}),
    dict: frozenset({"object"}),
}


class ValueSchema:
    """What is known of one value: a part of a tool's parameters' schema. References into the same schema are followed.

    root: the whole schema; node: the part, None where nothing is said.
    """

    def __init__(self, root: object, node: object) -> None:
        self._root = root
        self._node = node

    @classmethod
    def of_parameters(cls, schema: object) -> ValueSchema:
        return cls(schema, schema)

    def types(self) -> frozenset[str] | None:
        """JSON Schema's names of the types that the value may have; None where the schema names none."""
        return frozenset(_types(self._root, self._node, 0)) or None

    def member(self, key: str) -> ValueSchema:
        """Of an object's member."""
        return ValueSchema(self._root, _below(self._root, self._node, "properties", key, 0))

    def item(self) -> ValueSchema:
        """Of a list's items."""
        return ValueSchema(self._root, _below(self._root, self._node, "items", None, 0))


def typed(text: str, types: frozenset[str] | None) -> str:
    """The JSON of a value written as `text`. types: what the value may be; None: whatever the text is in JSON.

    A text is what it looks like in JSON, or in Python (True, None), where the types allow it or allow no string;
    everything else is a string, and where only a string is allowed so is 5.
    """
    if types == _TEXT:
        return json.dumps(text, ensure_ascii=False)
    value = text.strip(SPACE)
    value = _WORDS.get(value.lower(), value)
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


def _types(root: object, node: object, depth: int) -> set[str]:
    if not isinstance(node, Mapping) or depth > _MAX_DEPTH:
        return set()
    found: set[str] = set()
    named = node.get("type")
    found.update(name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str))
    values = node["enum"] if isinstance(node.get("enum"), list) else [node["const"]] if "const" in node else []
    if not found:
        found.update(*(_kinds(json.dumps(value)) for value in values))
    for inner in _alternatives(root, node):
        found |= _types(root, inner, depth + 1)
    return found


def _below(root: object, node: object, keyword: str, key: str | None, depth: int) -> object:
    """The schema under node[keyword], and there under `key` unless that is None; None where there is none."""
    if not isinstance(node, Mapping) or depth > _MAX_DEPTH:
        return None
    inner = node.get(keyword)
    if key is not None:
        inner = inner.get(key) if isinstance(inner, Mapping) else None
    if inner is not None:
        return inner
    found = (_below(root, other, keyword, key, depth + 1) for other in _alternatives(root, node))
    return next((each for each in found if each is not None), None)


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
