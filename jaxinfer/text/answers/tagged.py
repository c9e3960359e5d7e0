"""The parser for one answer whose reasoning and calls stand between tags."""

from __future__ import annotations

from jaxinfer.text.answers.calls import CallParser
from jaxinfer.text.answers.events import Content, Event
from jaxinfer.text.answers.reasoning import ReasoningSplitter
from jaxinfer.text.answers.scanning import SPACE


class TaggedParser:
    """Reasoning is taken off the front, calls are found in what follows; either may be None."""

    def __init__(self, reasoning: ReasoningSplitter | None, calls: CallParser | None) -> None:
        self._reasoning, self._calls = reasoning, calls
        self._after_space = False  # the text so far ends in white space
        self._space: list[str] = []  # further white space, which no parser has seen yet

    @property
    def reasoning(self) -> bool:
        """Whether the text so far ends within the reasoning (a closing tag that is not complete is within)."""
        return self._reasoning is not None and self._reasoning.reasoning

    @property
    def reasons(self) -> bool:
        """Whether the format has reasoning."""
        return self._reasoning is not None

    @property
    def settled(self) -> bool:
        """No text waits for more: all of it was told, or recognised as a tag."""
        parsers = (self._reasoning, self._calls)
        return not self._space and all(parser is None or parser.settled for parser in parsers)

    def push(self, text: str) -> list[Event]:
        events: list[Event] = []
        if self._after_space and not text.strip(SPACE):
            self._space.append(text)  # nothing becomes certain by more of it, and a model may write a lot
            return events
        self._after_space = text.endswith(tuple(SPACE))
        if self._space:
            text = "".join([*self._space, text])
            self._space.clear()
        if self._reasoning is not None:
            text = self._reasoning.push(text, events)
        self._push_rest(text, events)
        return events

    def finish(self, *, cut: bool = False) -> list[Event]:
        """cut: see CallParser.finish."""
        events: list[Event] = []
        space = "".join(self._space)
        self._push_rest(space if self._reasoning is None else self._reasoning.push(space, events), events)
        if self._reasoning is not None:
            self._push_rest(self._reasoning.finish(events), events)
        if self._calls is not None:
            self._calls.finish(events, cut=cut)
        return events

    def _push_rest(self, text: str, events: list[Event]) -> None:
        if not text:
            return
        if self._calls is not None:
            self._calls.push(text, events)
        else:
            events.append(Content(text))
