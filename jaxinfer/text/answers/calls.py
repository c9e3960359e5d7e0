"""Tool calls in a text: what the formats have in common, and Hermes' (Qwen's, SmolLM3's) <tool_call> tags."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

from jaxinfer.text.answers.events import Content, Event
from jaxinfer.text.answers.scanning import SPACE, CallScanner, Status, could_start, find_tag, settled


class CallParser(ABC):
    """Takes text, tells content and tool calls.

    White space next to a call belongs to neither. What looks like a call and turns out to be none is content.
    names: the tools that the request offers.
    """

    tags: tuple[str, ...]  # where a call begins
    more_tags: tuple[str, ...] = ()  # what else the format is made of
    start = "text"  # the state to begin in; a state is a method, `_in_` before its name, that does a step

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._buffer = ""
        self._scanned = 0  # how much of the buffer a scanner has taken
        self._scanner: CallScanner | None = None
        self._gap = ""  # white space that belongs to the text only if more text follows
        self._called = False
        self._told = False  # the call that is being read is certain
        self._final = False
        self._state = self.start

    @property
    def settled(self) -> bool:
        """No text waits: what is neither content nor a call's (a tag) was recognised as such."""
        return not self._buffer and not self._gap

    def push(self, text: str, events: list[Event]) -> None:
        self._buffer += text
        while self._buffer and self.step(events):
            pass

    def finish(self, events: list[Event]) -> None:
        self._final = True
        while self.step(events):
            pass
        if self._buffer:
            self.tell(self._buffer, events)
            self._buffer = ""
        if self._gap and not self._called:
            events.append(Content(self._gap))
        self._gap = ""

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
            self._scanner, self._scanned = CallScanner(self._names if strict else None, keys), offset
            self._told = False
        scanner = self._scanner
        self._scanned = scanner.feed(self._buffer, self._scanned, events)
        if scanner.told:
            self._told = True
            self.called()
            self._buffer, self._scanned = self._buffer[self._scanned :], 0
        if scanner.status is not Status.OPEN:
            self._scanner = None
        return scanner.status

    def called(self) -> None:
        self._called, self._gap = True, ""

    def give_up(self, length: int, events: list[Event]) -> None:
        """The first `length` characters of the buffer are text after all."""
        self.tell(self._buffer[:length], events)
        self._buffer = self._buffer[length:]


class HermesParser(CallParser):
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them, anywhere in the text."""

    tags = ("<tool_call>",)
    _CLOSE = "</tool_call>"
    more_tags = (_CLOSE,)

    def _in_text(self, events: list[Event]) -> bool:
        if self.skim(events) is None:
            return False
        self._state = "call"
        return True

    def _in_call(self, events: list[Event]) -> bool:
        open_tag = len(self.tags[0])
        status = self.scan(open_tag, events)
        if status is Status.OPEN:
            return False
        if status is Status.DONE:
            self._state = "close"
        elif not self._told:
            self.give_up(open_tag, events)
            self._state = "text"
        else:  # the call was told already; what is left of it means nothing
            self._state = "broken"
        return True

    def _in_close(self, events: list[Event]) -> bool:
        text = self._buffer.lstrip(SPACE)
        if text.startswith(self._CLOSE):
            self._buffer = text[len(self._CLOSE) :]
        elif not self._final and (not text or could_start(text, self._CLOSE)):
            return False
        self._state = "text"
        return bool(self._buffer)

    def _in_broken(self, events: list[Event]) -> bool:
        """Here a call has an end of its own."""
        _, tag, after = self._buffer.partition(self._CLOSE)
        if tag:
            self._buffer, self._state = after, "text"
            return True
        self._buffer = "" if self._final else self._buffer[-len(self._CLOSE) :]
        return False
