"""Finding tags and JSON values in text that comes in pieces."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from enum import Enum, auto

from jaxinfer.text.answers.events import CallArguments, CallName, Event

SPACE = " \t\r\n"  # JSON's white space, and what surrounds tags


def find_tag(text: str, tags: Sequence[str], start: int = 0) -> tuple[int, str] | None:
    """(position, tag) of the first tag in the text, from `start` on."""
    found = [(position, tag) for tag in tags if (position := text.find(tag, start)) >= 0]
    return min(found, default=None)


def settled(text: str, tags: Sequence[str]) -> int:
    """How much of a text without a whole tag is neither the beginning of one nor white space that may precede it."""
    end = len(text)
    longest = max(map(len, tags))
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(tag.startswith(text[start:]) for tag in tags):
            end = start
            break
    return len(text[:end].rstrip(SPACE))


def may_begin(text: str, start: int, tags: Sequence[str]) -> int:
    """Where behind `start` a tag may begin whose end is not there yet; the text's end where none does."""
    longest = max(map(len, tags))
    for position in range(max(start, len(text) - longest + 1), len(text)):
        rest = text[position:]
        if any(tag.startswith(rest) for tag in tags):
            return position
    return len(text)


def could_start(text: str, tag: str) -> bool:
    """Whether `text`, so far, is the beginning of `tag`."""
    return len(text) < len(tag) and tag.startswith(text)


class Status(Enum):
    OPEN = auto()  # wants more text
    DONE = auto()
    BAD = auto()  # not what it was taken for


