"""What a chat model's text means: reasoning, content and tool calls, found as the text comes.

A parser's events do not depend on how the text was cut into pieces: what it decides, it decides on characters, and it
waits for as many as the decision needs. So a streamed answer adds up to the one that is parsed at once. What only the
end can tell is judged in whole answers alone: whether a call's arguments are JSON, and whether a closing tag ends a
reasoning that nothing has opened. A stream has told that text by then (see OutputParser).
"""

from jaxinfer.text.answers.detection import check_parser_names, output_parser_names
from jaxinfer.text.answers.events import (
    PUT_IN,
    CallArguments,
    CallName,
    Content,
    Event,
    Reasoning,
    ToolCall,
    collect,
)
from jaxinfer.text.answers.formats import (
    CALL_FORMATS,
    REASONING_FORMATS,
    REASONING_PARSERS,
    TOOL_CALL_PARSERS,
    AnswerSplitter,
    OutputParser,
    OutputParserNames,
)
from jaxinfer.text.answers.reasoning import ReasoningSplitter, ReasoningTags
from jaxinfer.text.answers.spelling import CallSpelling, GemmaArguments, JsonArguments, ParameterArguments

__all__ = [
    "CALL_FORMATS",
    "PUT_IN",
    "REASONING_FORMATS",
    "REASONING_PARSERS",
    "TOOL_CALL_PARSERS",
    "AnswerSplitter",
    "CallArguments",
    "CallName",
    "CallSpelling",
    "Content",
    "Event",
    "GemmaArguments",
    "JsonArguments",
    "OutputParser",
    "OutputParserNames",
    "ParameterArguments",
    "Reasoning",
    "ReasoningSplitter",
    "ReasoningTags",
    "ToolCall",
    "check_parser_names",
    "collect",
    "output_parser_names",
]
