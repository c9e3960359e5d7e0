"""Parsers of tool calls and reasoning: each format by example, and the same result however the text is cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.text.answers import CallArguments, Content, OutputParser, OutputParserNames, Reasoning, ToolCall, collect

TOOLS = ("get_weather", "f")


def parse(form: OutputParserNames, pieces: list[str], *, tools=TOOLS, begun=False):
    parser = OutputParser(form, tools=tools, begun=begun)
    events = [event for piece in pieces for event in parser.push(piece)]
    return collect([*events, *parser.finish()])


def check(form: str, text: str, content: str, *calls: tuple[str, str], reasoning: str = "", **settings) -> None:
    answer = parse(OutputParserNames(form, "think"), [text], **settings)
    assert (answer.content, answer.reasoning) == (content, reasoning)
    assert answer.calls == [ToolCall(name, arguments) for name, arguments in calls]


HERMES = [
    ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", ("f", '{"a": 1}')),
    ('Let me see.\n\n<tool_call>{"name":"f","arguments":{}}</tool_call>\n', "Let me see.", ("f", "{}")),
    ('<tool_call>{"arguments": {"a": [1, {"b": "}"}]}, "name": "g"}</tool_call>', "", ("g", '{"a": [1, {"b": "}"}]}')),
    ('<tool_call>{"name": "f"}</tool_call>', "", ("f", "{}")),
    ('<tool_call>{"name": "f", "arguments": null}</tool_call>', "", ("f", "{}")),
    ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", ("f", '{"a": 1}')),
    (
        '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>\n<tool_call>{"name": "g", "arguments": {}}'
        "</tool_call>",
        "",
        ("f", '{"a": 1}'),
        ("g", "{}"),
    ),
    ('<tool_call>{"id": 7, "type": "function", "name": "f", "arguments": {}}</tool_call>x', "x", ("f", "{}")),
    ("no call <tool_calls> at all \n", "no call <tool_calls> at all \n"),
    ("<tool_call>not JSON</tool_call>", "<tool_call>not JSON</tool_call>"),
    ('<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>'),
    ('<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>'),
    # Cut by max_tokens: what was certain stays.
    ('<tool_call>{"name": "f", "arguments": {"city": "Par', "", ("f", '{"city": "Par')),
    ('<tool_call>{"name": "f", "arg', '<tool_call>{"name": "f", "arg'),
    ("text <tool_ca", "text <tool_ca"),
    # Malformed behind the point of no return.
    (
        '<tool_call>{"name": "f", "arguments": {"a": 1}]}</tool_call>x<tool_call>{"name":"g"}</tool_call>',
        "x",
        ("f", '{"a": 1}'),
        ("g", "{}"),
    ),
]
LLAMA = [
    ('{"name": "f", "parameters": {"a": 1}}', "", ("f", '{"a": 1}')),
    ('  {"type": "function", "name": "f", "parameters": {"a": "x"}}', "", ("f", '{"a": "x"}')),
    (
        '{"name": "f", "parameters": {}}; {"name": "get_weather", "parameters": {}}',
        "",
        ("f", "{}"),
        ("get_weather", "{}"),
    ),
    ('{"name": "f", "parameters": {}}, {"name": "f", "parameters": {}}', "", ("f", "{}"), ("f", "{}")),
    ('<|python_tag|>{"name": "other", "parameters": {}}', "", ("other", "{}")),
    ('Well: <|python_tag|>{"name": "f", "parameters": {}}', "Well:", ("f", "{}")),
    ('{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}'),
    ('{"name": "Ann", "parameters": {}}', '{"name": "Ann", "parameters": {}}'),
    ("The answer is {} 4.", "The answer is {} 4."),
    (' {"a": 1}', ' {"a": 1}'),
    ('<|python_tag|>search.call(query="x")', '<|python_tag|>search.call(query="x")'),
]
MISTRAL = [
    ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', "", ("f", '{"a": 1}')),
    (
        '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"b": 2}}]',
        "",
        ("f", "{}"),
        ("g", '{"b": 2}'),
    ),
    ('Hm.[TOOL_CALLS]f[ARGS]{"a": {"b": 1}}', "Hm.", ("f", '{"a": {"b": 1}}')),
    ('[TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g[CALL_ID]a1b2c3d4e[ARGS]{}', "", ("f", '{"a": 1}'), ("g", "{}")),
    ('[TOOL_CALLS]{"name": "f", "arguments": {}}', "", ("f", "{}")),
    ('[TOOL_CALLS]f [ARGS] {"a": 1}', "", ("f", '{"a": 1}')),
    ("[TOOL_CALLS] g [CALL_ID]a1b2c3d4e [ARGS]{}", "", ("g", "{}")),
    ("[TOOL_CALLS] nothing of the kind", "[TOOL_CALLS] nothing of the kind"),
    ('[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": 1}] x', "", ("f", "{}")),
    ("see [1] and [TOOL", "see [1] and [TOOL"),
]
CASES = [
    (form, case) for form, cases in (("hermes", HERMES), ("llama3", LLAMA), ("mistral", MISTRAL)) for case in cases
]


@pytest.mark.parametrize(("form", "case"), CASES)
def test_formats(form, case):
    check(form, *case)


@pytest.mark.parametrize(("form", "case"), CASES)
def test_character_by_character_is_the_same(form, case):
    whole = parse(OutputParserNames(form, "think"), [case[0]])
    assert parse(OutputParserNames(form, "think"), list(case[0])) == whole


def test_reasoning_comes_first():
    check("none", "<think>\nhm, 4\n</think>\n\nFour.", "Four.", reasoning="hm, 4")
    check("none", "\n<think></think>Four.", "Four.")
    check("none", "hm</think>\n\nFour.", "Four.", reasoning="hm", begun=True)
    check("none", "<think>hm</think>Four.", "Four.", reasoning="hm", begun=True)
    check("none", "<think>cut off", "", reasoning="cut off")
    check("none", "Four <think>no</think>", "Four <think>no</think>")
    check("none", "  Four", "  Four")
    check(
        "hermes",
        '<think>I call <tool_call>f</tool_call></think>\n<tool_call>{"name": "f", "arguments": {}}</tool_call>',
        "",
        ("f", "{}"),
        reasoning="I call <tool_call>f</tool_call>",
    )


def test_without_tools_nothing_is_a_call():
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    check("hermes", text, text, tools=None)
    parser = OutputParser(OutputParserNames("hermes", "none"), tools=None)
    assert parser.push("<tool_call>") == [Content("<tool_call>")]  # nothing waits


def test_text_is_not_held_longer_than_needed():
    parser = OutputParser(OutputParserNames("hermes", "think"), tools=TOOLS)
    assert parser.push("Four") == [Content("Four")]
    assert parser.push(" <b") == [Content(" <b")]
    assert parser.push(" <t") == []
    assert parser.push("d>") == [Content(" <td>")]
    parser = OutputParser(OutputParserNames("hermes", "think"), tools=TOOLS)
    assert parser.push("<think>a") == [Reasoning("a")]
    parser.push('</think><tool_call>{"name": "f", "arguments": {"c')
    assert parser.push('ity": "Pa') == [CallArguments('ity": "Pa')]  # they come as they are written


# Texts made of the formats' own pieces, so that nearly right ones are common.
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"]
CALLS = [
    '{"name": "f", "arguments": {"a": [1, "}"]}}',
    '{"name": "f", "parameters": {}}',
    '{"name": "f"',
    ', "arguments": ',
]
BITS = ['"name"', '"arguments"', ": ", '"f"', *'{}[],;"\\ \nf<x', "12", "null"]
SHREDS = st.sampled_from([*TAGS, *CALLS, *BITS])


@settings(max_examples=400, deadline=None)
@given(data=st.data(), form=st.sampled_from(["hermes", "llama3", "mistral"]), begun=st.booleans())
def test_the_stream_adds_up_to_the_whole(data, form, begun):
    text = "".join(data.draw(st.lists(SHREDS, max_size=14)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    form = OutputParserNames(form, "think")
    whole = parse(form, [text], begun=begun)
    assert parse(form, pieces, begun=begun) == whole
    assert parse(form, list(text), begun=begun) == whole


@settings(max_examples=200, deadline=None)
@given(
    form=st.sampled_from(["hermes", "llama3", "mistral"]),
    calls=st.lists(
        st.tuples(st.sampled_from(TOOLS), st.dictionaries(st.text(), st.text() | st.integers())), min_size=1
    ),
    content=st.text(alphabet="abc <[{"),
)
def test_what_a_model_would_write_comes_back(form, calls, content):
    key = "parameters" if form == "llama3" else "arguments"
    objects = [json.dumps({"name": name, key: arguments}) for name, arguments in calls]
    if form == "hermes":
        text = content + "".join(f"\n<tool_call>\n{each}\n</tool_call>" for each in objects)
    elif form == "llama3":
        text, content = "; ".join(objects), ""
    else:
        text = content + "[TOOL_CALLS] [" + ", ".join(objects) + "]"
    answer = parse(OutputParserNames(form), [text])
    assert answer.content == content.rstrip()
    assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == calls


def test_special_tokens_that_the_parsers_need():
    form = OutputParserNames("hermes", "think")
    assert set(form.marks(tools=True)) == {"<think>", "</think>", "<tool_call>", "</tool_call>"}
    assert set(form.marks(tools=False)) == {"<think>", "</think>"}
    assert OutputParserNames().marks(tools=True) == ()
    assert OutputParserNames("hermes", "think").begun("...<think>\n")
    assert not OutputParserNames("hermes", "think").begun("<think>\n\n</think>\n\n")
