"""Gemma 4's tool calls: <|tool_call>call:NAME{key:<|"|>text<|"|>,count:42}<tool_call|>."""

from __future__ import annotations

import json
from enum import Enum, auto

from jaxinfer.text.answers.named import Maybe, NamedCallParser, Part
from jaxinfer.text.answers.readers import ArgumentsReader
from jaxinfer.text.answers.scanning import SPACE, Status, could_start, may_begin
from jaxinfer.text.answers.spelling import CallSpelling, GemmaArguments
from jaxinfer.text.answers.typing_of_text import ValueSchema, typed

_OPEN, _CLOSE, _QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
_LONGEST_KEY = 1024


class _Place(Enum):
    KEY = auto()  # before a key, or the object's end
    VALUE = auto()  # before a value, or a list's end
    TEXT = auto()  # between quotes
    WORD = auto()  # in a value without quotes
    BEHIND = auto()  # behind a value


class _Level:
    """An object or list that is open."""

    def __init__(self, schema: ValueSchema, *, is_list: bool) -> None:
        self.schema, self.is_list = schema, is_list
        self.empty = True


class GemmaReader(ArgumentsReader):
    """Reads from behind the opening brace to behind the closing one. Texts are told as they come.

    A value without quotes is what it is in JSON (or Python), else a text; a text too where the schema allows nothing
    else. Texts cannot hold the quotes, for which there is no escape.
    """

    def __init__(self, schema: ValueSchema) -> None:
        super().__init__()
        self._levels = [_Level(schema, is_list=False)]
        self._place = _Place.KEY
        self._schema = schema  # of the value that is next
        self._pieces: list[str] = []  # of a word
        self._started = False

    def feed(self, text: str, start: int, told: list[str], *, final: bool) -> int:
        if not self._started:
            told.append("{")
            self._started = True
        position, moved = start, True
        while moved and position < len(text) and self.status is Status.OPEN:
            if self._place in (_Place.KEY, _Place.VALUE, _Place.BEHIND) and text[position] in SPACE:
                position += 1
                continue
            after = getattr(self, f"_in_{self._place.name.lower()}")(text, position, told)
            moved, position = after is not None, position if after is None else after
        return position

    def _in_key(self, text: str, position: int, told: list[str]) -> int | None:
        if text[position] in ",}":
            if text[position] == "}":
                self._close(told)
            return position + 1
        begin = position  # no colon is in the quotes, so where they are not complete there is none yet
        if text.startswith(_QUOTE, position):
            begin = position + len(_QUOTE)
            end = text.find(_QUOTE, begin)
            colon = text.find(":", end) if end >= 0 else -1
        else:
            end = colon = text.find(":", begin)
        if colon < 0:
            if len(text) - position > _LONGEST_KEY:
                self.status = Status.BAD
            return None
        level, key = self._levels[-1], text[begin:end].strip(SPACE)
        self._separate(told)
        told.append(json.dumps(key, ensure_ascii=False) + ": ")
        self._schema = level.schema.member(key)
        self._place = _Place.VALUE
        return colon + 1

    def _in_value(self, text: str, position: int, told: list[str]) -> int | None:
        level, character = self._levels[-1], text[position]
        if could_start(text[position:], _QUOTE):
            return None
        if level.is_list:
            if character == "]":
                self._close(told)
                return position + 1
            self._schema = level.schema.item()
            self._separate(told)
        if text.startswith(_QUOTE, position):
            told.append('"')
            self._place = _Place.TEXT
            return position + len(_QUOTE)
        if character in "{[":
            told.append(character)
            self._levels.append(_Level(self._schema, is_list=character == "["))
            self._place = _Place.VALUE if character == "[" else _Place.KEY
            return position + 1
        self._pieces, self._place = [], _Place.WORD
        return position

    def _in_text(self, text: str, position: int, told: list[str]) -> int | None:
        end = text.find(_QUOTE, position)
        if end < 0:
            end = may_begin(text, position, (_QUOTE,))
            told.append(json.dumps(text[position:end], ensure_ascii=False)[1:-1])
            return end if end > position else None
        told.append(json.dumps(text[position:end], ensure_ascii=False)[1:])
        self._place = _Place.BEHIND
        return end + len(_QUOTE)

    def _in_word(self, text: str, position: int, told: list[str]) -> int | None:
        end = next((i for i in range(position, len(text)) if text[i] in ",}]"), len(text))
        self._pieces.append(text[position:end])
        if end < len(text):
            told.append(typed("".join(self._pieces).strip(SPACE), self._schema.types()))
            self._place = _Place.BEHIND
        return end

    def _in_behind(self, text: str, position: int, told: list[str]) -> int | None:
        character = text[position]
        if character == ",":
            self._place = _Place.VALUE if self._levels[-1].is_list else _Place.KEY
        elif character in "}]":
            self._close(told)
        else:
            self.status = Status.BAD
        return position + 1

    def _separate(self, told: list[str]) -> None:
        if not self._levels[-1].empty:
            told.append(", ")
        self._levels[-1].empty = False

    def _close(self, told: list[str]) -> None:
        told.append("]" if self._levels.pop().is_list else "}")
        self._place = _Place.BEHIND
        if not self._levels:
            self.status = Status.DONE


class Gemma4Parser(NamedCallParser):
    """Any number of calls. Some checkpoints leave `call` out, not the colon."""

    tags = (_OPEN,)
    more_tags = (_CLOSE, _QUOTE)
    heads = ((_OPEN, (Part.SPACES, Maybe("call"), ":", Part.SPACES, Part.NAME, Part.SPACES, "{")),)
    closes = (_CLOSE,)
    spellings = (CallSpelling(f"{_OPEN}call:", "{", f"}}{_CLOSE}", arguments=GemmaArguments(_QUOTE)),)

    def new_reader(self, name: str) -> ArgumentsReader:
        return GemmaReader(self.schema(name))
