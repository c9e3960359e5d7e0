"""gpt-oss's answers in the harmony format: messages, each with a channel, one behind the other.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...<|return|>

The prompt ends with `<|start|>assistant`. A message's header names its channel and perhaps a recipient (`to=...`,
before the channel or behind it) and the type of its text; `<|message|>` ends the header, `<|end|>`, `<|return|>` or
`<|call|>` the message. The format is described at https://cookbook.openai.com/articles/openai-harmony; what a
well-formed answer means here is what the package openai-harmony reads of it (scripts/make_harmony_cases.py).

Models write other things too, and no text of theirs is lost:

- Channels but analysis, also those that nobody knows and none at all, are for the reader.
- `functions.NAME` as a recipient, or the name of a tool that is offered, makes a call; other recipients make none.
- What stands where a header should and is none is text: of the channel that the header has named, if it has. It ends
  where a header begins.
- A header that ends without a message (another begins, the message ends, the answer is cut) says nothing.
- Inside a message only the three ends count; the other tags are its text.
"""

from __future__ import annotations

from collections.abc import Collection

from jaxinfer.text.answers.events import PUT_IN, CallArguments, CallName, Content, Event, Reasoning
from jaxinfer.text.answers.harmony_header import (
    ANALYSIS,
    CHANNEL,
    CONSTRAIN,
    ENDS,
    FUNCTIONS,
    MESSAGE,
    START,
    TAGS,
    Header,
    HeaderReader,
    is_call,
)
from jaxinfer.text.answers.scanning import SPACE, could_start, find_tag, is_json_object
from jaxinfer.text.answers.spelling import CallSpelling

_LEAST_OF_A_TAG = 2  # characters of a tag from which on an answer counts as cut inside of it


class HarmonyParser:
    """Follows one answer, of which `push` and `finish` return what became certain.

    Texts of several messages for the reader, or of reasoning, are lines. tools, begun, whole: see OutputParser.
    reasons: analysis is reasoning; otherwise it is for the reader too. exact: a call, or what the channel final
    has, is the last message, so that tags in it are its text. Events say where in the answer they stand.
    """

    reasons = True
    spellings = (
        CallSpelling(
            f"{CHANNEL}commentary to={FUNCTIONS}",
            f" {CONSTRAIN}json{MESSAGE}",
            "<|call|>",
            between=f"{START}assistant",
        ),
    )

    def __init__(
        self,
        tools: Collection[str] | None,
        *,
        begun: bool = False,
        whole: bool = False,
        reasons: bool = True,
        exact: bool = False,
    ) -> None:
        self._tools, self._whole, self.reasons, self._exact = tools, whole, reasons, exact
        self._buffer, self._at = "", 0  # text that waits, and where it begins in the answer
        self._header: Header | None = Header(ANALYSIS) if begun else None  # of the message; None within one
        self._arguments: _Arguments | None = None  # of a call
        self._told: set[type[Event]] = set()  # kinds of text that earlier messages had
        self._fresh = True  # nothing of this message was told
        self._cut = False  # the answer was cut off
        self._ends: tuple[str, ...] = ENDS  # what ends it

    @property
    def reasoning(self) -> bool:
        """Whether the text so far ends in a message of reasoning."""
        return self._header is not None and self._arguments is None and self._kind is Reasoning

    @property
    def undecided(self) -> int:
        """Characters at the end of the text so far that were not told."""
        return len(self._buffer) + (0 if self._arguments is None else self._arguments.waiting)

    @property
    def settled(self) -> bool:
        """No text waits."""
        return not self.undecided

    def push(self, text: str) -> list[Event]:
        events: list[Event] = []
        self._buffer += text
        while self._step(events, final=False):
            pass
        return events

    def finish(self, *, cut: bool = False) -> list[Event]:
        """cut: see CallParser.finish; a tag that is cut off says nothing then either."""
        self._cut = cut
        events: list[Event] = []
        while self._buffer and self._step(events, final=True):
            pass
        if self._header is not None:
            self._end_message(events)
        return events

    def _step(self, events: list[Event], *, final: bool) -> bool:
        """Takes what is certain from the front of the buffer; False where the rest waits."""
        if not self._buffer:
            return False
        return self._read_header(events, final) if self._header is None else self._read_text(events, final)

    def _read_header(self, events: list[Event], final: bool) -> bool:
        text = self._buffer
        if final:
            text = text[: len(text) - _cut_tag(text, TAGS)]
            if self._at and not self._buffer.strip(SPACE):  # behind a message
                self._take(len(self._buffer))
                return True
        read = HeaderReader(text, self._tools or (), final=final).read()
        if read is None:
            return False
        if read.ended:
            self._take(len(self._buffer) if final and read.end == len(text) else read.end)
            return True
        self._begin_message(read.header, events)
        self._ends = (*ENDS, START, CHANNEL, MESSAGE) if read.loose else ENDS
        if self._exact and (self._arguments is not None or read.header.channel == "final"):
            self._ends = ()
        self._take(read.end)
        return True

    def _begin_message(self, header: Header, events: list[Event]) -> None:
        self._header, self._fresh = header, True
        if self._tools is None or header.recipient is None or not is_call(header.recipient, self._tools):
            return
        name = header.recipient.removeprefix(FUNCTIONS)
        self._arguments = _Arguments(CallName(name, self._at + header.recipient_at), whole=self._whole)
        self._arguments.begin(events)

    def _read_text(self, events: list[Event], final: bool) -> bool:
        found = find_tag(self._buffer, self._ends)
        if found is None:
            waits = _cut_tag(self._buffer, self._ends)
            if final and (not self._cut or waits < _LEAST_OF_A_TAG):
                waits = 0
            self._tell(len(self._buffer) - waits, events)
            return False
        end, tag = found
        self._tell(end, events)
        header = self._header
        self._end_message(events)
        if tag == MESSAGE and header is not None:  # what was told was no text, but it was no header either
            self._begin_message(header, events)
            self._ends = ENDS
        if tag not in (START, CHANNEL):  # those are the next header's
            self._take(len(tag))
        return True

    def _tell(self, length: int, events: list[Event]) -> None:
        if not length:
            return
        text, at = self._buffer[:length], self._at
        self._take(length)
        if self._arguments is not None:
            self._arguments.add(text, at, events)
        else:
            self._tell_text(text, at, self._kind, events)

    def _tell_text(self, text: str, at: int, kind: type[Content] | type[Reasoning], events: list[Event]) -> None:
        if self._fresh and kind in self._told:
            events.append(kind("\n", PUT_IN))
        self._fresh = False
        self._told.add(kind)
        events.append(kind(text, at))

    @property
    def _kind(self) -> type[Content] | type[Reasoning]:
        reasoning = self.reasons and self._header is not None and self._header.channel == ANALYSIS
        return Reasoning if reasoning else Content

    def _end_message(self, events: list[Event]) -> None:
        if self._arguments is not None:
            text = self._arguments.finish(events, cut=self._cut)
            if text and not self._cut:  # no call: what it would have been called with is for the reader
                self._tell_text(text, self._arguments.at, Content, events)
        self._header = self._arguments = None

    def _take(self, length: int) -> None:
        self._buffer = self._buffer[length:]
        self._at += length


