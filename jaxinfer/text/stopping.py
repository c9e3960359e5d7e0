"""Where in a sequence's text stop strings count: not in its first tokens (min_tokens), not in its reasoning."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import NamedTuple

from jaxinfer.text.answers import AnswerSplitter, Event, OutputParserNames
from jaxinfer.text.answers.scanning import SPACE
from jaxinfer.text.stop import Held, StopStrings


class AnswerReading(NamedTuple):
    """How the answers to one request are read by whoever parses them.

    tools: the tools that it offers (see OutputParser), None for none. begun: answers begin inside the reasoning
    (`OutputParserNames.begun`). over: the prompt has closed it.
    """

    form: OutputParserNames
    tools: Collection[str] | None = None
    begun: bool = False
    over: bool = False

    def splitter(self) -> AnswerSplitter | None:
        """What finds the reasoning of one answer; None where the model writes none."""
        return self.form.splitter(tools=self.tools, begun=self.begun)


class AnswerStops:
    """Stop strings of one sequence, over the text as the model writes it.

    **Reasoning.** With a splitter, what it takes for reasoning passes, and so do its tags and the white space around
    it: a stop string that stands or begins there is none, since it is the answer that a client stops. Where the model
    does not reason the text counts from its beginning; a few characters are held back until that is known.

    **The first tokens.** Unless `opened`, a stop string counts from `open` on: it may begin earlier, but must end
    later. So does vLLM 0.32 (v1/engine/detokenizer.py).

    Args:
        stops: for the answer.
        splitter: of this sequence alone; None where the model is not known to reason.
        opened: stop strings count from the beginning.
    """

    def __init__(self, stops: StopStrings, splitter: AnswerSplitter | None, *, opened: bool = True) -> None:
        self._stops = stops
        self._splitter = splitter  # until the answer begins
        self._length = 0  # characters of the text so far
        self._before = 0  # of them in front of the answer
        self._open_at = 0 if opened else sys.maxsize
        self._held = Held()  # text of which the splitter has not said what it is
        self._space: list[str] = []  # white space that came last, which the splitter has not seen

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text; None as long as there is none."""
        return self._stops.matched

    def open(self, ahead: int) -> None:
        """From `ahead` characters behind the text so far stop strings count."""
        self._open_at = self._length + ahead

    def push(self, text: str) -> tuple[str, str | None]:
        """As `StopStrings.push`."""
        if self._splitter is None:
            self._length += len(text)
            return self._answer(text)
        self._held.add(text)
        events: list[Event] = []
        position = 0
        while position < len(text):
            # Where the answer may begin, one by one: so what is returned first is one stretch of the text, right before
            # what is undecided.
            begin, position = position, max(position + 1, self._splitter.reasons_until(text, position))
            stretch = text[begin:position]
            self._space.append(stretch)
            if not stretch.strip(SPACE):
                continue
            answer = self._splitter.push("".join(self._space), events)
            self._space.clear()
            if answer:
                self._length += position
                shown = self._begin(len(answer), self._splitter.undecided)
                held = self._held.take(self._length)
                self._length += len(text) - position
                more, match = self._answer(held + text[position:])
                return shown + more, match
        self._length += len(text)
        return self._held.take(self._length - self._splitter.undecided - len(self._space)), None

    def peek(self, text: str) -> str | None:
        """As `StopStrings.peek`."""
        if self._splitter is not None:
            return None
        self._stops.closed = max(0, self._open_at - self._before)
        return self._stops.peek(text)

    def finish(self, tail: str = "") -> str:
        """As `StopStrings.finish`. tail: what follows at the end, in which nothing is looked for."""
        shown, match = "", None
        if self._splitter is not None:
            events: list[Event] = []
            answer = self._splitter.push("".join(self._space), events) + self._splitter.finish(events)
            shown = self._begin(len(answer), self._splitter.undecided if answer else 0)
            rest, match = self._answer(self._held.take(self._length))
            shown += rest
        if match is None:
            shown += self._stops.finish()
        return shown if self.matched is not None else shown + tail

    def _begin(self, answer: int, undecided: int) -> str:
        """The answer begins: it has `answer` characters, and the text goes on with `undecided` ones. Returns what was
        still held of what comes before it."""
        self._splitter = None
        self._before = self._length - undecided - answer
        return self._held.take(self._before)

    def _answer(self, text: str) -> tuple[str, str | None]:
        self._stops.closed = max(0, self._open_at - self._before)
        return self._stops.push(text)
