"""What reads a call's arguments as they come, and tells them as JSON."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxinfer.text.answers.scanning import Status, ValueScanner, find_tag, is_json, may_begin
from jaxinfer.text.answers.typing_of_text import ValueSchema, typed

_LONGEST_HEAD = 1024  # characters up to which the end of a parameter's opening tag is waited for
_TEXT = frozenset({"string"})


class ArgumentsReader(ABC):
    """Reads the arguments of one call.

    status: DONE behind their end, which is taken too; BAD where they are none.
    written: the JSON is the text itself.
    """

    written = False

    def __init__(self) -> None:
        self.status = Status.OPEN

    @abstractmethod
    def feed(self, text: str, start: int, told: list[str], *, final: bool) -> int:
        """Reads on from `start`, appends JSON that is certain; returns the position behind what was taken. What is not
        taken comes again, with more behind it. final: nothing more comes."""


class JsonReader(ArgumentsReader):
    """A JSON object, told as it is written."""

    written = True

    def __init__(self) -> None:
        super().__init__()
        self._value = ValueScanner()

    def feed(self, text: str, start: int, told: list[str], *, final: bool) -> int:
        end = self._value.feed(text, start)
        if end > start:
            told.append(text[start:end])
        self.status = self._value.status
        return end


@dataclass(frozen=True)
class ParameterTags:
    """How parameters stand in a format.

    open, head_end: around a parameter's head, which `head` matches whole: its groups are the name and, where the format
    says it, "true" for a text. close: behind the value. ends: end the arguments. late: end a value whose closing tag
    was left out, and stay. trims: one line break at either end of a value is none of it.
    """

    open: str
    head_end: str
    head: re.Pattern[str]
    close: str
    ends: tuple[str, ...]
    late: tuple[str, ...]
    trims: bool = False

    @property
    def value_ends(self) -> tuple[str, ...]:
        return (self.close, *self.late)


class ParameterReader(ArgumentsReader):
    """Parameters between tags; what else stands between them says nothing. Texts are told as they come, other values
    when they are complete, for their type is the schema's to say and their JSON must be whole."""

    def __init__(self, tags: ParameterTags, schema: ValueSchema) -> None:
        super().__init__()
        self._tags, self._schema = tags, schema
        self._empty = True  # no parameter was told
        self._in_value = False
        self._types: frozenset[str] | None = None  # of the value
        self._is_json = False  # the format itself says that the value is no text
        self._held: list[str] | None = None  # a value that is not told as it comes
        self._fresh = False  # nothing of the value was read

    def feed(self, text: str, start: int, told: list[str], *, final: bool) -> int:
        position, moved = start, True
        while moved and self.status is Status.OPEN:
            step = self._read_value if self._in_value else self._read_between
            position, moved = step(text, position, told, final)
        return position

    def _read_between(self, text: str, position: int, told: list[str], final: bool) -> tuple[int, bool]:
        """Up to the next parameter, or the end."""
        tags = self._tags
        found = find_tag(text, (tags.open, *tags.ends), position)
        if found is None:
            position = may_begin(text, position, (tags.open, *tags.ends))
            rest = text[position:]
            if final and any(end.startswith(rest) for end in tags.ends) and not tags.open.startswith(rest):
                self._end(told)  # the answer was cut inside the closing tag
                return len(text), False
            return position, False
        at, tag = found
        if tag != tags.open:
            self._end(told)
            return at + len(tag), False
        begin = at + len(tag)
        end = text.find(tags.head_end, begin, begin + _LONGEST_HEAD)
        if end < 0:
            return (at, False) if len(text) < begin + _LONGEST_HEAD else (begin, True)
        head = tags.head.fullmatch(text[begin:end])
        if head is not None:
            self._begin(head, told)
        return end + len(tags.head_end), True

    def _begin(self, head: re.Match[str], told: list[str]) -> None:
        key = head[1].strip()
        told.append(("{" if self._empty else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
        self._empty, self._in_value, self._fresh = False, True, self._tags.trims
        self._types = self._schema.member(key).types()
        self._is_json = head.re.groups > 1 and head[2] != "true"
        if not self._is_json:
            self._types = self._types or _TEXT
        elif self._types is not None:
            self._types |= frozenset({"object", "array"})
        self._held = None if self._types == _TEXT else []
        if self._held is None:
            told.append('"')

    def _read_value(self, text: str, position: int, told: list[str], final: bool) -> tuple[int, bool]:
        if self._fresh:
            if position == len(text):
                return position, False
            position += text[position] == "\n"
            self._fresh = False
        found = find_tag(text, self._tags.value_ends, position)
        end = may_begin(text, position, self._tags.value_ends) if found is None else found[0]
        behind = end
        if self._tags.trims and text[position:end].endswith("\n"):
            end -= 1
        self._tell(text[position:end], told)
        if found is None:
            return end, False
        self._close(told)
        return behind + (len(found[1]) if found[1] == self._tags.close else 0), True

    def _tell(self, text: str, told: list[str]) -> None:
        if not text:
            return
        if self._held is None:
            told.append(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._held.append(text)

    def _close(self, told: list[str]) -> None:
        if self._held is None:
            told.append('"')
        else:
            value = "".join(self._held)
            quoted = self._is_json and value.startswith('"') and is_json(value)
            told.append(value if quoted else typed(value, self._types))
        self._in_value, self._held = False, None

    def _end(self, told: list[str]) -> None:
        told.append("{}" if self._empty else "}")
        self.status = Status.DONE