class _Arguments:
    """The text of a message that calls a tool: white space around it belongs to nothing, and none at all is {}."""

    def __init__(self, name: CallName, *, whole: bool) -> None:
        self._name, self._whole = name, whole
        self._texts: list[str] = []  # that were not told: of a whole answer all, else white space, or what may be null
        self._begun = False  # arguments were told
        self.at = 0  # where what waits begins
        self.waiting = 0  # its length

    def begin(self, events: list[Event]) -> None:
        if not self._whole:
            events.append(self._name)

    def add(self, text: str, at: int, events: list[Event]) -> None:
        if not self.waiting:
            if not self._begun:
                lead = len(text) - len(text.lstrip(SPACE))
                text, at = text[lead:], at + lead
            self.at = at
        if not text:
            return
        self._texts.append(text)
        self.waiting += len(text)
        if self._whole or not text.strip(SPACE):
            return
        waiting = "".join(self._texts)
        body = waiting.rstrip(SPACE)
        if not self._begun and (body == "null" or could_start(body, "null")):
            return
        events.append(CallArguments(body, self.at))
        self._begun = True
        self.at += len(body)
        rest = waiting[len(body) :]
        self._texts, self.waiting = [rest] if rest else [], len(rest)

    def finish(self, events: list[Event], *, cut: bool) -> str:
        """What turned out to be no arguments. cut: the message has no end, so no text is not yet {}."""
        text = "".join(self._texts).rstrip(SPACE)
        self.waiting = 0
        empty = text in ("", "null")
        if self._begun or (cut and not text):
            return ""
        if self._whole:
            if not (empty or is_json_object(text)):
                return text
            events.append(self._name)
        events.append(CallArguments("{}", PUT_IN) if empty else CallArguments(text, self.at))
        return ""


def _cut_tag(text: str, tags: tuple[str, ...]) -> int:
    """How many characters at the end of a text may be the beginning of a tag."""
    begin = text.rfind(START[0])  # which no tag has anywhere else
    return len(text) - begin if begin >= 0 and any(could_start(text[begin:], tag) for tag in tags) else 0


class HarmonySplitter:
    """What `ReasoningSplitter` is for other formats: passes everything up to the first text that is no reasoning. It is
    of use until then."""

    def __init__(self, parser: HarmonyParser) -> None:
        self._parser = parser
        self._length = 0  # of the text so far
        self._end: int | None = None  # of what was returned

    @property
    def undecided(self) -> int:
        """Characters at the end of the text so far that are not told, or stand behind what was returned."""
        return self._parser.undecided if self._end is None else self._length - self._end

    def reasons_until(self, text: str, start: int) -> int:
        """Up to which position of the text that comes next, text[start:], no message can end; `start` outside of
        reasoning."""
        if not self._parser.reasoning:
            return start
        position = text.find(ENDS[0][-1], start)
        return len(text) if position < 0 else position

    def push(self, text: str, events: list[Event]) -> str:
        """Takes more text. Returns the beginning of the answer, once it is certain; reasoning becomes events."""
        self._length += len(text)
        return self._split(self._parser.push(text), events)

    def finish(self, events: list[Event]) -> str:
        """The text has ended. Returns as `push`."""
        return self._split(self._parser.finish(), events)

    def _split(self, found: list[Event], events: list[Event]) -> str:
        for event in found if self._end is None else ():
            if isinstance(event, Content | CallArguments) and event.at is not None and event.at != PUT_IN:
                self._end = event.at + len(event.text)
                return event.text
            if isinstance(event, Reasoning):
                events.append(event)
        return ""
