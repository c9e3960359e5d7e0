"""Which part of an answer each token belongs to.

A token belongs to the part in which it begins, but reasoning takes every token that spells some of it: where reasoning
is hidden, so are its tokens. Of the white space in front of the answer a token may spell some (" Hi"): it is the
answer's. Tags and what is around a call's name and arguments belong to the part they open or close, white space between
two parts to the reasoning or the call beside it. Tokens that are left at the end (the end token, what stands behind a
stop string) belong to none.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxinfer.text.answers import PUT_IN, CallArguments, CallName, Content, Event, OutputParser, Reasoning
from serving.http.tokens import Token


class Part(NamedTuple):
    """What was added to a part and its tokens. event: without text where only tags were added; None: no part."""

    event: Event | None
    tokens: list[Token]


class PartedAnswer:
    """Follows one answer. However it is cut, the parts add up to the same.

    Attributes:
        reasoning_tokens: how many tokens spell reasoning; tags do not count.
    """

    def __init__(self, parser: OutputParser, marks: Sequence[str]) -> None:
        """marks: the format's tags."""
        self._parser = parser
        self._marks = marks
        self._open: deque[Token] = deque()  # tokens that belong to no part yet
        self._texts: list[str] = []  # what they spell
        self._start = self._end = 0  # where that is in the answer, in characters
        self._last: Event | None = None
        self.reasoning_tokens = 0

    def push(self, text: str, token: Token | None) -> list[Part]:
        """token: the one that ends with the text; None where it is withheld."""
        was = self._parser.reasoning
        if token is not None:
            self._open.append(token)
        if not text:
            return []
        self._texts.append(text)
        self._end += len(text)
        events = self._parser.push(text)
        if len(events) == 1 and len(self._texts) == 1 and self._goes_on(events[0], text):
            self._texts, self._start = [], self._end
            tokens = list(self._open)
            self._open.clear()
            self.reasoning_tokens += len(tokens) if was else 0
            return [Part(events[0], tokens)]
        parts = self._assign(events)
        if was and not self._parser.reasoning and not self.answering:
            self._close(parts, Reasoning(""))
        elif isinstance(self._last, CallName | CallArguments) and self._parser.settled:
            self._close(parts, CallArguments(""))
        return parts

    def _goes_on(self, event: Event, text: str) -> bool:
        """Whether the text is more of the last part and nothing else: by far the most are."""
        return type(event) is type(self._last) and not isinstance(event, CallName) and event.text == text

    def push_text(self, text: str) -> list[Part]:
        """As `push`, where nobody wants to know of tokens from here on."""
        self._open.clear()
        self._texts, self._start = [], self._end
        parts = [Part(event, []) for event in self._parser.push(text)]
        if parts:
            self._last = parts[-1].event
        return parts

    def finish(self, *, cut: bool = False) -> list[Part]:
        """cut: see OutputParser.finish."""
        was = self._parser.reasoning
        parts = self._assign(self._parser.finish(cut=cut))
        if isinstance(self._last, CallName | CallArguments):
            self._close(parts, CallArguments(""))
        if self._open:
            parts.append(Part(Reasoning("") if was and not self.answering else None, list(self._open)))
            self._open.clear()
        return parts

    @property
    def answering(self) -> bool:
        """Something other than reasoning was told."""
        return isinstance(self._last, Content | CallName | CallArguments)

    def _close(self, parts: list[Part], event: Event) -> None:
        """What waits belongs to the last part: all that has text, and what precedes it."""
        tokens: list[Token] = []
        while any(token.begin < token.end for token in self._open):
            tokens.append(self._open.popleft())
        self._texts, self._start = [], self._end
        _give(parts, event, tokens)

    def _assign(self, events: list[Event]) -> list[Part]:
        if not events:
            return []
        window, base = "".join(self._texts), self._start
        parts: list[Part] = []
        places = _places(events, window, base, self._marks)
        reasoning = [
            base + begin for event, (begin, _) in zip(events, places, strict=True) if isinstance(event, Reasoning)
        ]
        for event, (begin, end) in zip(events, places, strict=True):
            if isinstance(event, Reasoning):
                reasoning.pop(0)
            after = reasoning[0] if reasoning else None
            last, self._last = self._last, event
            if last is not None and (
                isinstance(event, CallArguments) or (isinstance(event, Content) and not isinstance(last, Content))
            ):
                space = begin - len(window[:begin].rstrip()) if isinstance(last, Reasoning) else 0
                _give(parts, _closing(last), self._take(self._first_of(base + begin, space), after))
            tokens = self._take(base + end, after)
            if isinstance(event, Reasoning):
                begins = base + begin
                self.reasoning_tokens += sum(token.begin >= begins or token.end > begins for token in tokens)
            parts.append(Part(event, tokens))
        rest = window[places[-1][1] :]
        self._texts, self._start = [rest] if rest else [], base + places[-1][1]
        return parts

    def _first_of(self, begin: int, space: int) -> int:
        """Where the first token of a text begins that does so at `begin`, behind so many characters of white space: the
        same token may spell some of that, as in " Hi"."""
        first = next((token.begin for token in self._open if token.end > begin), begin)
        return first if first >= begin - space else begin

    def _take(self, end: int, reasoning: int | None) -> list[Token]:
        """The open tokens that begin before `end` and do not reach `reasoning`."""
        tokens: list[Token] = []
        while (
            self._open and self._open[0].begin < end and not (reasoning is not None and self._open[0].end > reasoning)
        ):
            tokens.append(self._open.popleft())
        return tokens


