"""The formats by name, and the parser for one answer in them."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import NamedTuple, Protocol

from jaxinfer.text.answers.calls import CallParser
from jaxinfer.text.answers.deepseek import (
    DeepSeekV3Parser,
    DeepSeekV4Parser,
    DeepSeekV31Parser,
    DeepSeekV32Parser,
    DeepSeekV41Parser,
)
from jaxinfer.text.answers.events import Event
from jaxinfer.text.answers.gemma4 import Gemma4Parser
from jaxinfer.text.answers.harmony import HarmonyParser, HarmonySplitter
from jaxinfer.text.answers.harmony_header import TAGS, answering
from jaxinfer.text.answers.harmony_header import begun as harmony_begun
from jaxinfer.text.answers.hermes import GraniteParser, HermesParser, NemotronParser, Phi4MiniParser
from jaxinfer.text.answers.kimi import KimiK2Parser
from jaxinfer.text.answers.llama3 import Llama3Parser
from jaxinfer.text.answers.mistral import MistralParser
from jaxinfer.text.answers.reasoning import ReasoningSplitter, ReasoningTags
from jaxinfer.text.answers.spelling import CallSpelling
from jaxinfer.text.answers.tagged import TaggedParser
from jaxinfer.text.answers.xml_calls import GlmParser, MiniMaxM2Parser, Qwen3XmlParser, SeedOssParser

CALL_FORMATS: dict[str, type[CallParser]] = {
    "hermes": HermesParser,
    "llama3": Llama3Parser,
    "mistral": MistralParser,
    "granite": GraniteParser,
    "qwen3_xml": Qwen3XmlParser,
    "glm45": GlmParser,
    "gemma4": Gemma4Parser,
    "nemotron": NemotronParser,
    "phi4_mini": Phi4MiniParser,
    "deepseek_v3": DeepSeekV3Parser,
    "deepseek_v31": DeepSeekV31Parser,
    "deepseek_v32": DeepSeekV32Parser,
    "deepseek_v4": DeepSeekV4Parser,
    "deepseek_v41": DeepSeekV41Parser,
    "kimi_k2": KimiK2Parser,
    "minimax_m2": MiniMaxM2Parser,
    "seed_oss": SeedOssParser,
}
REASONING_FORMATS = {
    "think": ReasoningTags("<think>", "</think>"),
    "mistral": ReasoningTags("[THINK]", "[/THINK]"),
    "gemma4": ReasoningTags("<|channel>thought", "<channel|>", tokens=("<|channel>",)),
    "seed_oss": ReasoningTags("<seed:think>", "</seed:think>"),
    # Granite 3.3's tags, and the sentences of 3.2, also as quantized models shorten them.
    "granite": ReasoningTags(
        "<think>",
        "</think>",
        ("Here is my thought process:", "Here's my thought process:"),
        ("Here is my response:", "Here's my response:"),
        ("<response>", "</response>"),
    ),
}

# One format for both: gpt-oss's.
HARMONY = "harmony"
TOOL_CALL_NAMES = (*CALL_FORMATS, HARMONY)
# How models write their calls; the first is the usual one.
CALL_SPELLINGS: dict[str, tuple[CallSpelling, ...]] = {
    **{name: parser.spellings for name, parser in CALL_FORMATS.items()},
    HARMONY: HarmonyParser.spellings,
}
REASONING_NAMES = (*REASONING_FORMATS, HARMONY)
# vLLM's names of formats that have another name here.
TOOL_CALL_ALIASES = {
    "openai": HARMONY,
    "qwen3_json": "hermes",
    "granite4": "hermes",
    "llama3_json": "llama3",
    "llama4_json": "llama3",
    "qwen3_coder": "qwen3_xml",
    "glm47": "glm45",
    "nemotron_json": "nemotron",
    "phi4_mini_json": "phi4_mini",
}
REASONING_ALIASES = {
    "openai_gptoss": HARMONY,
    **dict.fromkeys(
        (
            *("qwen3", "deepseek_r1", "deepseek_v3", "deepseek_v4", "deepseek_v41", "glm45", "glm47", "holo2"),
            *("nemotron_v3", "granite_thinking_parser", "kimi_k2", "minimax_m2"),
        ),
        "think",
    ),
}

TOOL_CALL_PARSERS = ("auto", "none", *TOOL_CALL_NAMES, *TOOL_CALL_ALIASES)
REASONING_PARSERS = ("auto", "none", *REASONING_NAMES, *REASONING_ALIASES)


class AnswerSplitter(Protocol):
    """Passes everything up to the answer; what `push` and `finish` return is the answer's (see ReasoningSplitter)."""

    @property
    def undecided(self) -> int: ...
    def reasons_until(self, text: str, start: int) -> int: ...
    def push(self, text: str, events: list[Event]) -> str: ...
    def finish(self, events: list[Event]) -> str: ...


