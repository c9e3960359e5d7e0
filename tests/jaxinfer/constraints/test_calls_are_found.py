"""Whatever a grammar of calls lets through, the format's parser finds: every call, and nothing else for the reader."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jsonschema
import pytest

from jaxinfer.constraints.arguments import can_be_written
from jaxinfer.constraints.calls import Tool, ToolRules
from jaxinfer.constraints.constraint import AnswerShape, constraint_of
from jaxinfer.constraints.params import StructuredOutputsParams
from jaxinfer.constraints.reasoning import Begun
from jaxinfer.text.answers import OutputParser, OutputParserNames, ToolCall, collect
from jaxinfer.text.answers.formats import CALL_SPELLINGS
from jaxinfer.text.answers.harmony_header import TAGS as HARMONY_TAGS
from tests.jaxinfer.constraints.walks import accepts, vocabulary, walk

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 0, "maximum": 30},
        "exact": {"type": "boolean"},
    },
    "required": ["city"],
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}}
TREE = {
    "type": "object",
    "properties": {
        "kind": {"enum": ['a"b', "</tool_call>", "ü"]},
        "list": {"type": "array", "items": {"type": "number"}},
    },
    "required": ["kind"],
}
RICH = {
    "type": "object",
    "properties": {
        "maybe": {"anyOf": [{"type": "string", "maxLength": 8}, {"type": "null"}, {"type": "integer"}]},
        "words": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "unit": {"$ref": "#/$defs/unit"},
        "code": {"type": "string", "pattern": "^[a-z/]+-[0-9]{2}$"},
        "deep": {"type": "object", "properties": {"t": {"type": "string"}, "free": {}}, "required": ["t"]},
        "free": {},
        "lines": {"type": "string", "description": "any text"},
    },
    "required": ["maybe", "unit", "code"],
    "$defs": {"unit": {"enum": ["C", "F", 1, None, "</parameter>"]}},
}
TOOLS = (
    Tool("rich", RICH, "tools[3].function.parameters", strict=True),
    Tool("get_weather", CITY, "tools[0].function.parameters", strict=True),
    Tool("now", NOTHING, "tools[1].function.parameters"),
    Tool("a.b-C_9", TREE, "tools[2].function.parameters"),
)
SCHEMAS = {tool.name: tool.parameters for tool in TOOLS}

DEEPSEEK = tuple(
    f"<\uff5ctool\u2581{word}\uff5c>"
    for word in ("calls\u2581begin", "calls\u2581end", "call\u2581begin", "call\u2581end", "sep")
)
GLM = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
GEMMA = ("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>")
# form, tags that are tokens
KIMI = tuple(
    f"<|tool_call{word}|>" for word in ("s_section_begin", "s_section_end", "_begin", "_end", "_argument_begin")
)
FORMS = {
    "hermes": (OutputParserNames("hermes"), ()),
    "hermes, tokens": (OutputParserNames("hermes", "think"), ("<think>", "</think>", "<tool_call>", "</tool_call>")),
    "hermes, think": (OutputParserNames("hermes", "think"), ()),
    "llama3": (OutputParserNames("llama3"), ("<|python_tag|>",)),
    "mistral": (OutputParserNames("mistral"), ("[TOOL_CALLS]",)),
    "mistral, named": (
        OutputParserNames("mistral", "mistral", variant=1),
        ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"),
    ),
    "granite": (OutputParserNames("granite", "granite"), ("<|tool_call|>",)),
    "nemotron": (OutputParserNames("nemotron", "think"), ()),
    "phi4_mini": (OutputParserNames("phi4_mini"), ()),
    "deepseek_v3": (OutputParserNames("deepseek_v3", "think"), DEEPSEEK),
    "deepseek_v31": (OutputParserNames("deepseek_v31"), DEEPSEEK),
    "deepseek_v32": (OutputParserNames("deepseek_v32", "think"), ()),
    "qwen3_xml": (OutputParserNames("qwen3_xml", "think"), ("<tool_call>", "</tool_call>")),
    "glm45": (OutputParserNames("glm45"), ()),
    "glm45, tokens": (OutputParserNames("glm45", "think", variant=1), GLM),
    "gemma4": (OutputParserNames("gemma4"), ()),
    "gemma4, tokens": (OutputParserNames("gemma4", "gemma4"), GEMMA),
    "kimi_k2": (OutputParserNames("kimi_k2", "think"), KIMI),
    "minimax_m2": (OutputParserNames("minimax_m2", "think"), ()),
    "seed_oss": (OutputParserNames("seed_oss", "seed_oss"), ("<seed:tool_call>", "</seed:tool_call>")),
    "harmony": (OutputParserNames("harmony", "harmony"), HARMONY_TAGS),
}
BEGUN: tuple[Begun, ...] = ("not", "inside", "over")


def shape(name: str, begun: Begun = "not") -> AnswerShape:
    form, special = FORMS[name]
    return AnswerShape(form, begun, vocabulary(special)[0].special.get)


def read(name: str, text: str, begun: Begun, *, whole: bool) -> Any:
    parser = OutputParser(FORMS[name][0]._replace(exact=True), tools=SCHEMAS, begun=begun == "inside", whole=whole)
    step = len(text) if whole else 3
    events = [event for i in range(0, len(text), max(step, 1)) for event in parser.push(text[i : i + step])]
    return collect([*events, *parser.finish()])


def check(calls: list[ToolCall]) -> None:
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


def drawn(constraint: str, name: str, count: int, seed: object) -> list[str]:
    form, special = FORMS[name]
    tags = (*form.marks(tools=True), "<tool_call>", "</tool_c", "</parameter>", "\n</arg_value>", "</function>")
    texts = (walk(constraint, (seed, name, i), special, phrases=tags) for i in range(count))
    return [text for text in texts if text is not None]


def test_every_format_is_here_and_every_spelling_has_a_grammar() -> None:
    alike = {"deepseek_v4", "deepseek_v41"}  # deepseek_v32 with other words
    assert {form.tool_calls for form, _ in FORMS.values()} | alike == set(CALL_SPELLINGS)
    assert all(can_be_written(spelling) for spellings in CALL_SPELLINGS.values() for spelling in spellings)


@pytest.mark.parametrize("name", FORMS)
def test_required_calls(name: str) -> None:
    count(name, 2)


@pytest.mark.longer
@pytest.mark.parametrize("name", FORMS)
def test_many_required_calls(name: str) -> None:
    count(name, 8)


def count(name: str, samples: int) -> None:
    total = 0
    for begun, single in itertools.product(BEGUN, (False, True)):
        if begun == "over" and name == "harmony":
            continue  # the prompt has opened the message for the reader: no call can follow
        constraint = constraint_of(None, ToolRules(TOOLS, required=True, single=single), shape(name, begun))
        for text in drawn(constraint, name, samples, (begun, single)):
            answers = [read(name, text, begun, whole=whole) for whole in (True, False)]
            for answer in answers:
                assert answer.calls, text
                assert not single or len(answer.calls) == 1, text
                assert name == "harmony" or not answer.content.strip(), text
                check(answer.calls)
            assert answers[0].calls == answers[1].calls
            total += 1
    assert total >= 3 * samples


@pytest.mark.parametrize("name", FORMS)
def test_text_or_strict_calls(name: str) -> None:
    """With tool_choice auto: an answer is text, or ends in calls that match their schemas."""
    with_calls = 0
    for begun in BEGUN:
        constraint = constraint_of(None, ToolRules(TOOLS), shape(name, begun))
        assert constraint
        for text in drawn(constraint, name, 5, begun):
            answer = read(name, text, begun, whole=True)
            check(answer.calls)
            with_calls += bool(answer.calls)
    if FORMS[name][1]:  # a random walk does not spell a tag
        assert with_calls


def test_text_goes_on_as_it_likes_until_a_tag() -> None:
    constraint = constraint_of(None, ToolRules(TOOLS), shape("hermes"))
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert accepts(constraint, "plain <text> {")
    assert accepts(constraint, "I look.\n" + call + "\n" + call)
    assert not accepts(constraint, call + "\nand on")
    assert not accepts(constraint, "I look.\n<tool_call> maybe")
    assert not accepts(constraint, call.replace("now", "never"))


def test_functions_of_which_none_is_strict_leave_the_answer_alone() -> None:
    loose = tuple(Tool(tool.name, tool.parameters, tool.field) for tool in TOOLS)
    assert constraint_of(None, ToolRules(loose), shape("hermes")) == ""


def test_an_answer_in_a_schema_or_calls() -> None:
    params = StructuredOutputsParams(json={"type": "object", "properties": {"x": {"type": "integer"}}})
    constraint = constraint_of(params, ToolRules(TOOLS), shape("hermes, tokens"))
    special = FORMS["hermes, tokens"][1]
    assert accepts(constraint, '{"x": 1}', special=special)
    call = ("<tool_call>", '\n{"name": "now", "arguments": {}}\n', "</tool_call>")
    assert accepts(constraint, *call, special=special)
    assert accepts(constraint, "<think>", "hm", "</think>", "\n\n", *call, special=special)
    assert not accepts(constraint, "text", special=special)


def test_a_schema_that_cannot_be_used_is_any_object_unless_it_is_strict() -> None:
    schema = {"type": "object", "properties": {"a": {"not": {}}}}
    loose = Tool("f", schema, "tools[0]")
    constraint = constraint_of(None, ToolRules((loose,), required=True), shape("hermes"))
    assert accepts(constraint, '<tool_call>\n{"name": "f", "arguments": {"b": 2}}\n</tool_call>')
    strict = Tool("f", schema, "tools[0].function.parameters", strict=True)
    with pytest.raises(ValueError, match=r"^tools\[0\]\.function\.parameters#/properties/a/not is "):
        constraint_of(None, ToolRules((strict,), required=True), shape("hermes"))


NESTED = {"type": "object", "properties": {"b": {"type": "array", "items": {"enum": ["x", "</parameter>"]}}}}
CLOSING = (
    {"type": "object", "properties": {"a": NESTED}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"enum": [["</parameter>"], 2]}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"type": "object", "properties": {"</parameter>": {}}}}, "required": ["a"]},
    {
        "type": "object",
        "properties": {"a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/tag"}}}},
        "required": ["a"],
        "$defs": {"tag": {"const": "</parameter>"}},
    },
)


@pytest.mark.parametrize("schema", CLOSING, ids=("in a list", "a list", "a name", "by reference"))
def test_listed_values_that_would_end_their_parameter(schema: dict[str, Any]) -> None:
    strict = Tool("f", schema, "tools[0].function.parameters", strict=True)
    with pytest.raises(ValueError, match="would end the value that it stands in"):
        constraint_of(None, ToolRules((strict,), required=True), shape("qwen3_xml"))
    constraint_of(None, ToolRules((Tool("f", schema, "tools[0]"),), required=True), shape("qwen3_xml"))


def test_what_a_reference_leads_to_ends_no_parameter() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/text"}}, "required": ["b"]}},
        "required": ["a"],
        "$defs": {"text": {"type": "string"}},
    }
    tool = Tool("f", schema, "tools[0]", strict=True)
    constraint = constraint_of(None, ToolRules((tool,), required=True), shape("qwen3_xml"))
    special = FORMS["qwen3_xml"][1]

    def takes(text: str) -> bool:
        body = f'\n<function=f>\n<parameter=a>\n{{"b": "{text}"}}\n</parameter>\n</function>\n'
        return accepts(constraint, "<tool_call>", body, "</tool_call>", special=special)

    assert takes("x < y")
    assert not takes("</parameter>")
