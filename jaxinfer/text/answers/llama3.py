"""Llama 3's tool calls: a JSON object {"name": ..., "parameters": {...}} as the answer, or behind <|python_tag|>."""

from __future__ import annotations

from jaxinfer.text.answers.calls import CallParser
from jaxinfer.text.answers.events import Event
from jaxinfer.text.answers.scanning import SPACE, Status, could_start
from jaxinfer.text.answers.spelling import CallSpelling


class Llama3Parser(CallParser):
    """Without the tag only an answer that begins with such an object is a call, and only of a tool that was offered:
    a model may be asked for JSON. Several calls follow each other: between them are white space, semicolons,
    commas, the tag."""

    tags = ("<|python_tag|>",)
    spellings = (CallSpelling('{"name": "', '", "parameters": ', "}", between="; "),)
    start = "start"

    @property
    def within_call(self) -> bool:
        """An object without the tag is taken for a call once it names a tool."""
        named = self._state != "bare" or (self._scanner is not None and self._scanner.named)
        return super().within_call and named

    def _in_start(self, events: list[Event]) -> bool:
        text = self._buffer.lstrip(SPACE)
        if not text:
            return False
        self._state = "bare" if text.startswith("{") else "text"
        self.give_up(len(self._buffer) - len(text), events)
        return True

    def _in_bare(self, events: list[Event]) -> bool:
        return self._call(0, events, strict=True)

    def _in_text(self, events: list[Event]) -> bool:
        if self.skim(events) is None:
            return False
        self._state = "tagged"
        return True

    def _in_tagged(self, events: list[Event]) -> bool:
        return self._call(len(self.tags[0]), events, strict=False)

    def _call(self, offset: int, events: list[Event], *, strict: bool) -> bool:
        status = self.scan(offset, events, strict=strict)
        if status is Status.OPEN:
            return False
        if status is Status.DONE:
            self._state = "after"
        elif not self._told:
            self.give_up(offset + 1 if strict else offset, events)
            self._state = "text"
        else:  # the call was told already; what is left of it means nothing
            self._state = "broken"
        return True

    def _in_after(self, events: list[Event]) -> bool:
        text = self._buffer.lstrip(SPACE + ";,")
        if text.startswith("{"):
            self._buffer, self._state = text, "bare"
        elif text and not could_start(text, self.tags[0]):
            self._state = "text"
        elif self._final:
            self._buffer = ""  # a separator, or the beginning of the next call's tag: the answer was cut there
            return False
        else:
            return False
        return True
