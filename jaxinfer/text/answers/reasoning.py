"""Reasoning between tags, at the start of an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxinfer.text.answers.calls import CallParser
from jaxinfer.text.answers.events import CallName, Content, Event, Reasoning
from jaxinfer.text.answers.scanning import SPACE, could_start, find_tag, settled

_QUOTES = "`'\"\u2018\u201c"
_BRACKETS = ("<", "[")
_CUT_TAG = 2  # characters of a closing tag in brackets from which on an answer counts as cut inside of it


class ReasoningTags(NamedTuple):
    """What stands around the reasoning, and other spellings of it. answer: tags around what follows, or
    None. tokens: special tokens of which tags are made."""

    open: str
    close: str
    other_opens: tuple[str, ...] = ()
    other_closes: tuple[str, ...] = ()
    answer: tuple[str, str] | None = None
    tokens: tuple[str, ...] = ()

    @property
    def opens(self) -> tuple[str, ...]:
        return (self.open, *self.other_opens)

    @property
    def closes(self) -> tuple[str, ...]:
        return (self.close, *self.other_closes)

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.opens, *self.closes, *(self.answer or ()), *self.tokens)


class ReasoningSplitter:
    """Takes reasoning off the front of a text; what `push` and `finish` return is the answer, for the next parser.

    White space around the reasoning belongs to neither. Whoever wants to know which text is answer, as it comes, needs
    this class alone: pushes the text and uses what is returned.

    begun: the prompt already ends with the opening tag.
    new_calls: makes a parser of the tool calls that the answer may have, for a whole text. A call ends a reasoning that
        is never closed; inside one that is closed later it is a draft and no call. So from a call on everything waits
        until the closing tag, or the end, says which it is. None: no calls are looked for.
    whole: the answer is given whole. Then a closing tag without an opening one ends a reasoning too (some models leave
        the opening out); in a stream the text before it has been told as content already.
    """

    def __init__(
        self,
        tags: ReasoningTags,
        *,
        begun: bool,
        new_calls: Callable[[], CallParser] | None = None,
        whole: bool = False,
    ) -> None:
        self._tags = tags
        self._new_calls, self._whole = new_calls, whole
        self._call_tags = () if new_calls is None else new_calls().tags
        self._last_characters = frozenset(close[-1] for close in tags.closes)
        self._buffer = ""
        self._pieces: list[str] = []  # in the state "unopened", what follows the buffer
        self._state = "reasoning" if begun else "start"
        self._fresh = True  # nothing of the current part has been told yet
        self._draft: CallParser | None = None  # reads what may be a call in the reasoning
        self._read = 0  # how much of the buffer it has got
        self._has_call = False
        self._open_answer = False  # the answer began with a tag of its own, which will be closed

    @property
    def reasoning(self) -> bool:
        """Whether the text is inside the tags now; also while it is open whether a call has ended the reasoning."""
        return self._state in ("reasoning", "draft")

    @property
    def answering(self) -> bool:
        """Whether the reasoning is over, or there is none: all further text is answer."""
        return self._state == "rest"

    def reasons_until(self, text: str, start: int) -> int:
        """Up to which position of the text that comes next, text[start:], no tag can be complete that ends the
        reasoning; `start` outside of one."""
        if not self.reasoning:
            return start
        found = (text.find(character, start) for character in self._last_characters)
        return min((position for position in found if position >= 0), default=len(text))

    @property
    def undecided(self) -> int:
        """Characters at the end of the text so far that are neither told nor returned yet."""
        return len(self._buffer) + sum(map(len, self._pieces))

    @property
    def settled(self) -> bool:
        """No text waits."""
        return not self._buffer and not self._pieces

    def push(self, text: str, events: list[Event]) -> str:
        """Takes more text. Returns what of it, and of text that waited, is certain to be answer."""
        if self.answering and not self._fresh and not self._open_answer:
            return text
        if self._state == "unopened":  # until its end
            self._pieces.append(text)
            return ""
        self._buffer += text
        if self._state == "start":
            self._start()
        while (self._state == "reasoning" and self._reason(events)) or (self._state == "draft" and self._judge(events)):
            pass
        return self._rest()

    def finish(self, events: list[Event]) -> str:
        """The text has ended. Returns what of the text that waited is answer."""
        rest = ""
        self._buffer += "".join(self._pieces)
        self._pieces = []
        if self._state in ("start", "rest"):
            rest = self._buffer
        elif self._state == "unopened":
            rest = self._split_unopened(events)
        elif self._state == "draft" and self._draft_is_call():
            rest = self._buffer.lstrip(SPACE)
        elif self.reasoning:
            self._tell(self._without_cut_tag(self._buffer), events)
        self._state, self._buffer = "rest", ""
        return rest

    def _start(self) -> None:
        text = self._buffer.lstrip(SPACE)
        tag = next((tag for tag in self._tags.opens if text.startswith(tag)), None)
        if tag is not None:
            self._state, self._buffer = "reasoning", text[len(tag) :]
        elif text and not any(could_start(text, tag) for tag in self._tags.opens):
            if self._whole:
                self._state = "unopened"
            else:
                self._state, self._fresh = "rest", False

    def _reason(self, events: list[Event]) -> bool:
        """Tells what is certain to be reasoning; whether the state is another one now."""
        tags = self._tags
        if self._fresh:
            self._buffer = self._buffer.lstrip(SPACE)
            while self._buffer.startswith(tags.open):  # some models repeat the tag that the prompt gave them
                self._buffer = self._buffer[len(tags.open) :].lstrip(SPACE)
            if not self._buffer or could_start(self._buffer, tags.open):
                return False
        ends = (*tags.closes, *self._call_tags)
        found = find_tag(self._buffer, ends)
        end = settled(self._buffer, ends) if found is None else found[0]
        told = self._buffer[:end].rstrip(SPACE)
        self._tell(told, events)
        if found is None or found[1] not in tags.closes:
            self._buffer = self._buffer[len(told) :]
        else:
            self._close(end + len(found[1]))
            return False
        if found is None:
            return False
        assert self._new_calls is not None
        self._state, self._draft, self._read, self._has_call = "draft", self._new_calls(), end - len(told), False
        return True

    def _judge(self, events: list[Event]) -> bool:
        """Reads on in what may be a call; whether it is none, so that the reasoning goes on."""
        assert self._draft is not None
        longest = max(map(len, self._tags.closes))
        closed = find_tag(self._buffer, self._tags.closes, max(0, self._read - longest))
        if closed is not None:  # a draft
            self._tell(self._buffer[: closed[0]].rstrip(SPACE), events)
            self._close(closed[0] + len(closed[1]))
            return False
        found: list[Event] = []
        self._draft.push(self._buffer[self._read :], found)
        self._read = len(self._buffer)
        self._note(found)
        if self._has_call or not any(isinstance(event, Content) for event in found):
            return False
        gap = len(self._buffer) - len(self._buffer.lstrip(SPACE))
        tag = find_tag(self._buffer, self._call_tags)
        assert tag is not None
        told = gap + len(tag[1])
        self._tell(self._buffer[:told], events)
        self._state, self._buffer, self._draft = "reasoning", self._buffer[told:], None
        return True

    def _note(self, found: list[Event]) -> None:
        """A call that comes before other text is one, whatever follows."""
        first = next((event for event in found if isinstance(event, CallName | Content)), None)
        self._has_call = self._has_call or isinstance(first, CallName)

    def _draft_is_call(self) -> bool:
        assert self._draft is not None
        found: list[Event] = []
        self._draft.finish(found)
        self._note(found)
        return self._has_call

    def _close(self, end: int) -> None:
        self._buffer = self._buffer[end:]
        self._state, self._fresh, self._draft = "rest", True, None

    def _tell(self, text: str, events: list[Event]) -> None:
        if self._fresh:
            text = text.lstrip(SPACE)
        if text:
            events.append(Reasoning(text))
            self._fresh = False

    def _without_cut_tag(self, text: str) -> str:
        """An answer may be cut inside the closing tag."""
        text = text.rstrip(SPACE)
        for close in self._tags.closes:
            if not close.startswith(_BRACKETS):
                continue
            for length in range(min(len(close) - 1, len(text)), _CUT_TAG - 1, -1):
                if text.endswith(close[:length]):
                    return text[:-length].rstrip(SPACE)
        return text

    def _split_unopened(self, events: list[Event]) -> str:
        """A whole answer that did not begin with the opening tag: perhaps it has the closing one all the same."""
        found = find_tag(self._buffer, (*self._tags.closes, *self._tags.opens))
        if found is None or found[1] not in self._tags.closes or self._buffer[: found[0]].endswith(tuple(_QUOTES)):
            return self._buffer
        self._tell(self._buffer[: found[0]].strip(SPACE), events)
        self._close(found[0] + len(found[1]))
        return self._rest()

    def _rest(self) -> str:
        """What is left once the reasoning is over; white space right behind it is dropped, and tags around it."""
        if not self.answering:
            return ""
        if self._fresh:
            self._buffer = self._buffer.lstrip(SPACE)
            if not self._skip_tags():
                return ""
        if self._open_answer:
            assert self._tags.answer is not None
            return self._until(self._tags.answer[1])
        rest, self._buffer = self._buffer, ""
        return rest

    def _skip_tags(self) -> bool:
        """Drops what may stand before the answer: the closing tag again, and the answer's own opening."""
        tags = () if self._open_answer else (*self._tags.closes, *(self._tags.answer or ())[:1])
        while (tag := next((tag for tag in tags if self._buffer.startswith(tag)), None)) is not None:
            self._buffer = self._buffer[len(tag) :].lstrip(SPACE)
            if tag not in self._tags.closes:
                self._open_answer = True
                tags = ()
        if not self._buffer or any(could_start(self._buffer, tag) for tag in tags):
            return False
        self._fresh = False
        return True

    def _until(self, close: str) -> str:
        """The answer inside tags of its own, up to the closing one."""
        end = self._buffer.find(close)
        if end >= 0:
            rest, self._buffer = self._buffer[:end].rstrip(SPACE) + self._buffer[end + len(close) :], ""
            self._open_answer = False
            return rest
        end = settled(self._buffer, (close,))
        rest, self._buffer = self._buffer[:end], self._buffer[end:]
        return rest
