"""Tool calls in a text: what the formats have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

from jaxinfer.text.answers.events import Content, Event
from jaxinfer.text.answers.scanning import SPACE, CallScanner, Status, could_start, find_tag, settled
from jaxinfer.text.answers.spelling import CallSpelling

_CUT_TAG = 2  # characters of a tag from which on an answer counts as cut inside of it
_SHARE = 16  # a buffer that is kept whole gets more when that is this part of it


class CallParser(ABC):
    """Takes text, tells content and tool calls.

    White space next to a call belongs to neither. What looks like a call and turns out to be none is content.
    names: the tools that the request offers, see OutputParser. whole: the answer is given whole, so a call can wait
    until its arguments are complete, and is none where they are no JSON object; otherwise it is told as it is written.
    """

    tags: tuple[str, ...]  # where a call begins
    more_tags: tuple[str, ...] = ()  # what else the format is made of
    spellings: tuple[CallSpelling, ...]  # how models write it; the first is the usual one
    start = "text"  # the state to begin in; a state is a method, `_in_` before its name, that does a step

    def __init__(self, names: Collection[str], *, whole: bool = False) -> None:
        self._names = names
        self._whole = whole
        self._buffer = ""
        self._pieces: list[str] = []  # text that is not in the buffer yet
        self._waiting = 0  # how long that is
        self._scanned = 0  # how much of the buffer a scanner has taken
        self._scanner: CallScanner | None = None
        self._gap = ""  # white space that belongs to the text only if more text follows
        self._called = False
        self._behind_call = False  # nothing but white space was told since the last call
        self._told = False  # the call that is being read is certain
        self._bad_arguments = False  # the call that was read last is none for its arguments
        self._final = False
        self._state = self.start

    @property
    def settled(self) -> bool:
        """No text waits: what is neither content nor a call's (a tag) was recognised as such."""
        return not self._buffer and not self._gap and not self._pieces

    def push(self, text: str, events: list[Event]) -> None:
        if self._whole:
            # A call's buffer grows until its end. Nobody waits for parts of it, so it need not be copied each time.
            self._pieces.append(text)
            self._waiting += len(text)
            if self._waiting * _SHARE < len(self._buffer):
                return
            text = "".join(self._pieces)
            self._pieces, self._waiting = [], 0
        self._read(text, events)

    def _read(self, text: str, events: list[Event]) -> None:
        self._buffer += text
        while self._buffer and self.step(events):
            pass

    def finish(self, events: list[Event], *, cut: bool = False) -> None:
        """cut: the answer was cut off, so what may be the beginning of a call is one, and says nothing."""
        self._read("".join(self._pieces), events)
        self._pieces, self._waiting, self._final = [], 0, True
        while self.step(events):
            pass
        rest = self._buffer.strip(SPACE)
        begins = any(could_start(rest, tag) for tag in self.tags)
        # Behind a call the beginning of a tag is the next call, cut off.
        begun = begins and (self._behind_call or (cut and len(rest) >= _CUT_TAG))
        begun = begun or (cut and self.within_call)
        if self._buffer and not begun:
            self.tell(self._buffer, events)
        if self._gap and not self._called and not begun:
            events.append(Content(self._gap))
        self._buffer = self._gap = ""

    @property
    def within_call(self) -> bool:
        """The text that waits begins with what may be a call."""
        return self._state not in ("text", self.start)

    def step(self, events: list[Event]) -> bool:
        """Takes what is certain from the front of the buffer; False when it needs more text (or, at the end, has
        done what it can)."""
        return bool(getattr(self, f"_in_{self._state}")(events))

    @abstractmethod
    def _in_text(self, events: list[Event]) -> bool:
        """The state between calls."""

    def _in_broken(self, events: list[Event]) -> bool:
        """What is left of a call that was told already means nothing, up to the next one."""
        position = self._buffer.find(self.tags[0])
        if position >= 0:
            self._buffer, self._state = self._buffer[position:], "text"
            return True
        self._buffer = "" if self._final else self._buffer[-len(self.tags[0]) :]
        return False

    def tell(self, text: str, events: list[Event]) -> None:
        """Text for the reader, but for white space at its end, which waits."""
        body = text.rstrip(SPACE)
        if not body:
            self._gap += text
            return
        events.append(Content(self._gap + body))
        self._gap = text[len(body) :]
        self._behind_call = False

    def skim(self, events: list[Event]) -> str | None:
        """Tells the buffer's text up to the first tag, which stays; the tag, or None while there is none."""
        found = find_tag(self._buffer, self.tags)
        end = found[0] if found is not None else settled(self._buffer, self.tags)
        if end:
            self.tell(self._buffer[:end], events)
            self._buffer = self._buffer[end:]
        return None if found is None else found[1]

    def scan(self, offset: int, events: list[Event], *, strict: bool = False) -> Status:
        """Reads the object `offset` characters into the buffer. Text up to it stays there until the call is certain."""
        if self._scanner is None:
            keys = ("type", "id", "name", "arguments") if strict else None
            self._scanner = CallScanner(self._names if strict else None, keys, whole=self._whole)
            self._scanned, self._told = offset, False
        scanner = self._scanner
        self._scanned = scanner.feed(self._buffer, self._scanned, events)
        if scanner.told:
            self._told = True
            self.called()
            self._buffer, self._scanned = self._buffer[self._scanned :], 0
        if scanner.status is not Status.OPEN:
            self._scanner, self._bad_arguments = None, scanner.bad_arguments
        return scanner.status

    def called(self) -> None:
        self._called = self._behind_call = True
        self._gap = ""

    def give_up(self, length: int, events: list[Event]) -> None:
        """The first `length` characters of the buffer are text after all."""
        self.tell(self._buffer[:length], events)
        self._buffer = self._buffer[length:]


