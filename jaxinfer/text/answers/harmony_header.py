"""The headers of messages in the harmony format, and its tags (see harmony.py)."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from jaxinfer.text.answers.scanning import SPACE, could_start

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
TAGS = (START, CHANNEL, CONSTRAIN, MESSAGE, *ENDS)
ANALYSIS = "analysis"

_CHANNELS = (ANALYSIS, "commentary", "final")
_ROLES = ("assistant", "user", "system", "developer", "tool")
_TYPES = ("json", "code", "text")
FUNCTIONS, _TO = "functions.", "to="
_LONGEST_HEADER = 512  # characters; a tool's name has 64 at most
_ITEM = re.compile(r"(?P<tag><\|(?:start|channel|constrain|message|end|return|call)\|>)|(?P<space>\s+)")
# The end of a prompt that has opened a message in the channel for reasoning.
_BEGUN = re.compile(
    r"<\|channel\|>analysis(?:(?!<\|message\|>).)*<\|message\|>(?:(?!<\|(?:end|return|call)\|>).)*", re.S
)

_ANSWERING = re.compile(
    r"<\|channel\|>final(?:(?!<\|message\|>).)*<\|message\|>(?:(?!<\|(?:end|return|call)\|>).)*", re.S
)


def begun(prompt_end: str) -> bool:
    """Whether a prompt that ends with this text has opened the reasoning."""
    last = prompt_end.rfind(CHANNEL)
    return last >= 0 and _BEGUN.fullmatch(prompt_end, last) is not None


def answering(prompt_end: str) -> bool:
    """Whether a prompt that ends with this text has opened the message for the reader."""
    last = prompt_end.rfind(CHANNEL)
    return last >= 0 and _ANSWERING.fullmatch(prompt_end, last) is not None


class Header(NamedTuple):
    """What a header says. recipient_at: where the name of the recipient begins in the header's text."""

    channel: str | None = None
    recipient: str | None = None
    recipient_at: int = 0


class Read(NamedTuple):
    """A header that was read to its end.

    header: as it stands. end: where what follows it begins. ended: instead of a message its end followed, so none is
    there. loose: text follows that no `<|message|>` has begun.
    """

    header: Header
    end: int
    ended: bool = False
    loose: bool = False


class HeaderReader:
    """Reads one header from the beginning of a text that may go on. `final`: it does not.

    What it decides, it decides on the characters up to there. A word has a place (behind `<|start|>` the role, behind
    `<|channel|>` the channel, behind `<|constrain|>` or alone the type). Words that everybody knows are certain at
    once, others when a tag confirms them: `sure` is up to where the text is a header whatever follows.
    """

    def __init__(self, text: str, tools: Collection[str], *, final: bool) -> None:
        self._text, self._long = text[:_LONGEST_HEADER], len(text) > _LONGEST_HEADER
        self._tools, self._final = tools, final
        self._place: str | None = None  # that the next word takes
        self._typed = self._tagged = False  # a type was there; a tag was there
        self._now = self._sure = Header()
        self._sure_end = 0
        self._pending = False  # words behind `sure`

    def read(self) -> Read | None:
        """None: more text is needed."""
        position = 0
        while position < len(self._text):
            found = _ITEM.search(self._text, position)
            begin = len(self._text) if found is None else found.start()
            if begin > position:
                if found is None and (self._long or not self._final):
                    break  # the word may go on
                last = found is None and self._may_be_cut(self._text[position:])
                if not self._word(position, begin) and not last:
                    return self._text_follows()
            if found is None:
                break
            position = found.end()
            if found["tag"] is not None and (result := self._tag(found["tag"], begin, position)) is not None:
                return result
        if self._long:
            return self._text_follows()
        return self._at_end() if self._final else None

    def _tag(self, tag: str, begin: int, end: int) -> Read | None:
        if tag in (START, *ENDS) and self._pending:  # words that nothing has confirmed
            return self._text_follows()
        if tag in ENDS:
            return Read(self._now, end, ended=True)
        if tag == MESSAGE:
            return Read(self._now, end)
        if tag == START:
            self._now, self._typed = Header(), False
        self._place = {START: "role", CHANNEL: "channel", CONSTRAIN: "type"}[tag]
        self._tagged = True
        self._confirm(end)
        return None

    def _word(self, begin: int, end: int) -> bool:
        """Whether the word has a place in a header."""
        word, place, self._place = self._text[begin:end], self._place, None
        known = False
        if place == "role":
            known = word in _ROLES or word.startswith(FUNCTIONS)
        elif place == "channel":
            name = word.rstrip("?!.,:;-")  # models put such behind it
            known = name in _CHANNELS
            self._now = self._now._replace(channel=name if known else word)
        elif word.startswith(_TO) and place is None:
            name = word[len(_TO) :]
            at = begin + len(_TO)
            if name.startswith(FUNCTIONS):
                at += len(FUNCTIONS)
            self._now = self._now._replace(recipient=name, recipient_at=at)
            known = self._tagged and is_call(name, self._tools)
        elif place == "type" or (self._now.channel is not None and not self._typed):
            self._typed = True
        else:
            return False
        self._pending = True
        if known and not self._text[self._sure_end : begin].strip(SPACE):
            self._confirm(end)
        return True

    def _text_follows(self) -> Read:
        header = self._sure
        if not self._text[self._sure_end :].lstrip().startswith("{"):
            header = header._replace(recipient=None)  # no arguments, so no call
        return Read(header, self._sure_end, loose=True)

    def _may_be_cut(self, word: str) -> bool:
        """Whether the last word of an answer, behind a tag, can be the beginning of a recipient."""
        return self._tagged and could_start(word, _TO + FUNCTIONS)

    def _confirm(self, end: int) -> None:
        self._sure, self._sure_end, self._pending = self._now, end, False

    def _at_end(self) -> Read:
        """The answer was cut inside a header, if what nothing has confirmed can be the beginning of one."""
        words = self._text[self._sure_end :].split()
        if self._tagged or (words and words[0].startswith(_TO + FUNCTIONS)):
            known = (*_CHANNELS, *_ROLES, *_TYPES, FUNCTIONS, _TO + FUNCTIONS)
            if all(word.startswith(_TO) or any(name.startswith(word) for name in known) for word in words):
                return Read(self._now, len(self._text), ended=True)
        return self._text_follows()


def is_call(recipient: str, tools: Collection[str]) -> bool:
    """Whether a message to this recipient calls a tool. tools: those that are offered."""
    return recipient in tools or (recipient.startswith(FUNCTIONS) and len(recipient) > len(FUNCTIONS))
