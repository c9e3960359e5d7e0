"""Tool calls in which the name stands apart from the arguments: what such formats have in common."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Collection, Mapping
from enum import Enum, auto
from typing import NamedTuple

from jaxinfer.text.answers.calls import CallParser
from jaxinfer.text.answers.events import PUT_IN, CallArguments, CallName, Event
from jaxinfer.text.answers.readers import ArgumentsReader
from jaxinfer.text.answers.scanning import SPACE, Status, could_start, find_tag, is_json_object
from jaxinfer.text.answers.typing_of_text import ValueSchema

_NAME = re.compile(r"[^\s<>{}()\[\]\"'`,\uff5c]{1,256}")
_NUMBER = re.compile(r":\d*\Z")
_SPACES = re.compile(rf"[{SPACE}]*")


class Part(Enum):
    """What stands between a call's tag and its arguments, beside texts as they are."""

    SPACES = auto()  # any number, none too
    NAME = auto()
    NUMBERED_NAME = auto()  # a name, perhaps with a colon and a number behind it
    WORD = auto()  # as a name, and none


class Ahead(NamedTuple):
    """One of these texts, which belongs to what follows."""

    texts: tuple[str, ...]


class Maybe(NamedTuple):
    """A text that may be left out."""

    text: str


Head = tuple[Part | Ahead | Maybe | str, ...]


class _Found(NamedTuple):
    name: str
    end: int  # where the arguments begin


def read_head(text: str, position: int, head: Head) -> _Found | bool | None:
    """Reads a head from `position` on. None: it is none; True: it may be one once more text is there."""
    name = ""
    for part in head:
        if part is Part.SPACES:
            position = _SPACES.match(text, position).end()  # type: ignore[union-attr]
            continue
        if position == len(text):
            return True
        if isinstance(part, Part):
            word = _NAME.match(text, position)
            if word is None:
                return None
            if word.end() == len(text):
                return True
            if part is Part.NAME:
                name = word[0]
            elif part is Part.NUMBERED_NAME:
                name = _NUMBER.sub("", word[0])
            position = word.end()
            continue
        if isinstance(part, Maybe):
            if could_start(text[position:], part.text):
                return True
            position += len(part.text) if text.startswith(part.text, position) else 0
            continue
        texts = part.texts if isinstance(part, Ahead) else (part,)
        found = next((each for each in texts if text.startswith(each, position)), None)
        if found is None:
            return any(could_start(text[position:], each) for each in texts) or None
        position += len(found) if isinstance(part, str) else 0
    return _Found(name, position)


