"""What only an answer's end can tell: arguments that are no JSON, calls in a reasoning, cut tags. And that whole and
streamed answers say the same wherever a stream can know it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.text.answers import OutputParser, OutputParserNames, ToolCall, collect
from tests.jaxinfer.text.answers.test_answers import BITS, CALLS, TAGS

TOOLS = ("get_weather", "f", "g")
BOTH = pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])


def parse(form: OutputParserNames, pieces, *, whole: bool, begun: bool = False, tools=TOOLS):
    parser = OutputParser(form, tools=tools, begun=begun, whole=whole)
    events = [event for piece in pieces for event in parser.push(piece)]
    return collect([*events, *parser.finish()])


def check(form: str, text: str, content: str, *calls, whole: bool, reasoning: str = "", **more) -> None:
    kinds = form.split("+")
    form = OutputParserNames(kinds[0], kinds[1] if len(kinds) > 1 else "think")
    expected = (content, reasoning, [ToolCall(*call) for call in calls])
    for pieces in ([text], list(text), [text[i : i + 3] for i in range(0, len(text), 3)]):
        answer = parse(form, pieces, whole=whole, **more)
        assert (answer.content, answer.reasoning, answer.calls) == expected


# Calls whose arguments are no JSON object, as (format, text, name and arguments as a stream tells them).
BAD_ARGUMENTS = [
    ("hermes", '<tool_call>{"name": "f", "arguments": {"t": "a\nb"}}</tool_call>', ("f", '{"t": "a\nb"}')),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1,}}</tool_call>', ("f", '{"a": 1,}')),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', ("f", '{"a": NaN}')),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"text": "once up', ("f", '{"text": "once up')),
    ("hermes", '<tool_call>{"name": "f", "arguments": {\'a\': 1}}</tool_call>', ("f", "{'a': 1}")),
    ("granite", '<|tool_call|>[{"name": "f", "arguments": {"a": 1,}}]', ("f", '{"a": 1,}')),
    ("llama3", '{"name": "f", "parameters": {"a": 1,}}', ("f", '{"a": 1,}')),
    ("llama3", '<|python_tag|>{"name": "f", "parameters": {"a": "cu', ("f", '{"a": "cu')),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"t": "a\nb"}}]', ("f", '{"t": "a\nb"}')),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1,}', ("f", '{"a": 1,}')),
    ("mistral", '[TOOL_CALLS]f{"a": "cu', ("f", '{"a": "cu')),
]


@pytest.mark.parametrize(("form", "text", "told"), BAD_ARGUMENTS)
def test_arguments_that_are_no_json_are_content_of_a_whole_answer(form, text, told) -> None:
    check(form, text, text, whole=True)
    check(form, text, "", told, whole=False)


@BOTH
def test_other_calls_of_such_an_answer_stay(whole: bool) -> None:
    good, bad = '{"name": "g", "arguments": {}}', '{"name": "f", "arguments": "{\\"a\\": 1,}"}'
    text = f"<tool_call>{bad}</tool_call>\n<tool_call>{good}</tool_call>"
    check("hermes", text, f"<tool_call>{bad}</tool_call>", ("g", "{}"), whole=whole)
    check("mistral", f"[TOOL_CALLS][{good}, {bad}", bad, ("g", "{}"), whole=whole)


@BOTH
@pytest.mark.parametrize("arguments", ["null", '""', '" "', '"{}"', "{}"])
def test_arguments_that_say_nothing_are_an_empty_object(arguments: str, whole: bool) -> None:
    expected = ("f", "{}")
    check("hermes", f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>', "", expected, whole=whole)
    check("hermes", f'<tool_call>{{"arguments": {arguments}, "name": "f"}}</tool_call>', "", expected, whole=whole)


@BOTH
@pytest.mark.parametrize("arguments", ["[]", "5", "true", '"text"', '"[1]"'])
def test_arguments_of_another_kind_are_content(arguments: str, whole: bool) -> None:
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
    check("hermes", text, text, whole=whole)


@BOTH
def test_lists_of_calls(whole: bool) -> None:
    objects = '[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]'
    calls = ("f", '{"a": 1}'), ("g", "{}")
    check("hermes", f"I look.<tool_call>\n{objects}\n</tool_call>", "I look.", *calls, whole=whole)
    check("granite", f"<tool_call>{objects}", "", *calls, whole=whole)
    check("granite", f"<|tool_call|> {objects}", "", *calls, whole=whole)
    check("granite", f"<|tool_call|>{objects}<|/tool_call|>", "", *calls, whole=whole)
    check("hermes", "<tool_call>[1, 2]</tool_call>", "<tool_call>[1, 2]</tool_call>", whole=whole)


@BOTH
@pytest.mark.parametrize(
    ("form", "text", "behind"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}', "\n</tool_call>\n<tool_call>"),
        ("granite", '<|tool_call|>[{"name": "f", "arguments": {}}', "]<|/tool_call|><|tool_call|>"),
        ("llama3", '{"name": "f", "parameters": {}}', "; <|python_tag|>"),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}}', "]\n[TOOL_CALLS]"),
    ],
)
def test_an_answer_that_is_cut_behind_a_call_leaks_nothing(form, text, behind, whole) -> None:
    for length in range(len(behind)):
        check(form, text + behind[:length], "", ("f", "{}"), whole=whole)


@BOTH
def test_an_answer_that_is_cut_inside_the_closing_of_the_reasoning(whole: bool) -> None:
    for length in range(2, len("</think>")):
        check("none", "<think>hm" + "</think>"[:length], "", reasoning="hm", whole=whole)
    check("none", "<think>a <", "", reasoning="a <", whole=whole)


CALL = '<tool_call>\n{"name": "f", "arguments": {"city": "Bern"}}\n</tool_call>'
BERN = ("f", '{"city": "Bern"}')


@BOTH
@pytest.mark.parametrize("begun", [False, True])
def test_a_call_ends_a_reasoning_that_is_never_closed(begun: bool, whole: bool) -> None:
    opening = "" if begun else "<think>\n"
    more = {"whole": whole, "begun": begun}
    check("hermes", f"{opening}I will call.\n{CALL}", "", BERN, reasoning="I will call.", **more)
    check("hermes", f"{opening}I will.\n{CALL}\n{CALL}", "", BERN, BERN, reasoning="I will.", **more)
    check("hermes", f"{opening}{CALL}", "", BERN, **more)
    check("hermes", f"{opening}I may <tool_call> it.\n{CALL}", "", BERN, reasoning="I may <tool_call> it.", **more)
    check("mistral", f'{opening}Hm. [TOOL_CALLS]f[ARGS]{{"a": 1}}', "", ("f", '{"a": 1}'), reasoning="Hm.", **more)
    named = '<|python_tag|>{"name": "f", "parameters": {}}'
    check("llama3", f"{opening}Hm. {named}", "", ("f", "{}"), reasoning="Hm.", **more)


@BOTH
def test_a_draft_in_a_reasoning_that_is_closed_later_is_no_call(whole: bool) -> None:
    check("hermes", f"<think>a {CALL} b</think>{CALL}", "", BERN, reasoning=f"a {CALL} b", whole=whole)
    check("hermes", f"<think>a {CALL}</think>\n\nNo call.", "No call.", reasoning=f"a {CALL}", whole=whole)
    check("hermes", "<think>say <tool_call>{</think>x", "x", reasoning="say <tool_call>{", whole=whole)
    text = "use <tool_call> or </tool_call>, then\nstop"
    check("hermes", f"<think>{text}", "", reasoning=text, whole=whole)
    cut = '<tool_call>{"name": "f", "argu'
    check("hermes", f"<think>a {cut}", "", reasoning=f"a {cut}", whole=whole)
    check("hermes", f"<think>a {CALL}", "", reasoning=f"a {CALL}", whole=whole, tools=None)


def test_reasoning_streams_up_to_what_may_be_a_call() -> None:
    parser = OutputParser(OutputParserNames("hermes", "think"), tools=TOOLS, begun=True)
    assert [event.text for event in parser.push("I think. <tool_")] == ["I think."]
    assert [event.text for event in parser.push("call> is")] == [" <tool_call>", " is"]
    assert parser.reasoning
    parser.push(f" {CALL} and ")
    assert parser.reasoning  # the reasoning may still be closed
    assert parser.push("so</think>")[0].text == f" {CALL} and so"
    assert not parser.reasoning


@BOTH
def test_a_closing_tag_again_is_dropped(whole: bool) -> None:
    check("none", "<think>\n\n</think>\n\nFour.", "Four.", whole=whole)
    check("none", "<think>hm</think>\n</think>\n\nFour.", "Four.", reasoning="hm", whole=whole)
    check("none", "<think>hm</think>a <b", "a <b", reasoning="hm", whole=whole)
    check("none", "<think>hm</think><", "<", reasoning="hm", whole=whole)


def test_a_closing_tag_without_an_opening_ends_the_reasoning_of_a_whole_answer() -> None:
    check("none", "3 + 4 is\n7.\n</think>\n\nSeven.", "Seven.", reasoning="3 + 4 is\n7.", whole=True)
    check("hermes", f"hm</think>{CALL}", "", BERN, reasoning="hm", whole=True)
    check("none", "The tag `</think>` closes it.", "The tag `</think>` closes it.", whole=True)
    check("none", "Four <think>no</think>", "Four <think>no</think>", whole=True)
    check("none", "  Four.\n", "  Four.\n", whole=True)


@pytest.mark.parametrize("prompt", ["<|im_start|>assistant\n", "<\uff5cAssistant\uff5c>"])
def test_models_that_leave_the_opening_out_are_known(prompt: str) -> None:
    form = OutputParserNames("none", "think", unopened=True)
    assert form.begun(prompt)
    assert not form.begun(prompt + "<think>\n\n</think>\n\n")
    for whole in (False, True):
        check("none", "<think>\nhm\n</think>\n7", "7", reasoning="hm", whole=whole, begun=True)


def test_where_a_prompt_leaves_the_reasoning() -> None:
    form = OutputParserNames("none", "think")
    assert form.begun("assistant\n<think>\n")
    assert not form.begun("assistant\n<think>\n\n</think>\n\n")
    assert not form.begun("<think>;assistant")  # perhaps the user's
    assert form.begun("assistant\n<think>\nOkay, ", turn=True)
    assert not form.begun("assistant\n<think>\nOkay</think>\nThe", turn=True)
    assert not form.begun("assistant\n", turn=True)


@BOTH
def test_granite(whole: bool) -> None:
    spoken = "Here is my thought process: 3 + 4.\n\nHere is my response:\nSeven."
    check("granite+granite", spoken, "Seven.", reasoning="3 + 4.", whole=whole)
    check("granite+granite", spoken.replace("Here is", "Here's"), "Seven.", reasoning="3 + 4.", whole=whole)
    tagged = "<think>3 + 4.</think>\n<response>Seven. 1 < 2</response>"
    check("granite+granite", tagged, "Seven. 1 < 2", reasoning="3 + 4.", whole=whole)
    check("granite+granite", tagged[:-4], "Seven. 1 < 2" + "</respo", reasoning="3 + 4.", whole=whole)
    check("granite+granite", "<think>a</think>Here you are.", "Here you are.", reasoning="a", whole=whole)
    check("granite+granite", "Here is a list.", "Here is a list.", whole=whole)
    call = '<|tool_call|>[{"name": "f", "arguments": {}}]'
    check("granite+granite", f"<think>a</think>{call}", "", ("f", "{}"), reasoning="a", whole=whole)


SHREDS = st.sampled_from([*TAGS, *CALLS, *BITS, CALL, "<|tool_call|>", "<response>", "</response>", "word "])
FORMS = st.builds(
    OutputParserNames,
    st.sampled_from(["hermes", "llama3", "mistral", "granite", "none"]),
    st.sampled_from(["think", "granite", "none"]),
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), form=FORMS, begun=st.booleans(), whole=st.booleans())
def test_cuts_change_nothing(data, form, begun, whole) -> None:
    text = "".join(data.draw(st.lists(SHREDS, max_size=14)))
    begun = begun and form.reasoning != "none"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    at_once = parse(form, [text], whole=whole, begun=begun)
    assert parse(form, pieces, whole=whole, begun=begun) == at_once
    assert parse(form, list(text), whole=whole, begun=begun) == at_once
    if whole:
        assert all(isinstance(json.loads(call.arguments), dict) for call in at_once.calls)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), form=FORMS, begun=st.booleans())
def test_the_whole_is_the_stream_where_its_calls_are_json(data, form, begun) -> None:
    shreds = st.sampled_from(
        ["<think>a</think>", "\n", "word ", CALL, "<tool_call>", "<|tool_call|>", *TAGS[2:], *CALLS[:2]]
    )
    text = "".join(data.draw(st.lists(shreds, max_size=8)))
    begun = begun and form.reasoning != "none"
    stream, whole = (parse(form, [text], whole=whole, begun=begun) for whole in (False, True))
    try:
        valid = all(isinstance(json.loads(call.arguments), dict) for call in stream.calls)
    except ValueError:
        valid = False
    unopened = whole.reasoning and not stream.reasoning
    if valid and not unopened:
        assert whole == stream
