"""Reasoning between tags, at the start of an answer."""

from __future__ import annotations

from typing import NamedTuple

from jaxinfer.text.answers.events import Event, Reasoning
from jaxinfer.text.answers.scanning import SPACE, could_start, find_tag, settled


class ReasoningTags(NamedTuple):
    open: str
    close: str


class ReasoningSplitter:
    """Takes reasoning off the front of a text; what follows is returned for the next parser.

    White space around the reasoning belongs to neither. begun: the prompt already ends with the opening tag.
    """

    def __init__(self, tags: ReasoningTags, *, begun: bool) -> None:
        self._tags = tags
        self._buffer = ""
        self._state = "reasoning" if begun else "start"
        self._fresh = True  # nothing of the current part has been told yet

    @property
    def reasoning(self) -> bool:
        """Whether the text is inside the tags now."""
        return self._state == "reasoning"

    @property
    def settled(self) -> bool:
        """No text waits."""
        return not self._buffer

    @property
    def undecided(self) -> int:
        """Characters at the end of the text so far that are neither told nor returned yet."""
        return len(self._buffer)

    def push(self, text: str, events: list[Event]) -> str:
        if self._state == "rest" and not self._fresh:
            return text
        self._buffer += text
        if self._state == "start":
            self._start()
        if self._state == "reasoning":
            self._reason(events)
        return self._rest()

    def finish(self, events: list[Event]) -> str:
        rest = ""
        if self._state == "start":
            rest = self._buffer
        elif self._state == "reasoning" and self._buffer.strip(SPACE):
            text = self._buffer.rstrip(SPACE)
            events.append(Reasoning(text.lstrip(SPACE) if self._fresh else text))
        self._state, self._buffer = "rest", ""
        return rest

    def _start(self) -> None:
        text = self._buffer.lstrip(SPACE)
        if text.startswith(self._tags.open):
            self._state, self._buffer = "reasoning", text[len(self._tags.open) :]
        elif text and not could_start(text, self._tags.open):
            self._state, self._fresh = "rest", False

    def _reason(self, events: list[Event]) -> None:
        if self._fresh:
            self._buffer = self._buffer.lstrip(SPACE)
            while self._buffer.startswith(self._tags.open):  # some models repeat the tag that the prompt gave them
                self._buffer = self._buffer[len(self._tags.open) :].lstrip(SPACE)
            if not self._buffer or could_start(self._buffer, self._tags.open):
                return
        found = find_tag(self._buffer, [self._tags.close])
        end = settled(self._buffer, [self._tags.close]) if found is None else found[0]
        told = self._buffer[:end] if found is None else self._buffer[:end].rstrip(SPACE)
        if told:
            events.append(Reasoning(told))
            self._fresh = False
        if found is None:
            self._buffer = self._buffer[end:]
        else:
            self._buffer = self._buffer[end + len(self._tags.close) :]
            self._state, self._fresh = "rest", True

    def _rest(self) -> str:
        """What is left once the reasoning is over; white space right behind it is dropped."""
        if self._state != "rest":
            return ""
        rest, self._buffer = self._buffer, ""
        if self._fresh:
            rest = rest.lstrip(SPACE)
            self._fresh = not rest
        return rest