def _places(events: list[Event], window: str, base: int, marks: Sequence[str]) -> list[tuple[int, int]]:
    """Where each event's text stands in the window, which begins `base` characters into the answer. A tag may hold the
    same letters as a text behind it, so nothing is looked for inside of one. What is not there as it was told
    (arguments that were a string, what a parser has put in) gets no room."""
    tags = sorted((at, at + len(mark)) for mark in marks for at in _all(mark, window))
    places: list[tuple[int, int]] = []
    end = 0
    for i, event in enumerate(events):
        text = event.name if isinstance(event, CallName) else event.text
        if event.at == PUT_IN:  # in front of what follows
            following = events[i + 1].at if i + 1 < len(events) else None
            end = end if following is None or following == PUT_IN else following - base
            begin = -1
        elif event.at is not None:
            begin = event.at - base
        elif isinstance(event, CallName | CallArguments):
            begin = window.find(text, end)
        else:
            begin = next((at for at in _all(text, window, end) if not _cuts(at, at + len(text), tags)), -1)
        end = end if begin < 0 else begin + len(text)
        places.append((end if begin < 0 else begin, end))
    return places


def _all(text: str, window: str, start: int = 0) -> Iterator[int]:
    at = window.find(text, start)
    while at >= 0:
        yield at
        at = window.find(text, at + 1)


def _cuts(begin: int, end: int, tags: list[tuple[int, int]]) -> bool:
    """Whether a text would begin or end inside of a tag. tags: in order, none within another."""
    for place in (begin, end):
        before = bisect.bisect_left(tags, (place, 0)) - 1
        if before >= 0 and tags[before][1] > place:
            return True
    return False


def _closing(event: Event) -> Event:
    return Reasoning("") if isinstance(event, Reasoning) else CallArguments("")


def _give(parts: list[Part], event: Event, tokens: list[Token]) -> None:
    if not tokens:
        return
    if parts:
        parts[-1].tokens.extend(tokens)
    else:
        parts.append(Part(event, tokens))


def joined(parts: list[Part]) -> list[Part]:
    """The same with neighbours of one kind as one."""
    if len(parts) < 2:
        return parts
    result: list[Part] = []
    for part in parts:
        last = result[-1] if result else None
        event = part.event
        put_in = last is not None and last.event is not None and last.event.at == PUT_IN
        apart = put_in and not isinstance(event, CallArguments)
        if last is None or apart or type(event) is not type(last.event) or isinstance(event, CallName):
            result.append(Part(event, list(part.tokens)))
            continue
        last.tokens.extend(part.tokens)
        if event is not None and not isinstance(last.event, CallName | None):
            result[-1] = Part(type(event)(last.event.text + event.text), last.tokens)
    return result
