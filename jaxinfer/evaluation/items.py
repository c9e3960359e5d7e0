"""Items of one's own from a JSON Lines file, so that a model can be judged on any questions with known answers.

Each line is an object:

    {"prompt": "What is 2 + 2?", "answer": "4", "match": "number"}
    {"kind": "capitals", "messages": [{"role": "user", "content": "Capital of France?"}], "answer": "Paris"}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxinfer.evaluation.extract import canonical_json, first_json, last_line, last_line_words, last_number
from jaxinfer.evaluation.item import Item, Kind, Split

DEFAULT_KIND = "items"
DEFAULT_MATCH = "text"
DEFAULT_MAX_TOKENS = 96
_FIELDS = ("kind", "prompt", "messages", "answer", "match", "max_tokens", "depth")
_ROLES = ("system", "user", "assistant")


class ItemsError(ValueError):
    """An item file that cannot be used. The message names the file, the line, the field and what is allowed."""


def whole_text(text: str) -> str | None:
    """The response without the blanks around it."""
    return text.strip() or None


MATCHES: Mapping[str, tuple[Callable[[str], str | None], str]] = {
    "text": (last_line, "the last line, after its last colon, is the answer"),
    "number": (last_number, "the last number is the answer"),
    "words": (last_line_words, "the words of the last line are the answer"),
    "json": (first_json, "the first JSON object is the answer, in any order of keys"),
    "exact": (whole_text, "the whole response is the answer"),
}
"""What `match` may say: how the answer is found in a response, and what that means."""


@dataclass
class Task:
    """The items of one kind that are to be answered."""

    kind: Kind
    items: list[Item] = field(default_factory=list)


def read_items(path: Path) -> dict[str, Task]:
    """The tasks of a file, by kind in order of appearance. Empty lines are skipped.

    Raises:
        ItemsError: the file cannot be read, is empty, or a line is bad; the first problem is named.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ItemsError(f"item file {path} cannot be read: {error}") from error
    tasks: dict[str, Task] = {}
    matches: dict[str, str] = {}
    # Not splitlines: JSON may hold U+2028 and its kin inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            _add(tasks, matches, line, f"item file {path}, line {number}")
    if not tasks:
        raise ItemsError(f"item file {path} holds no items; each line must be a JSON object with prompt and answer")
    return tasks


def _add(tasks: dict[str, Task], matches: dict[str, str], line: str, where: str) -> None:
    entry = _object(line, where)
    kind = _text(entry.get("kind", DEFAULT_KIND), "kind", where)
    match = entry.get("match", DEFAULT_MATCH)
    if match not in MATCHES:
        raise _bad(where, "match", match, f"it must be one of {', '.join(MATCHES)}")
    if matches.setdefault(kind, match) != match:
        raise _bad(where, "match", match, f"earlier lines of kind {kind!r} have {matches[kind]!r}; a kind has one")
    task = tasks.setdefault(kind, Task(_kind(kind, match)))
    messages = _messages(entry, where)
    answer = _answer(entry, match, where)
    max_tokens = _count(entry.get("max_tokens", DEFAULT_MAX_TOKENS), "max_tokens", 1, where)
    depth = _count(entry.get("depth", 0), "depth", 0, where)
    task.items.append(Item(kind, canonical_json(list(messages)), messages, answer, answer, max_tokens, depth))


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ItemsError(f"{where}: not JSON ({error})") from error
    if not isinstance(entry, dict):
        raise ItemsError(f"{where}: {type(entry).__name__} instead of a JSON object")
    unknown = [name for name in entry if name not in _FIELDS]
    if unknown:
        raise ItemsError(f"{where}: unknown field {unknown[0]!r}; fields are {', '.join(_FIELDS)}")
    return entry


def _messages(entry: Mapping[str, Any], where: str) -> tuple[Mapping[str, str], ...]:
    if ("prompt" in entry) == ("messages" in entry):
        raise ItemsError(f"{where}: exactly one of the fields prompt and messages is needed")
    if "prompt" in entry:
        return ({"role": "user", "content": _text(entry["prompt"], "prompt", where)},)
    messages = entry["messages"]
    if not isinstance(messages, list) or not messages:
        raise _bad(where, "messages", messages, "it must be a list of objects with role and content")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise _bad(where, f"messages[{i}]", message, "it must be an object with role and content")
        if message["role"] not in _ROLES:
            raise _bad(where, f"messages[{i}].role", message["role"], f"it must be one of {', '.join(_ROLES)}")
        _text(message["content"], f"messages[{i}].content", where)
    if messages[-1]["role"] != "user":
        raise _bad(where, f"messages[{len(messages) - 1}].role", messages[-1]["role"], "the last must be the user's")
    return tuple(messages)


def _answer(entry: Mapping[str, Any], match: str, where: str) -> str:
    """The answer in the form in which it will be found in a response."""
    if "answer" not in entry:
        raise ItemsError(f"{where}: the field answer is missing")
    answer = entry["answer"]
    if match == "json" and isinstance(answer, dict):
        return canonical_json(answer)
    if match == "number" and isinstance(answer, (int, float)) and not isinstance(answer, bool):
        answer = repr(answer)
    extract, meaning = MATCHES[match]
    found = extract(_text(answer, "answer", where))
    if found is None:
        raise _bad(where, "answer", answer, f"with match {match!r} {meaning}, and it holds none")
    return found


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _bad(where, name, value, "it must be a text that is not blank")
    return value


def _count(value: Any, name: str, least: int, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _bad(where, name, value, f"it must be an integer of {least} or more")
    return value


def _bad(where: str, name: str, value: Any, allowed: str) -> ItemsError:
    shown = repr(value)
    return ItemsError(f"{where}: {name} is {shown if len(shown) <= 80 else shown[:77] + '...'}; {allowed}")


def _kind(name: str, match: str) -> Kind:
    extract, meaning = MATCHES[match]

    def make(*_: Any) -> Item:
        raise ValueError(f"kind {name!r} comes from a file: it has the items there and draws no others")

    drawn: Callable[[Any, Split], Item] = make
    return Kind(name, f"from a file: {meaning}", drawn, extract)
