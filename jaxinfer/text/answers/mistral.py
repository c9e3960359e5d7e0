"""Mistral's tool calls behind [TOOL_CALLS]: a JSON list of {"name": ..., "arguments": {...}}, or name[ARGS]{...}."""

from __future__ import annotations

import re
from collections.abc import Collection

from jaxinfer.text.answers.calls import ListedCallParser
from jaxinfer.text.answers.events import CallArguments, CallName, Event
from jaxinfer.text.answers.scanning import Status, ValueScanner, is_json_object
from jaxinfer.text.answers.spelling import CallSpelling, listed

# The newer form, up to the arguments: a name, perhaps the call's id, perhaps [ARGS].
_NAMED = re.compile(r"\s*([\w.-]{1,128})\s{0,4}(?:\[CALL_ID\]\s*\w{1,64}\s*)?(?:\[ARGS\])?\s*(?=\{)")
# How such a beginning may look while it is not complete.
_NAMED_SO_FAR = re.compile(r"\s*[\w.-]{0,128}\s{0,4}(?:\[[A-Z_]{0,7}\]?\s*\w{0,64}\s*(?:\[[A-Z]{0,4}\]?)?)?\s*")


class MistralParser(ListedCallParser):
    """Any number of lists, objects and named calls, anywhere in the text."""

    tags = ("[TOOL_CALLS]",)
    more_tags = ("[ARGS]", "[CALL_ID]")
    spellings = (listed("[TOOL_CALLS][", "]"), CallSpelling("[TOOL_CALLS]", "[ARGS]", ""))

    def __init__(self, names: Collection[str], *, whole: bool = False) -> None:
        super().__init__(names, whole=whole)
        self._value: ValueScanner | None = None
        self._name, self._begin = "", 0  # of a named call that is not told yet; where its arguments begin

    def _without_object(self, events: list[Event]) -> bool:
        tag = len(self._tag)
        named = _NAMED.match(self._buffer, tag)
        if named is not None:
            self._name, self._begin, self._value = named[1], named.end(), ValueScanner()
            self._scanned = self._begin
            if not self._whole:
                events.append(CallName(self._name))
                self.called()
                self._buffer = self._buffer[self._begin :]
            self._state = "held" if self._whole else "arguments"
            return True
        if _NAMED_SO_FAR.fullmatch(self._buffer, tag):
            return False
        return super()._without_object(events)

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

    def _in_held(self, events: list[Event]) -> bool:
        """The arguments of a named call, which is told when they are complete."""
        assert self._value is not None
        self._scanned = self._value.feed(self._buffer, self._scanned)
        if self._value.status is not Status.DONE:
            return False
        arguments = self._buffer[self._begin : self._scanned]
        if is_json_object(arguments):
            events += [CallName(self._name), CallArguments(arguments)]
            self.called()
            self._buffer = self._buffer[self._scanned :]
        else:
            self.give_up(len(self._tag), events)
        self._state = "text"
        return True
