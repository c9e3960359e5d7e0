"""One answer of a chat model as it grows: what its text means, and the tool calls' ids."""

from __future__ import annotations

import secrets
import string

from jaxinfer.messages import TokenLogprobs
from jaxinfer.text import Tokenizer
from jaxinfer.text.answers import AnswerFormat, AnswerParser, CallArguments, CallName, Content, Event, Reasoning
from serving.stream import Piece

_LETTERS = string.ascii_letters + string.digits
_PROMPT_END = 16  # tokens at the end of a prompt in which an opened reasoning is looked for


def new_call_id(form: AnswerFormat) -> str:
    """Mistral's chat templates insist on nine letters and digits when the id comes back."""
    if form.tool_calls == "mistral":
        return "".join(secrets.choice(_LETTERS) for _ in range(9))
    return "call_" + secrets.token_hex(12)


def reasoning_begun(form: AnswerFormat, tokenizer: Tokenizer, prompt: tuple[int, ...]) -> bool:
    """Whether the chat template has opened the reasoning for the model."""
    if form.reasoning == "none":
        return False
    end = prompt[-_PROMPT_END:]
    tags = {tokenizer.token_id(mark) for mark in form.marks(tools=False)}
    turn = next(
        (i for i in range(len(end), 0, -1) if tokenizer.is_special(end[i - 1]) and end[i - 1] not in tags), None
    )
    if turn is not None:  # behind the last special token only the answer's own turn stands
        return form.begun(tokenizer.decode(end[turn:], skip_special_tokens=False), turn=True)
    return form.begun(tokenizer.decode(end, skip_special_tokens=False))


def kept_tokens(form: AnswerFormat, tokenizer: Tokenizer | None, *, tools: bool) -> frozenset[int]:
    """Special tokens that the parsers must see. tools: some are offered."""
    if tokenizer is None:
        return frozenset()
    found = (tokenizer.token_id(mark) for mark in form.marks(tools=tools))
    return frozenset(index for index in found if index is not None)


class GrowingAnswer:
    """One of the n answers. `add` returns the events of a piece; events of calls that are not wanted are dropped.

    single_call: only the first tool call counts.
    """

    def __init__(self, parser: AnswerParser, *, single_call: bool, with_reasoning: bool) -> None:
        self._parser = parser
        self._single, self._with_reasoning = single_call, with_reasoning
        self.calls = 0
        self.reasoning: list[str] = []  # all of it, wanted or not: its tokens are counted
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None

    def add(self, piece: Piece) -> list[Event]:
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs
        text = "".join(piece.text)
        if self._parser.trivial:
            events: list[Event] = [Content(text)] if text else []
        else:
            events = self._parser.push(text)
            if piece.finish_reason is not None:
                events += self._parser.finish()
            events = self._wanted(events)
        if piece.finish_reason is not None:
            called = self.calls and piece.finish_reason == "stop"
            self.finish_reason = "tool_calls" if called else piece.finish_reason
            self.stop_reason = piece.stop_reason
        return events

    def _wanted(self, events: list[Event]) -> list[Event]:
        wanted: list[Event] = []
        for event in events:
            if isinstance(event, CallName):
                self.calls += 1
            if isinstance(event, Reasoning):
                self.reasoning.append(event.text)
                if not self._with_reasoning:
                    continue
            elif isinstance(event, CallName | CallArguments) and self._single and self.calls > 1:
                continue
            wanted.append(event)
        return wanted

    def take(self) -> tuple[list[int], list[TokenLogprobs]]:
        """Token ids and log-probabilities since the last call."""
        taken = self.token_ids, self.logprobs
        self.token_ids, self.logprobs = [], []
        return taken

    def reasoning_tokens(self, tokenizer: Tokenizer | None) -> int:
        """How long the reasoning is, as the tokenizer cuts its text."""
        if not self.reasoning or tokenizer is None:
            return 0
        return len(tokenizer.encode("".join(self.reasoning), add_special_tokens=False))


def joined(events: list[Event]) -> list[Event]:
    """The same events with neighbours of one kind as one."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, CallName) or isinstance(last, CallName) or type(event) is not type(last):
            result.append(event)
        else:
            assert last is not None
            result[-1] = type(event)(last.text + event.text)
    return result