class ListedCallParser(CallParser):
    """What formats share whose tag stands before one JSON object, or a list of them.

    after: the state behind them.
    """

    after = "text"

    def __init__(self, names: Collection[str], *, whole: bool = False) -> None:
        super().__init__(names, whole=whole)
        self._tag = self.tags[0]  # the one that the buffer begins with
        self._in_list = False

    def _in_text(self, events: list[Event]) -> bool:
        tag = self.skim(events)
        if tag is None:
            return False
        self._tag, self._state = tag, "tagged"
        return True

    def _in_tagged(self, events: list[Event]) -> bool:
        text = self._buffer[len(self._tag) :].lstrip(SPACE)
        if not text:
            return False
        if text[0] in "[{":
            self._in_list = text[0] == "["
            self._state = "object"
            return True
        return self._without_object(events)

    def _without_object(self, events: list[Event]) -> bool:
        """What stands behind the tag is neither object nor list."""
        self.give_up(len(self._tag), events)
        self._state = "text"
        return True

    def _in_object(self, events: list[Event]) -> bool:
        """The first object behind a tag: until it is certain, the tag can still turn out to be text."""
        offset = 0
        if self._scanner is None:
            rest = self._buffer[len(self._tag) :]
            offset = len(self._tag) + len(rest) - len(rest.lstrip(SPACE)) + self._in_list
        status = self.scan(offset, events)
        if status is Status.BAD and not self._told:
            self.give_up(len(self._tag), events)
            self._state = "text"
            return True
        return self._after_scan(status)

    def _in_next(self, events: list[Event]) -> bool:
        """A further object of a list; the comma is gone."""
        if self._scanner is None:
            self._buffer = self._buffer.lstrip(SPACE)
            if not self._buffer:
                return False
        status = self.scan(0, events)
        if status is Status.BAD and not self._told:
            self._state = "text" if self._bad_arguments else "broken"
            return True
        return self._after_scan(status)

    def _after_scan(self, status: Status) -> bool:
        if status is Status.OPEN:
            return False
        self._state = "broken" if status is Status.BAD else "between" if self._in_list else self.after
        return True

    def _in_between(self, events: list[Event]) -> bool:
        text = self._buffer.lstrip(SPACE)
        if not text:
            return False
        if text[0] in ",]":
            self._buffer, self._state = text[1:], "next" if text[0] == "," else self.after
        else:
            self._state = self.after
        return True
