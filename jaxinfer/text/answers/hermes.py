"""Tool calls between tags: Hermes' (Qwen's, SmolLM3's) <tool_call>, and Granite's."""

from __future__ import annotations

from jaxinfer.text.answers.calls import ListedCallParser
from jaxinfer.text.answers.events import Event
from jaxinfer.text.answers.scanning import SPACE, could_start, find_tag
from jaxinfer.text.answers.spelling import CallSpelling, listed


class HermesParser(ListedCallParser):
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them, anywhere in the text.

    Between the tags there may be a list of such objects. The closing tag may be left out.
    """

    tags: tuple[str, ...] = ("<tool_call>",)
    closes: tuple[str, ...] = ("</tool_call>",)
    more_tags: tuple[str, ...] = closes
    spellings: tuple[CallSpelling, ...] = (
        CallSpelling('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", between="\n"),
        listed("<tool_call>[", "]</tool_call>"),
    )
    after = "close"

    def _in_close(self, events: list[Event]) -> bool:
        text = self._buffer.lstrip(SPACE + "}]")  # models write a bracket too many
        close = next((tag for tag in self.closes if text.startswith(tag)), None)
        if close is not None:
            self._buffer = text[len(close) :]
        elif not text or any(could_start(text, tag) for tag in self.closes):
            if not self._final:
                return False
            self._buffer = ""  # the answer was cut inside the closing tag
        self._state = "text"
        return bool(self._buffer)

    def _in_broken(self, events: list[Event]) -> bool:
        """Here a call has an end of its own."""
        found = find_tag(self._buffer, self.closes)
        if found is not None:
            self._buffer, self._state = self._buffer[found[0] + len(found[1]) :], "text"
            return True
        self._buffer = "" if self._final else self._buffer[-max(map(len, self.closes)) :]
        return False


class NemotronParser(HermesParser):
    """<TOOLCALL>[{"name": ..., "arguments": {...}}, ...]</TOOLCALL>: Nemotron Nano 2, Llama-Nemotron."""

    tags = ("<TOOLCALL>",)
    closes = ("</TOOLCALL>",)
    more_tags = closes
    spellings = (listed("<TOOLCALL>[", "]</TOOLCALL>"),)


class GraniteParser(HermesParser):
    """<|tool_call|> or <tool_call>, then a list of objects, usually without a closing tag: Granite 3, Phi-4-mini."""

    tags: tuple[str, ...] = ("<|tool_call|>", "<tool_call>")
    closes: tuple[str, ...] = ("<|/tool_call|>", "</tool_call>")
    more_tags: tuple[str, ...] = closes
    spellings: tuple[CallSpelling, ...] = (
        listed("<|tool_call|>[", "]"),
        listed("<tool_call>[", "]"),
        listed("<|tool_call|>[", "]<|/tool_call|>"),
    )


class Phi4MiniParser(GraniteParser):
    """functools[{"name": ..., "arguments": {...}}, ...]: Phi-4-mini with vLLM's template, and without."""

    tags = ("functools", "<|tool_call|>")
    closes = ("<|/tool_call|>",)
    more_tags = closes
    spellings = (listed("functools[", "]"), listed("<|tool_call|>[", "]<|/tool_call|>"))

    def _in_tagged(self, events: list[Event]) -> bool:
        if self._tag != "functools" or self._buffer == self._tag or self._buffer[len(self._tag)] == "[":
            return super()._in_tagged(events)
        return self._without_object(events)  # Python's module