class ValueScanner:
    """Finds the end of one JSON object, array or string. It counts brackets and knows strings; it does not validate."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self.status = Status.OPEN

    def feed(self, text: str, start: int) -> int:
        """Reads on from `start`; returns the position behind what belongs to the value."""
        for position in range(start, len(text)):
            character = text[position]
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
            if not self._in_string and self._depth == 0:
                self.status = Status.DONE
                return position + 1
        return len(text)


class _Place(Enum):
    OPEN = auto()  # before {
    FIRST_KEY = auto()  # before a key or }
    NEXT_KEY = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()  # before a value
    IN_VALUE = auto()
    COMMA = auto()  # before , or }


class CallScanner:
    """Reads one JSON object {"name": ..., "arguments": ...} and tells name and arguments as soon as both are certain.

    From the moment at which the name and the beginning of the arguments are there the call is told; before that a
    malformed object is simply no call. Arguments may be an object, or a string that holds one; null and "" are {}.

    names: the only names that make a call; None takes any. keys: what else may be in the object; None takes anything.
    whole: tell a call only when its arguments are complete and a JSON object; other arguments make it no call.
    bad_arguments: that is why it is none.
    """

    def __init__(
        self, names: Collection[str] | None = None, keys: Collection[str] | None = None, *, whole: bool = False
    ) -> None:
        self._names, self._keys, self._whole = names, keys, whole
        self.bad_arguments = False
        self._place = _Place.OPEN
        self._text: list[str] = []  # of the key or value being read
        self._key = ""
        self._name: str | None = None
        self._held: list[str] | None = None  # arguments that came before the name
        self._value: ValueScanner | None = None
        self._streaming = False
        self.told = False
        self.status = Status.OPEN

    @property
    def named(self) -> bool:
        """The name is there, and one that makes a call."""
        return self._name is not None and self.status is not Status.BAD

    def feed(self, text: str, start: int, events: list[Event]) -> int:
        """Reads on from `start`, appends what is certain; returns the position behind the last character taken."""
        position = start
        while position < len(text) and self.status is Status.OPEN:
            if self._value is not None:
                position = self._in_value(text, position, events)
            else:
                position = self._step(text[position], position, events)
        return position

    def _step(self, character: str, position: int, events: list[Event]) -> int:
        place = self._place
        if place is _Place.VALUE and character in '"{[':
            self._begin_value(character, events)
            return position
        if place is _Place.IN_VALUE:  # a number or a word
            if character in SPACE + ",}]":
                self._end_word(events)
                return position
            self._text.append(character)
        elif character in SPACE:
            pass
        elif place is _Place.OPEN and character == "{":
            self._place = _Place.FIRST_KEY
        elif place in (_Place.FIRST_KEY, _Place.NEXT_KEY) and character == '"':
            self._place, self._value, self._text = _Place.KEY, ValueScanner(), []
            return position
        elif place is _Place.COLON and character == ":":
            self._place = _Place.VALUE
        elif place is _Place.VALUE and (character.isalnum() or character == "-"):
            self._place, self._text = _Place.IN_VALUE, [character]
        elif place is _Place.COMMA and character == ",":
            self._place = _Place.NEXT_KEY
        elif place in (_Place.COMMA, _Place.FIRST_KEY) and character == "}":
            self._end(events)
        else:
            self.status = Status.BAD
        return position + 1

    def _begin_value(self, character: str, events: list[Event]) -> None:
        self._value, self._text = ValueScanner(), []
        if self._key == "arguments":
            if character == "[":
                self.status, self.bad_arguments = Status.BAD, True
            elif character == "{" and self._name is not None and not self._whole:
                self._tell(events)
                self._streaming = True
        elif self._key == "name" and character != '"':
            self.status = Status.BAD
        self._place = _Place.IN_VALUE

    def _in_value(self, text: str, position: int, events: list[Event]) -> int:
        assert self._value is not None
        end = self._value.feed(text, position)
        if self._streaming:
            events.append(CallArguments(text[position:end]))
        else:
            self._text.append(text[position:end])
        if self._value.status is Status.DONE:
            self._value = None
            if not self._streaming:
                self._take("".join(self._text), events)
            self._streaming = False
            self._place = _Place.COLON if self._place is _Place.KEY else _Place.COMMA
        return end

    def _end_word(self, events: list[Event]) -> None:
        self._place = _Place.COMMA
        word = "".join(self._text)
        try:
            json.loads(word)
        except ValueError:
            self.status = Status.BAD
            return
        if self._key == "name" or (self._key == "arguments" and word != "null"):
            self.status, self.bad_arguments = Status.BAD, self._key == "arguments"

    def _take(self, value: str, events: list[Event]) -> None:
        """A whole key, or a whole value that was not streamed."""
        if self._place is _Place.KEY:
            key = _string(value)
            self._key = "arguments" if key == "parameters" else key or ""
            known = self._key in ("name", "arguments")
            twice = (self._key == "name" and self._name is not None) or (
                self._key == "arguments" and (self.told or self._held is not None)
            )
            if key is None or twice or not (known or self._keys is None or self._key in self._keys):
                self.status = Status.BAD
        elif self._key == "name":
            self._name = _string(value)
            if not self._name or (self._names is not None and self._name not in self._names):
                self.status = Status.BAD
            elif self._held is not None:
                self._tell(events)
        elif self._key == "arguments":
            inner = _string(value) if value.startswith('"') else value
            inner = "{}" if inner is not None and not inner.strip(SPACE) else inner
            if inner is None or not is_json_object(inner):
                self.status, self.bad_arguments = Status.BAD, True
                return
            self._held = [inner]
            if self._name is not None:
                self._tell(events)

    def _tell(self, events: list[Event]) -> None:
        assert self._name is not None
        events.append(CallName(self._name))
        self.told = True
        if self._held:
            events.append(CallArguments("".join(self._held)))

    def _end(self, events: list[Event]) -> None:
        if self._name is None:
            self.status = Status.BAD
            return
        if not self.told:
            self._held = ["{}"]
            self._tell(events)
        self.status = Status.DONE


def is_json_object(text: str) -> bool:
    """Whether a text is a JSON object, as strictly as clients read it: no NaN, no raw line break in a string."""
    return text.lstrip(SPACE).startswith("{") and is_json(text)


def is_json(text: str) -> bool:
    """Whether a text is a JSON value, as strictly as clients read it."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _string(text: str) -> str | None:
    """The value of a JSON string, None where it is malformed (a raw line break is not: models write them)."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", "replace").decode("utf-8")