class NamedCallParser(CallParser):
    """A tag, a head with the name, the arguments, and what closes the call.

    sections: tags around several calls, of which the opening one may be left out. heads: what follows a tag with which
    a call begins. offered: of those tags, the ones that stand in other texts too: behind them only the name of a tool
    that is offered makes a call. closes: what may stand behind the arguments, in this order.
    """

    sections: tuple[tuple[str, str], ...] = ()
    heads: tuple[tuple[str, Head], ...]
    offered: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()

    def __init__(self, names: Collection[str], *, whole: bool = False) -> None:
        super().__init__(names, whole=whole)
        self._heads = dict(self.heads)
        self._openings = tuple(opening for opening, _ in self.sections)
        self._ends = tuple(dict.fromkeys(close for _, close in self.sections))
        self._tag = ""  # the one that the buffer begins with
        self._name, self._begin = "", 0  # of the call that is being read; where its arguments begin, until it is told
        self._reader: ArgumentsReader | None = None
        self._json: list[str] = []  # arguments that are not told yet
        self._left: tuple[str, ...] = ()  # of `closes`, what may still come

    @abstractmethod
    def new_reader(self, name: str) -> ArgumentsReader:
        """Reads the arguments of a call of this tool."""

    def schema(self, name: str) -> ValueSchema:
        """What the request says of the tool's arguments."""
        return ValueSchema.of_parameters(self._names.get(name) if isinstance(self._names, Mapping) else None)

    def _in_text(self, events: list[Event]) -> bool:
        tag = self.skim(events)
        if tag is None:
            return False
        self._begin_with(tag)
        return True

    def _begin_with(self, tag: str) -> None:
        self._tag = tag
        self._state = "opened" if tag in self._openings else "head"

    def _in_opened(self, events: list[Event]) -> bool:
        """A section's opening: without a call behind it, it is text."""
        text = self._buffer[len(self._tag) :].lstrip(SPACE)
        if not text or any(could_start(text, tag) for tag in self._heads):
            return False
        tag = next((tag for tag in self._heads if text.startswith(tag)), None)
        if tag is None:
            self.give_up(len(self._tag), events)
            self._state = "text"
        else:
            self._buffer, self._tag, self._state = text, tag, "head"
        return True

    def _in_head(self, events: list[Event]) -> bool:
        found = read_head(self._buffer, len(self._tag), self._heads[self._tag])
        if found is True:
            return False
        if not isinstance(found, _Found) or (self._tag in self.offered and found.name not in self._names):
            self.give_up(len(self._tag), events)
            self._state = "text"
            return True
        self._name, self._begin = found
        self._reader, self._scanned, self._json = self.new_reader(self._name), self._begin, []
        if not self._whole:
            events.append(CallName(self._name))
            self.called()
            self._buffer, self._begin, self._scanned = self._buffer[self._begin :], 0, 0
        self._state = "held" if self._whole else "arguments"
        return True

    def _in_arguments(self, events: list[Event]) -> bool:
        """Arguments that are told as they come."""
        self._feed()
        self._buffer, self._scanned = self._buffer[self._scanned :], 0
        if self._json:
            events.append(self._arguments())
        return self._after_arguments()

    def _in_held(self, events: list[Event]) -> bool:
        """Arguments of a whole answer, told once they are complete and a JSON object."""
        status = self._feed()
        if status is Status.OPEN:
            return False
        if status is Status.BAD or not is_json_object("".join(self._json)):
            self.give_up(len(self._tag), events)
            self._state = "text"
            return True
        events += [CallName(self._name), self._arguments()]
        self.called()
        self._buffer = self._buffer[self._scanned :]
        return self._after_arguments()

    def _feed(self) -> Status:
        assert self._reader is not None
        self._scanned = self._reader.feed(self._buffer, self._scanned, self._json, final=self._final)
        return self._reader.status

    def _arguments(self) -> CallArguments:
        assert self._reader is not None
        text, self._json = "".join(self._json), []
        return CallArguments(text, None if self._reader.written else PUT_IN)

    def _after_arguments(self) -> bool:
        assert self._reader is not None
        if self._reader.status is Status.OPEN:
            return False
        self._left = self.closes
        self._state = "broken" if self._reader.status is Status.BAD else "behind"
        return True

    def _in_behind(self, events: list[Event]) -> bool:
        """What closes the call."""
        text = self._buffer.lstrip(SPACE)
        for i, close in enumerate(self._left):
            if text.startswith(close):
                self._buffer, self._left = text[len(close) :], self._left[i + 1 :]
                return True
        if not text or any(could_start(text, close) for close in self._left):
            if self._left and not self._final:
                return False
            if self._final:
                self._buffer = ""  # the answer was cut inside what closes the call
        self._left = ()
        self._state = "between" if self.sections else "text"
        return bool(self._buffer)

    def _in_between(self, events: list[Event]) -> bool:
        """The next call of a section, or its end."""
        text = self._buffer.lstrip(SPACE)
        tags = (*self._heads, *self._openings)
        found = next((each for each in (*tags, *self._ends) if text.startswith(each)), None)
        if found in self._ends:
            self._buffer, self._state = text[len(found or "") :], "text"
        elif found is not None:
            self._buffer = text
            self._begin_with(found)
        elif text and not any(could_start(text, tag) for tag in (*tags, *self._ends)):
            self._state = "text"
        elif self._final:
            self._buffer = ""  # the answer was cut there
            return False
        else:
            return False
        return True

    def _in_broken(self, events: list[Event]) -> bool:
        """Up to the next call, or the end of this one."""
        ends = (*self.tags, *self.closes, *self._ends)
        found = find_tag(self._buffer, ends)
        if found is None:
            self._buffer = "" if self._final else self._buffer[-max(map(len, ends)) :]
            return False
        self._buffer = self._buffer[found[0] + (0 if found[1] in self.tags else len(found[1])) :]
        self._state = "text"
        return True