class OutputParserNames(NamedTuple):
    """What a model writes.

    tool_calls, reasoning: one of `TOOL_CALL_NAMES` and one of `REASONING_NAMES`, or "none".
    unopened: answers begin inside the reasoning, though the prompt does not open it.
    variant: which of the format's spellings the model's template has (see `spelling`).
    exact: a grammar makes the answers keep to the formats, so nothing in them need be guessed.
    forced: a format for calls that a grammar makes a model write whose template shows none; "" where there is none.
    """

    tool_calls: str = "none"
    reasoning: str = "none"
    unopened: bool = False
    variant: int = 0
    exact: bool = False
    forced: str = ""

    @property
    def spelling(self) -> CallSpelling | None:
        """How the model writes calls; None where it writes none."""
        return None if self.tool_calls == "none" else CALL_SPELLINGS[self.tool_calls][self.variant]

    @property
    def call_tags(self) -> tuple[str, ...]:
        """What a call begins with; none where there are no tags for that."""
        return CALL_FORMATS[self.tool_calls].tags if self.tool_calls in CALL_FORMATS else ()

    @property
    def is_harmony(self) -> bool:
        """Whether answers are messages in channels."""
        return HARMONY in (self.tool_calls, self.reasoning)

    @property
    def tags(self) -> ReasoningTags | None:
        """What stands around the reasoning; None where there is none, or no tags around it."""
        return REASONING_FORMATS.get(self.reasoning)

    def marks(self, *, tools: bool) -> tuple[str, ...]:
        """Strings that must stay in the text for the parsers, though they may be special tokens. tools: some are
        offered; without any nothing is a call."""
        if self.is_harmony:
            return TAGS
        calls = CALL_FORMATS.get(self.tool_calls) if tools else None
        return (
            *(self.tags.all if self.tags is not None else ()),
            *((*calls.tags, *calls.more_tags) if calls is not None else ()),
        )

    def begun(self, prompt_end: str, *, turn: bool = False) -> bool:
        """Whether an answer to a prompt that ends with this text begins inside the reasoning.

        turn: the text is the beginning of the answer's own turn, so an opening tag in it may have words behind it.
        """
        if self.is_harmony:
            return harmony_begun(prompt_end)
        tags = self.tags
        if tags is None:
            return False
        end = prompt_end.rstrip()
        if turn and (tags.open in end or tags.close in end):
            return end.rfind(tags.open) > end.rfind(tags.close)
        return end.endswith(tags.open) or (self.unopened and not end.endswith(tags.close))

    def over(self, prompt_end: str) -> bool:
        """Whether the prompt that ends with this text has closed the reasoning, so that the answer itself follows."""
        if self.is_harmony:
            return answering(prompt_end)
        tags = self.tags
        return tags is not None and prompt_end.rstrip().endswith(tags.closes)

    def splitter(self, *, tools: Collection[str] | None, begun: bool = False) -> AnswerSplitter | None:
        """What tells reasoning from answer, for one answer; None where the model writes no reasoning. Arguments are
        those of OutputParser."""
        if self.is_harmony:
            return HarmonySplitter(self.harmony(tools=tools, begun=begun))
        return self.tagged_splitter(tools=tools, begun=begun)

    def harmony(self, *, tools: Collection[str] | None, begun: bool = False, whole: bool = False) -> HarmonyParser:
        """The parser of one answer that is messages in channels."""
        offered = tools if self.tool_calls == HARMONY else None
        reasons = self.reasoning == HARMONY
        return HarmonyParser(offered, begun=begun, whole=whole, reasons=reasons, exact=self.exact)

    def tagged_splitter(
        self, *, tools: Collection[str] | None, begun: bool = False, whole: bool = False
    ) -> ReasoningSplitter | None:
        """As `splitter`, where tags stand around the reasoning."""
        if self.tags is None:
            return None
        if self.exact:  # it is between the tags, whatever else looks like one or like a call
            return ReasoningSplitter(self.tags, begun=begun)
        calls = CALL_FORMATS.get(self.tool_calls) if tools is not None else None
        new_calls = None if calls is None else partial(calls, tools or (), whole=True)
        return ReasoningSplitter(self.tags, begun=begun, new_calls=new_calls, whole=whole)


class OutputParser:
    """Follows one answer. `push` and `finish` return what became certain.

    tools: names of the tools that the request offers, best with their parameters' JSON schemas (name -> schema), which
        some formats need to tell texts from other values; None: it offers none, and then nothing is a call.
    begun: the answer begins inside the reasoning (see `OutputParserNames.begun`).
    whole: the answer is given whole, so whatever only its end can tell is judged by that: calls whose arguments are no
        JSON object are content, and a closing tag alone ends a reasoning. A stream cannot take back what it told.
    """

    def __init__(
        self, form: OutputParserNames, *, tools: Collection[str] | None, begun: bool = False, whole: bool = False
    ) -> None:
        self._parser: HarmonyParser | TaggedParser
        if form.is_harmony:
            self._parser = form.harmony(tools=tools, begun=begun, whole=whole)
        else:
            calls = CALL_FORMATS.get(form.tool_calls) if tools is not None else None
            self._parser = TaggedParser(
                form.tagged_splitter(tools=tools, begun=begun, whole=whole),
                None if calls is None else calls(tools or (), whole=whole),
            )

    @property
    def reasoning(self) -> bool:
        """Whether the text so far ends within the reasoning (a closing tag that is not complete is within)."""
        return self._parser.reasoning

    @property
    def reasons(self) -> bool:
        """Whether the format has reasoning."""
        return self._parser.reasons

    @property
    def settled(self) -> bool:
        """No text waits for more: all of it was told, or recognised as a tag."""
        return self._parser.settled

    def push(self, text: str) -> list[Event]:
        return self._parser.push(text)

    def finish(self, *, cut: bool = False) -> list[Event]:
        """cut: the answer was cut off (by max_tokens), so a call that is not complete says nothing. Otherwise the model
        has ended there itself, and it is text."""
        return self._parser.finish(cut=cut)
