"""Marks in a conversation up to which its prompt is to be pinned, and where in the rendered text they are.

A mark is a key beside a text part, a message, a call or a tool; its value is the seconds that the pin lasts. What a
template makes of the marked thing only the template knows: the conversation is rendered once more with a character put
behind it that stands nowhere else, and the mark is where the two texts begin to differ. Whatever a template does, the
texts are the same up to there, so that a place may be too early but is always one of the prompt's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxinfer.errors import ChatMessageError, ChatTemplateError

MARK = "cache_control"
MAX_MARKS = 4  # as Anthropic has it
_PRIVATE = range(0xE000, 0xF8FF)  # characters that Unicode leaves to private use

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None
Render = Callable[[Messages, Tools], str]


class _Chat(NamedTuple):
    messages: Messages
    tools: Tools

    def with_message(self, i: int, message: Mapping[str, Any]) -> _Chat:
        return self._replace(messages=[*self.messages[:i], message, *self.messages[i + 1 :]])

    def with_tool(self, k: int, tool: Mapping[str, Any]) -> _Chat:
        tools = self.tools or ()
        return self._replace(tools=[*tools[:k], tool, *tools[k + 1 :]])


class _Mark(NamedTuple):
    """ways: the conversation with the character, in several places behind the marked thing or in it; the first that the
    template shows counts. beyond: one that may show it later still, behind what belongs to the marked thing too."""

    seconds: float
    ways: tuple[_Chat, ...]
    beyond: _Chat | None = None


def without_marks(messages: Messages, tools: Tools) -> tuple[Messages, Tools]:
    """What a template gets. A single text becomes a string, as it is where there is no mark."""
    return [_plain_message(message) for message in messages], tools and [_plain(tool) for tool in tools]


def marked_places(messages: Messages, tools: Tools, text: str, render: Render) -> list[tuple[int, float]]:
    """Each mark's place in `text`, in characters, and its seconds; without those that the template does not show.

    text: the conversation without marks as it is rendered. render: makes it of messages and tools without marks.
    """
    sign = next(chr(code) for code in _PRIVATE if chr(code) not in text)
    found = []
    for mark in _marks(_Chat(messages, tools), sign):
        places = (_place(text, way, render) for way in mark.ways)
        place = next((place for place in places if place is not None), None)
        if mark.beyond is not None:
            place = max(place or 0, _place(text, mark.beyond, render) or 0)
        if place:
            found.append((place, mark.seconds))
    return sorted(found)


def _place(text: str, chat: _Chat, render: Render) -> int | None:
    """Where the conversation's text begins to differ; None where it does not, or cannot be rendered."""
    try:
        other = render(*without_marks(*chat))
    except (ChatMessageError, ChatTemplateError):
        return None  # a template may judge what it is given
    return None if other == text else _common(text, other)


def _common(a: str, b: str) -> int:
    """How many characters they begin with in common."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in value.items() if key != MARK}


def _plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    plain, content = _plain(message), message.get("content")
    if isinstance(content, list) and any(MARK in part for part in content):
        parts = [_plain(part) for part in content]
        plain["content"] = parts if len(parts) > 1 else parts[0]["text"]
    if "tool_calls" in plain:
        plain["tool_calls"] = [_plain(call) for call in plain["tool_calls"]]
    return plain


# -- the character's places --------------------------------------------------------------------------------------------


def _marks(chat: _Chat, sign: str) -> Iterator[_Mark]:
    for k, tool in enumerate(chat.tools or ()):
        if MARK in tool:
            yield _Mark(tool[MARK], tuple(_behind_tool(chat, k, sign)))
    for i, message in enumerate(chat.messages):
        content = message.get("content")
        parts: list[Mapping[str, Any]] = content if isinstance(content, list) else []
        for j, part in enumerate(parts):
            if MARK in part:
                way = chat.with_message(i, {**message, "content": _signed(parts, j, sign)})
                last = i == 0 and message.get("role") == "system" and j == len(parts) - 1
                yield _Mark(part[MARK], (way,), _before_second(chat, sign) if last else None)
        for j, call in enumerate(message.get("tool_calls") or ()):
            if MARK in call:
                yield _Mark(call[MARK], tuple(_behind_call(chat, i, j, sign)))
        if MARK in message:
            yield _Mark(message[MARK], (chat.with_message(i, {**message, "content": message["content"] + sign}),))


def _signed(content: list[Mapping[str, Any]], j: int, sign: str) -> list[Mapping[str, Any]]:
    return [*content[:j], {**content[j], "text": content[j]["text"] + sign}, *content[j + 1 :]]


def _before_second(chat: _Chat, sign: str) -> _Chat | None:
    """Templates write tools before or behind the system's text; all of that belongs to the system's last block."""
    if len(chat.messages) < 2:
        return None
    message = chat.messages[1]
    content = message.get("content")
    if isinstance(content, str) and content:
        return chat.with_message(1, {**message, "content": sign + content})
    if isinstance(content, list) and content:
        first = {**content[0], "text": sign + content[0]["text"]}
        return chat.with_message(1, {**message, "content": [first, *content[1:]]})
    return None


def _behind_call(chat: _Chat, i: int, j: int, sign: str) -> Iterator[_Chat]:
    message = chat.messages[i]
    calls = list(message["tool_calls"])
    function = calls[j]["function"]
    for changed in ({"arguments": {**function["arguments"], sign: ""}}, {"name": function["name"] + sign}):
        calls[j] = {**calls[j], "function": {**function, **changed}}
        yield chat.with_message(i, {**message, "tool_calls": list(calls)})


def _behind_tool(chat: _Chat, k: int, sign: str) -> Iterator[_Chat]:
    """In the next tool's name, or behind all that the last one says: templates show all of a tool, or what they know
    of it."""
    tools = chat.tools or ()
    if k + 1 < len(tools):
        function = tools[k + 1]["function"]
        yield chat.with_tool(k + 1, {**tools[k + 1], "function": {**function, "name": sign + function["name"]}})
    tool, function = tools[k], tools[k]["function"]
    yield chat.with_tool(k, {**tool, sign: ""})
    yield chat.with_tool(k, {**tool, "function": {**function, sign: ""}})
    for name in ("description", "name"):
        yield chat.with_tool(k, {**tool, "function": {**function, name: function.get(name, "") + sign}})
