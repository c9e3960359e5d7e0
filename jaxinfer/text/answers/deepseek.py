"""DeepSeek's tool calls: a section of calls between tags of its own, in three notations."""

from __future__ import annotations

import re

from jaxinfer.text.answers.named import Ahead, Head, NamedCallParser, Part
from jaxinfer.text.answers.readers import ArgumentsReader, JsonReader, ParameterReader, ParameterTags
from jaxinfer.text.answers.spelling import CallSpelling, ParameterArguments

_BAR = "\uff5c"  # the wide bar of DeepSeek's special tokens, and their wide underscore
_CALLS, _CALLS_END, _CALL, _CALL_END, _SEP = (
    f"<{_BAR}tool\u2581{word}{_BAR}>"
    for word in ("calls\u2581begin", "calls\u2581end", "call\u2581begin", "call\u2581end", "sep")
)
_DSML = f"{_BAR}DSML{_BAR}"


class DeepSeekV31Parser(NamedCallParser):
    """DeepSeek V3.1: the call's opening tag, its name, a separator and a JSON object."""

    sections = ((_CALLS, _CALLS_END),)
    tags = (_CALLS, _CALL)
    more_tags = (_CALLS_END, _CALL_END, _SEP)
    heads: tuple[tuple[str, Head], ...] = (
        (_CALL, (Part.SPACES, Part.NAME, Part.SPACES, _SEP, Part.SPACES, Ahead(("{",)))),
    )
    closes: tuple[str, ...] = (_CALL_END,)
    spellings = (CallSpelling(_CALL, _SEP, _CALL_END, _CALLS, "", _CALLS_END),)

    def new_reader(self, name: str) -> ArgumentsReader:
        return JsonReader()


class DeepSeekV3Parser(DeepSeekV31Parser):
    """DeepSeek V3 and R1: a type in front of the separator and the name behind it, then a fenced JSON object."""

    heads = (
        (
            _CALL,
            (
                *(Part.SPACES, Part.WORD, Part.SPACES, _SEP, Part.SPACES, Part.NAME),
                *(Part.SPACES, "```json", Part.SPACES, Ahead(("{",))),
            ),
        ),
    )
    closes = ("```", _CALL_END)
    spellings = (CallSpelling(f"{_CALL}function{_SEP}", "\n```json\n", f"\n```{_CALL_END}", _CALLS, "\n", _CALLS_END),)


class DsmlParser(NamedCallParser):
    """DeepSeek's newer notation, with wide bars:

        <|DSML|function_calls>
        <|DSML|invoke name="NAME">
        <|DSML|parameter name="KEY" string="true">value</|DSML|parameter>
        </|DSML|invoke>
        </|DSML|function_calls>

    `string` says whether a value is a text or JSON; the tool's schema judges where that is wrong.
    """

    parameters: ParameterTags

    def __init_subclass__(cls, *, section: str, others: tuple[str, ...] = (), space: str = "") -> None:
        """section: the word around the calls. others: what models write instead in front of them. space: behind the
        mark."""
        super().__init_subclass__()
        mark = _DSML + space
        close = f"</{mark}{section}>"
        invoke, invoke_end = f'<{mark}invoke name="', f"</{mark}invoke>"
        cls.sections = tuple((f"<{mark}{word}>", close) for word in (section, *others))
        cls.heads = ((invoke, (Part.NAME, '"', Part.SPACES, ">")),)
        cls.tags = (*(opening for opening, _ in cls.sections), invoke)
        cls.more_tags = (close, _DSML)
        cls.parameters = ParameterTags(
            open=f"<{mark}parameter",
            head_end=">",
            head=re.compile(r'\s+name="([^"]+)"(?:\s+string="([^"]*)")?\s*'),
            close=f"</{mark}parameter>",
            ends=(invoke_end, close),
            late=(f"<{mark}parameter", invoke_end),
        )
        spelled = ParameterArguments(
            f'<{mark}parameter name="',
            '" string="true">',
            '" string="false">',
            f"</{mark}parameter>\n",
            cls.parameters.value_ends,
        )
        opening = f"<{mark}{section}>\n"
        cls.spellings = (CallSpelling(invoke, '">\n', f"{invoke_end}\n", opening, "", close, spelled),)

    def new_reader(self, name: str) -> ArgumentsReader:
        return ParameterReader(self.parameters, self.schema(name))


class DeepSeekV32Parser(DsmlParser, section="function_calls"):
    """DeepSeek V3.2."""


class DeepSeekV4Parser(DsmlParser, section="tool_calls", others=("toolcalls", "tool")):
    """DeepSeek V4."""


class DeepSeekV41Parser(DsmlParser, section="calls", space=" "):
    """DeepSeek V4.1."""
