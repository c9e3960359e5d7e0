"""The formats by name, and the parser for one answer in them."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import NamedTuple

from jaxinfer.text.answers.calls import CallParser
from jaxinfer.text.answers.events import Content, Event
from jaxinfer.text.answers.hermes import GraniteParser, HermesParser
from jaxinfer.text.answers.llama3 import Llama3Parser
from jaxinfer.text.answers.mistral import MistralParser
from jaxinfer.text.answers.reasoning import ReasoningSplitter, ReasoningTags
from jaxinfer.text.answers.scanning import SPACE

CALL_FORMATS: dict[str, type[CallParser]] = {
    "hermes": HermesParser,
    "llama3": Llama3Parser,
    "mistral": MistralParser,
    "granite": GraniteParser,
}
REASONING_FORMATS = {
    "think": ReasoningTags("<think>", "</think>"),
    "mistral": ReasoningTags("[THINK]", "[/THINK]"),
    # Granite 3.3's tags, and the sentences of 3.2, also as quantized models shorten them.
    "granite": ReasoningTags(
        "<think>",
        "</think>",
        ("Here is my thought process:", "Here's my thought process:"),
        ("Here is my response:", "Here's my response:"),
        ("<response>", "</response>"),
    ),
}

TOOL_CALL_PARSERS = ("auto", "none", *CALL_FORMATS)
REASONING_PARSERS = ("auto", "none", *REASONING_FORMATS)


class OutputParserNames(NamedTuple):
    """What a model writes.

    tool_calls, reasoning: a name of `CALL_FORMATS` and of `REASONING_FORMATS`, or "none".
    unopened: answers begin inside the reasoning, though the prompt does not open it.
    """

    tool_calls: str = "none"
    reasoning: str = "none"
    unopened: bool = False

    @property
    def tags(self) -> ReasoningTags | None:
        """What stands around the reasoning; None where there is none."""
        return REASONING_FORMATS.get(self.reasoning)

    def marks(self, *, tools: bool) -> tuple[str, ...]:
        """Strings that must stay in the text for the parsers, though they may be special tokens. tools: some are
        offered; without any nothing is a call."""
        calls = CALL_FORMATS.get(self.tool_calls) if tools else None
        return (
            *(self.tags.all if self.tags is not None else ()),
            *((*calls.tags, *calls.more_tags) if calls is not None else ()),
        )

    def begun(self, prompt_end: str, *, turn: bool = False) -> bool:
        """Whether an answer to a prompt that ends with this text begins inside the reasoning.

        turn: the text is the beginning of the answer's own turn, so an opening tag in it may have words behind it.
        """
        tags = self.tags
        if tags is None:
            return False
        end = prompt_end.rstrip()
        if turn and (tags.open in end or tags.close in end):
            return end.rfind(tags.open) > end.rfind(tags.close)
        return end.endswith(tags.open) or (self.unopened and not end.endswith(tags.close))

    def splitter(
        self, *, tools: Collection[str] | None, begun: bool = False, whole: bool = False
    ) -> ReasoningSplitter | None:
        """What tells reasoning from answer, for one answer; None where the model writes no reasoning. Arguments are
        those of OutputParser."""
        if self.tags is None:
            return None
        calls = CALL_FORMATS.get(self.tool_calls) if tools is not None else None
        new_calls = None if calls is None else partial(calls, tools or (), whole=True)
        return ReasoningSplitter(self.tags, begun=begun, new_calls=new_calls, whole=whole)


class OutputParser:
    """Follows one answer. `push` and `finish` return what became certain.

    tools: names of the tools that the request offers; None: it offers none, and then nothing is a call.
    begun: the answer begins inside the reasoning (see `OutputParserNames.begun`).
    whole: the answer is given whole, so whatever only its end can tell is judged by that: calls whose arguments are no
        JSON object are content, and a closing tag alone ends a reasoning. A stream cannot take back what it told.
    """

    def __init__(
        self, form: OutputParserNames, *, tools: Collection[str] | None, begun: bool = False, whole: bool = False
    ) -> None:
        calls = CALL_FORMATS.get(form.tool_calls) if tools is not None else None
        self._reasoning = form.splitter(tools=tools, begun=begun, whole=whole)
        self._calls = None if calls is None else calls(tools or (), whole=whole)
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

    def finish(self) -> list[Event]:
        events: list[Event] = []
        space = "".join(self._space)
        self._push_rest(space if self._reasoning is None else self._reasoning.push(space, events), events)
        if self._reasoning is not None:
            self._push_rest(self._reasoning.finish(events), events)
        if self._calls is not None:
            self._calls.finish(events)
        return events

    def _push_rest(self, text: str, events: list[Event]) -> None:
        if not text:
            return
        if self._calls is not None:
            self._calls.push(text, events)
        else:
            events.append(Content(text))
