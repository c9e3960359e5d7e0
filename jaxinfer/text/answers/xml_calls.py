"""Tool calls whose parameters stand between tags of their own: Qwen3-Coder's, Seed-OSS's, GLM's and MiniMax's."""

from __future__ import annotations

import re
from dataclasses import replace

from jaxinfer.text.answers.named import Ahead, NamedCallParser, Part
from jaxinfer.text.answers.readers import ArgumentsReader, ParameterReader, ParameterTags
from jaxinfer.text.answers.spelling import CallSpelling, ParameterArguments

_QWEN = ParameterTags(
    open="<parameter=",
    head_end=">",
    head=re.compile(r"([^>]+)", re.DOTALL),
    close="</parameter>",
    ends=("</function>", "</tool_call>"),
    late=("<parameter=", "</function>"),
    trims=True,
)
_GLM = ParameterTags(
    open="<arg_key>",
    head_end="<arg_value>",
    head=re.compile(r"(.+?)</arg_key>\s*", re.DOTALL),
    close="</arg_value>",
    ends=("</tool_call>",),
    late=("<arg_key>", "</tool_call>"),
)


# As Qwen's, but a value stands on the line of its tags: every line break in it is its own.
_SEED = replace(_QWEN, ends=("</function>", "</seed:tool_call>"), trims=False)
_MINIMAX = ParameterTags(
    open="<parameter",
    head_end=">",
    head=re.compile(r'\s+name="([^"]+)"\s*'),
    close="</parameter>",
    ends=("</invoke>", "</minimax:tool_call>"),
    late=("<parameter name=", "</invoke>"),
)


class Qwen3XmlParser(NamedCallParser):
    """Qwen3-Coder, Qwen3.5, Nemotron 3, Granite 4.2:

        <tool_call>
        <function=NAME>
        <parameter=KEY>
        value
        </parameter>
        </function>
        </tool_call>

    A value is a text, or JSON where the tool's schema allows no text; Python's True and None are what templates write
    of earlier calls. Models leave the first tag and the last out; without the first the name must be an offered tool's.
    """

    tags = ("<tool_call>", "<function=")
    more_tags = ("</tool_call>",)
    heads = (
        ("<tool_call>", (Part.SPACES, "<function=", Part.SPACES, Part.NAME, Part.SPACES, ">")),
        ("<function=", (Part.SPACES, Part.NAME, Part.SPACES, ">")),
    )
    offered = ("<function=",)
    closes = ("</tool_call>",)
    spellings = (
        CallSpelling(
            "<tool_call>\n<function=",
            ">\n",
            "</function>\n</tool_call>",
            between="\n",
            arguments=ParameterArguments("<parameter=", ">\n", ">\n", "\n</parameter>\n", _QWEN.value_ends),
        ),
    )

    def new_reader(self, name: str) -> ArgumentsReader:
        return ParameterReader(_QWEN, self.schema(name))


class SeedOssParser(Qwen3XmlParser):
    """Seed-OSS: as Qwen3-Coder's, in a tag of its own."""

    tags = ("<seed:tool_call>", "<function=")
    more_tags = ("</seed:tool_call>",)
    heads = (
        ("<seed:tool_call>", (Part.SPACES, "<function=", Part.SPACES, Part.NAME, Part.SPACES, ">")),
        ("<function=", (Part.SPACES, Part.NAME, Part.SPACES, ">")),
    )
    closes = ("</seed:tool_call>",)
    spellings = (
        CallSpelling(
            "<seed:tool_call>\n<function=",
            ">\n",
            "</function>\n</seed:tool_call>",
            between="\n",
            arguments=ParameterArguments("<parameter=", ">", ">", "</parameter>\n", _SEED.value_ends),
        ),
    )

    def new_reader(self, name: str) -> ArgumentsReader:
        return ParameterReader(_SEED, self.schema(name))


class MiniMaxM2Parser(NamedCallParser):
    """MiniMax M2:

        <minimax:tool_call>
        <invoke name="NAME">
        <parameter name="KEY">value</parameter>
        </invoke>
        </minimax:tool_call>

    A value is a text, or JSON where the tool's schema allows no text.
    """

    sections = (("<minimax:tool_call>", "</minimax:tool_call>"),)
    tags = ("<minimax:tool_call>", '<invoke name="')
    more_tags = ("</minimax:tool_call>",)
    heads = (('<invoke name="', (Part.NAME, '"', Part.SPACES, ">")),)
    offered = ('<invoke name="',)
    spellings = (
        CallSpelling(
            '<invoke name="',
            '">\n',
            "</invoke>\n",
            "<minimax:tool_call>\n",
            "",
            "</minimax:tool_call>",
            ParameterArguments('<parameter name="', '">', '">', "</parameter>\n", _MINIMAX.value_ends),
        ),
    )

    def new_reader(self, name: str) -> ArgumentsReader:
        return ParameterReader(_MINIMAX, self.schema(name))


class GlmParser(NamedCallParser):
    """GLM 4.5 and later: <tool_call>NAME<arg_key>KEY</arg_key><arg_value>value</arg_value></tool_call>, up to 4.6 with
    line breaks between the tags. A value is a text, or JSON where the tool's schema allows no text."""

    tags = ("<tool_call>",)
    more_tags = ("</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    heads = (("<tool_call>", (Part.SPACES, Part.NAME, Part.SPACES, Ahead(("<arg_key>", "</tool_call>")))),)
    spellings = (
        CallSpelling(
            "<tool_call>",
            "\n",
            "</tool_call>",
            between="\n",
            arguments=ParameterArguments(
                "<arg_key>",
                "</arg_key>\n<arg_value>",
                "</arg_key>\n<arg_value>",
                "</arg_value>\n",
                _GLM.value_ends,
            ),
        ),
        CallSpelling(
            "<tool_call>",
            "",
            "</tool_call>",
            arguments=ParameterArguments(
                "<arg_key>", "</arg_key><arg_value>", "</arg_key><arg_value>", "</arg_value>", _GLM.value_ends
            ),
        ),
    )

    def new_reader(self, name: str) -> ArgumentsReader:
        return ParameterReader(_GLM, self.schema(name))
