"""Kimi K2's tool calls: a section of calls, each with an id that names the tool, and a JSON object."""

from __future__ import annotations

from jaxinfer.text.answers.named import Ahead, Maybe, NamedCallParser, Part
from jaxinfer.text.answers.readers import ArgumentsReader, JsonReader
from jaxinfer.text.answers.spelling import CallSpelling

_CALLS, _CALLS_END, _CALL, _CALL_END, _ARGUMENTS = (
    f"<|tool_call{word}|>" for word in ("s_section_begin", "s_section_end", "_begin", "_end", "_argument_begin")
)
_PREFIX = "functions."


class KimiK2Parser(NamedCallParser):
    """<|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}<|tool_call_end|>
    <|tool_calls_section_end|>

    The number counts the calls of a conversation; no two need differ for this parser. Models leave out the prefix.
    """

    sections = ((_CALLS, _CALLS_END),)
    tags = (_CALLS, _CALL)
    more_tags = (_CALLS_END, _CALL_END, _ARGUMENTS)
    heads = (
        (
            _CALL,
            (
                *(Part.SPACES, Maybe(_PREFIX), Part.NUMBERED_NAME, Part.SPACES),
                *(_ARGUMENTS, Part.SPACES, Ahead(("{",))),
            ),
        ),
    )
    closes = (_CALL_END,)
    spellings = (CallSpelling(_CALL + _PREFIX, ":0" + _ARGUMENTS, _CALL_END, _CALLS, "", _CALLS_END),)

    def new_reader(self, name: str) -> ArgumentsReader:
        return JsonReader()
