"""Mistral's tool calls behind [TOOL_CALLS]: a JSON list of {"name": ..., "arguments": {...}}, or name[ARGS]{...}."""

from __future__ import annotations

import re
from collections.abc import Collection

from jaxinfer.text.answers.calls import CallParser
from jaxinfer.text.answers.events import CallArguments, CallName, Event
from jaxinfer.text.answers.scanning import SPACE, Status, ValueScanner

# The newer form, up to the arguments: a name, perhaps the call's id, perhaps [ARGS].
_NAMED = re.compile(r"\s*([\w.-]{1,128})(?:\[CALL_ID\]\s*\w{1,64}\s*)?(?:\[ARGS\])?\s*(?=\{)")
# How such a beginning may look while it is not complete.
_NAMED_SO_FAR = re.compile(r"\s*[\w.-]{0,128}(?:\[[A-Z_]{0,7}\]?\s*\w{0,64}\s*(?:\[[A-Z]{0,4}\]?)?)?\s*")


class MistralParser(CallParser):
    """Any number of lists, objects and named calls, anywhere in the text."""

    tags = ("[TOOL_CALLS]",)
    more_tags = ("[ARGS]", "[CALL_ID]")

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(names)
        self._in_list = False
        self._value: ValueScanner | None = None

    def _in_text(self, events: list[Event]) -> bool:
        if self.skim(events) is None:
            return False
        self._state = "tagged"
        return True

    def _in_tagged(self, events: list[Event]) -> bool:
        tag = self.tags[0]
        rest = self._buffer[len(tag) :]
        text = rest.lstrip(SPACE)
        if not text:
            return False
        if text[0] in "[{":
            self._in_list = text[0] == "["
            self._buffer, self._state = tag + text, "object"
            return True
        named = _NAMED.match(rest)
        if named is not None:
            events.append(CallName(named[1]))
            self.called()
            self._buffer, self._state, self._value = rest[named.end() :], "arguments", ValueScanner()
            return True
        if not self._final and _NAMED_SO_FAR.fullmatch(rest):
            return False
        self.give_up(len(tag), events)
        self._state = "text"
        return True

    def _in_object(self, events: list[Event]) -> bool:
        """The first object behind a tag: until it is certain, the tag can still turn out to be text."""
        offset = len(self.tags[0]) + self._in_list
        status = self.scan(offset, events)
        if status is Status.BAD and not self._told:
            self.give_up(len(self.tags[0]), events)
            self._state = "text"
            return True
        return self._after_scan(status)

    def _in_next(self, events: list[Event]) -> bool:
        """A further object of a list; the comma is gone."""
        status = self.scan(0, events)
        if status is Status.BAD and not self._told:
            self._state = "broken"
            return True
        return self._after_scan(status)

    def _after_scan(self, status: Status) -> bool:
        if status is Status.OPEN:
            return False
        self._state = "broken" if status is Status.BAD else "between" if self._in_list else "text"
        return True

    def _in_between(self, events: list[Event]) -> bool:
        text = self._buffer.lstrip(SPACE)
        if not text:
            return False
        if text[0] in ",]":
            self._buffer, self._state = text[1:], "next" if text[0] == "," else "text"
        else:
            self._state = "text"
        return True

    def _in_arguments(self, events: list[Event]) -> bool:
        assert self._value is not None
        end = self._value.feed(self._buffer, 0)
        if end:
            events.append(CallArguments(self._buffer[:end]))
            self._buffer = self._buffer[end:]
        if self._value.status is not Status.DONE:
            return False
        self._state = "text"
        return True
