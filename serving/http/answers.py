"""One answer of a chat model as it grows: what its text means, and the tool calls' ids."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator, Sequence

from jaxinfer.outputs import Delta
from jaxinfer.text import Tokenizer
from jaxinfer.text.answer_reading import end_of_prompt
from jaxinfer.text.answers import CallArguments, CallName, OutputParser, OutputParserNames, Reasoning
from serving.http.parts import Part, PartedAnswer, joined
from serving.http.tokens import ShownTokens, Token

_LETTERS = string.ascii_letters + string.digits
_STEPS_AT_A_TIME = 2048  # of `Pace`
_STEPS_PER_PUSH = 16


def new_call_id(form: OutputParserNames, prefix: str = "call_") -> str:
    """Mistral's chat templates insist on nine letters and digits when the id comes back."""
    if form.tool_calls == "mistral":
        return "".join(secrets.choice(_LETTERS) for _ in range(9))
    return prefix + secrets.token_hex(12)


def reasoning_begun(form: OutputParserNames, tokenizer: Tokenizer, prompt: tuple[int, ...]) -> bool:
    """Whether the chat template has opened the reasoning for the model."""
    end, turn = end_of_prompt(form, tokenizer, prompt)
    return form.begun(end, turn=turn)


def kept_tokens(form: OutputParserNames, tokenizer: Tokenizer | None, *, tools: bool) -> frozenset[int]:
    """Special tokens that the parsers must see. tools: some are offered."""
    if tokenizer is None:
        return frozenset()
    found = (tokenizer.token_id(mark) for mark in form.marks(tools=tools))
    return frozenset(index for index in found if index is not None)


class GrowingAnswer:
    """One of the n answers. Events of calls that are not wanted are dropped; hidden reasoning goes with its tokens.

    marks: the format's tags. shown: None where tokens need not be known. tells_tokens: the client is told of them, not
    only how many the reasoning has. single_call: only the first tool call counts.
    """

    def __init__(
        self,
        parser: OutputParser,
        tokenizer: Tokenizer,
        marks: Sequence[str],
        shown: ShownTokens | None,
        *,
        tells_tokens: bool,
        single_call: bool,
        with_reasoning: bool,
    ) -> None:
        self._parts = PartedAnswer(parser, marks)
        self._tokenizer = tokenizer
        self._shown = shown
        self._tells_tokens = tells_tokens
        self._untied = False  # text comes without its tokens
        self._single, self._with_reasoning = single_call, with_reasoning
        self._untold: list[str] = []  # reasoning whose tokens an output filter withholds, not counted yet
        self._untold_size = 0
        self._withheld = False
        self.calls = 0
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None

    def add(self, delta: Delta) -> Iterator[tuple[list[Part], int]]:
        """The parts of a delta, a bounded number of tokens and characters at a time, and how many steps of `Pace` they
        took. The finish reason is there with the last of them."""
        parts: list[Part] = []
        work = _STEPS_PER_PUSH
        self._withheld = delta.tokens > len(delta.token_ids)
        for text, token in self._given(delta):
            parts += self._wanted(self._parts.push_text(text) if self._untied else self._parts.push(text, token))
            if self._untold_size >= _STEPS_AT_A_TIME:
                self._count_untold()
            work += _STEPS_PER_PUSH + len(text)
            if token is not None and token.entry is not None:
                work += len(token.entry.top)
            if work >= _STEPS_AT_A_TIME:
                yield joined(parts), work
                parts, work = [], _STEPS_PER_PUSH
        if delta.finish_reason is not None:
            parts += self._wanted(self._parts.finish(cut=delta.finish_reason == "length"))
            called = self.calls and delta.finish_reason == "stop"
            self.finish_reason = "tool_calls" if called else delta.finish_reason
            self.stop_reason = delta.stop_reason
        yield joined(parts), work

    def _given(self, delta: Delta) -> Iterator[tuple[str, Token | None]]:
        # Tokens that nobody is told of are followed to the end of the reasoning, for their number.
        self._untied = self._untied or (not self._tells_tokens and (self._shown is None or self._parts.answering))
        if self._shown is not None and not self._untied:
            yield from self._shown.add(delta)
            return
        text = delta.text if self._shown is None else self._shown.rest(delta)
        for start in range(0, len(text), _STEPS_AT_A_TIME):
            yield text[start : start + _STEPS_AT_A_TIME], None

    def _wanted(self, parts: list[Part]) -> list[Part]:
        wanted: list[Part] = []
        for part in parts:
            event = part.event
            if isinstance(event, CallName):
                self.calls += 1
            if isinstance(event, Reasoning):
                if self._withheld:
                    self._untold.append(event.text)
                    self._untold_size += len(event.text)
                if not self._with_reasoning:
                    continue
            elif isinstance(event, CallName | CallArguments) and self._single and self.calls > 1:
                part = Part(None, part.tokens)
            if part.event is not None or part.tokens:
                wanted.append(part)
        return wanted

    @property
    def reasoning_tokens(self) -> int:
        """How many tokens the reasoning has; where they are withheld, about as many as its text has."""
        self._count_untold()
        return self._parts.reasoning_tokens

    def _count_untold(self) -> None:
        """A bounded text at a time, so a token at a cut may count twice."""
        text, self._untold, self._untold_size = "".join(self._untold), [], 0
        if text:
            self._parts.reasoning_tokens += len(self._tokenizer.encode(text, add_special_tokens=False))
