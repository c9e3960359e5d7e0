"""Which format a model writes, and the parser for one answer in it."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from jaxinfer.text.answers.calls import CallParser, HermesParser
from jaxinfer.text.answers.events import Content, Event
from jaxinfer.text.answers.llama3 import Llama3Parser
from jaxinfer.text.answers.mistral import MistralParser
from jaxinfer.text.answers.reasoning import ReasoningSplitter, ReasoningTags
from jaxinfer.text.answers.scanning import SPACE

_CALLS: dict[str, type[CallParser]] = {"hermes": HermesParser, "llama3": Llama3Parser, "mistral": MistralParser}
_REASONING = {"think": ReasoningTags("<think>", "</think>"), "mistral": ReasoningTags("[THINK]", "[/THINK]")}

TOOL_CALL_PARSERS = ("auto", "none", *_CALLS)
REASONING_PARSERS = ("auto", "none", *_REASONING)

# A chat template that writes one of these into the conversation belongs to a model that writes them too.
_CALL_MARKS = (("hermes", "<tool_call>"), ("mistral", "[TOOL_CALLS]"), ("llama3", "<|python_tag|>"))


class AnswerFormat(NamedTuple):
    """tool_calls: "hermes", "llama3", "mistral" or "none". reasoning: "think", "mistral" or "none"."""

    tool_calls: str = "none"
    reasoning: str = "none"

    @property
    def tags(self) -> ReasoningTags | None:
        """What stands around the reasoning; None where there is none."""
        return _REASONING.get(self.reasoning)

    def splitter(self, *, begun: bool, tools: Collection[str] | None = None) -> ReasoningSplitter:
        """What tells reasoning from answer, for one answer. Raises ValueError where the model writes no reasoning.

        Arguments are those of AnswerParser.
        """
        if self.tags is None:
            raise ValueError("this format has no reasoning")
        return ReasoningSplitter(self.tags, begun=begun)

    def marks(self, *, tools: bool) -> tuple[str, ...]:
        """Strings that must stay in the text for the parsers, though they may be special tokens. tools: some are
        offered; without any nothing is a call."""
        calls = _CALLS.get(self.tool_calls) if tools else None
        return (
            *(_REASONING.get(self.reasoning) or ()),
            *((*calls.tags, *calls.more_tags) if calls is not None else ()),
        )

    def begun(self, prompt_end: str) -> bool:
        """Whether a prompt that ends with this text has opened the reasoning already."""
        tags = _REASONING.get(self.reasoning)
        return tags is not None and prompt_end.rstrip().endswith(tags.open)


def answer_format(tool_calls: str, reasoning: str, template: str | dict[str, str] | None) -> AnswerFormat:
    """Settles "auto" by what the model's chat template (its source, or name -> source) contains.

    Llama 3's templates spell "parameters" without the tag where the model answers with bare JSON.
    """
    source = "\n".join(template.values()) if isinstance(template, dict) else template or ""
    if tool_calls == "auto":
        tool_calls = next((name for name, mark in _CALL_MARKS if mark in source), "none")
        if tool_calls == "none" and "<|start_header_id|>" in source and "parameters" in source:
            tool_calls = "llama3"
    if reasoning == "auto":
        reasoning = next((name for name, tags in _REASONING.items() if tags.close in source), "none")
    for name, value, known in (
        ("tool_calls", tool_calls, ("none", *_CALLS)),
        ("reasoning", reasoning, ("none", *_REASONING)),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
    return AnswerFormat(tool_calls, reasoning)


class AnswerParser:
    """Follows one answer. `push` and `finish` return what became certain.

    tools: names of the tools that the request offers; None: it offers none, and then nothing is a call.
    begun: the prompt has opened the reasoning (see `AnswerFormat.begun`).
    """

    def __init__(self, form: AnswerFormat, *, tools: Collection[str] | None, begun: bool = False) -> None:
        calls = _CALLS.get(form.tool_calls) if tools is not None else None
        self._reasoning = None if form.tags is None else form.splitter(begun=begun, tools=tools)
        self._calls = None if calls is None else calls(tools or ())
        self._after_space = False  # the text so far ends in white space
        self._space: list[str] = []  # further white space, which no parser has seen yet

    @property
    def trivial(self) -> bool:
        """All text is content."""
        return self._reasoning is None and self._calls is None

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
        return (self._reasoning is None or self._reasoning.settled) and (self._calls is None or self._calls.settled)

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
