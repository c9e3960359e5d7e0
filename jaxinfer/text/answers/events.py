"""What parsers say, and how it adds up.

`at`: where an event's text begins in the answer, in characters, for parsers that tell; None: it is to be found there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

PUT_IN = -1  # as `at`: the text is none of the model's, a parser has put it between two of them


class Content(NamedTuple):
    """Text for the reader."""

    text: str
    at: int | None = None


class Reasoning(NamedTuple):
    """Text of the model's own deliberation."""

    text: str
    at: int | None = None


class CallName(NamedTuple):
    """A tool call begins."""

    name: str
    at: int | None = None


class CallArguments(NamedTuple):
    """More of the last call's arguments: JSON as the model wrote it, so it may be cut or invalid."""

    text: str
    at: int | None = None


Event = Content | Reasoning | CallName | CallArguments


@dataclass(slots=True)
class ToolCall:
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Answer:
    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)


def collect(events: Iterable[Event]) -> Answer:
    """The sum of a stream of events."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[tuple[str, list[str]]] = []
    for event in events:
        if isinstance(event, Content):
            content.append(event.text)
        elif isinstance(event, Reasoning):
            reasoning.append(event.text)
        elif isinstance(event, CallName):
            calls.append((event.name, []))
        else:
            calls[-1][1].append(event.text)
    return Answer("".join(content), "".join(reasoning), [ToolCall(name, "".join(parts)) for name, parts in calls])
