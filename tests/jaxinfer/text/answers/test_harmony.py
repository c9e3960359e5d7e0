"""gpt-oss's format: what openai-harmony reads and renders (scripts/make_harmony_cases.py), and what it refuses."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.text.answers import PUT_IN, OutputParser, OutputParserNames, ToolCall, collect
from jaxinfer.text.answers.events import Answer
from jaxinfer.text.answers.harmony_header import TAGS
from jaxinfer.text.answers.scanning import SPACE, is_json_object
from jaxinfer.text.chat import ChatTemplates
from jaxinfer.text.template_environment import make_environment
from tests.jaxinfer.text.answers import templates
from tests.jaxinfer.text.golden_cases import read

FORM = OutputParserNames("harmony", "harmony")
TOOLS = ("f", "get_weather")
ANSWERS: list[dict[str, Any]] = read("harmony.json")["answers"]
BOTH = pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])


def parse(pieces: Iterable[str], *, whole: bool = False, tools=TOOLS, form=FORM, begun: bool = False) -> Answer:
    parser = OutputParser(form, tools=tools, begun=begun, whole=whole)
    events = [event for piece in pieces for event in parser.push(piece)]
    return collect([*events, *parser.finish()])


def meant(messages: Iterable[dict[str, Any]], *, whole: bool) -> Answer:
    """What an answer of these messages is to a client."""
    content, reasoning, calls = [], [], []
    for message in messages:
        text = message["text"]
        if (message["recipient"] or "").startswith("functions."):
            arguments = text.strip(SPACE)
            arguments = "{}" if arguments in ("", "null") else arguments
            if is_json_object(arguments) or not whole:
                calls.append(ToolCall(message["recipient"].removeprefix("functions."), arguments))
            else:
                content.append(arguments)
        elif text:
            (reasoning if message["channel"] == "analysis" else content).append(text)
    return Answer("\n".join(content), "\n".join(reasoning), calls)


@BOTH
def test_what_the_reference_reads(whole: bool) -> None:
    assert sum(len(answer["messages"]) for answer in ANSWERS) > 200
    for answer in ANSWERS:
        expected = meant(answer["messages"], whole=whole)
        pieces = answer["pieces"]
        for cut in (pieces, ["".join(pieces)], list("".join(pieces))):
            assert parse(cut, whole=whole) == expected, "".join(pieces)


@BOTH
def test_answers_that_end_behind_any_token(whole: bool) -> None:
    """A header that is cut says nothing, and a message has the text that it has."""
    for answer in ANSWERS:
        parser, events = OutputParser(FORM, tools=TOOLS, whole=whole), []
        for i, (piece, (complete, length)) in enumerate(zip(answer["pieces"], answer["states"], strict=True)):
            events += parser.push(piece)
            messages = answer["messages"][:complete]
            if length >= 0:
                last = answer["messages"][complete]
                messages = [*messages, {**last, "text": last["text"][:length]}]
            found = collect([*events, *copy.deepcopy(parser).finish()])
            text = "".join(answer["pieces"][: i + 1])
            if found != meant(messages, whole=whole):
                # Nothing shows that it is a header: no tag before it, or a word that nobody knows.
                rest = re.split(_TAG, text)[-1]
                assert "other".startswith(rest) or " to=".startswith(text) or text.startswith(" to="), text
                assert (length, found) == (-1, Answer(rest))


def test_events_stand_where_they_say() -> None:
    for answer in ANSWERS:
        text = "".join(answer["pieces"])
        parser = OutputParser(FORM, tools=TOOLS)
        for event in [event for piece in answer["pieces"] for event in parser.push(piece)] + parser.finish():
            told = event[0]
            assert event.at is not None
            assert event.at < 0 or text[event.at : event.at + len(told)] == told


# What the reference refuses, or takes for something else.
A, F, S = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|start|>assistant"
ODD = [
    ("", Answer()),
    ("Hello", Answer("Hello")),
    (" Hello there", Answer(" Hello there")),
    ("to=day is fine", Answer("to=day is fine")),
    ("  \n", Answer("  \n")),
    ("Hello<|return|>", Answer("Hello")),
    ("Hello <|message|>you", Answer("Hello \nyou")),
    (f"{A}a<|end|>text{S}{F}b", Answer("text\nb", "a")),
    (f"{A}a<|end|>\n{S}{F}b", Answer("b", "a")),
    (f"{A}a<|end|>\n", Answer("", "a")),
    (f"{A}a<|end|>{F}b", Answer("b", "a")),
    (f"{A}a<|end|><|end|>{S}{F}b", Answer("b", "a")),
    (f"{A}a<|end|><|start|>nobody<|message|>b", Answer("b", "a")),
    (f"{A}a<|end|><|start|>well, no{S}{F}b", Answer("well, no\nb", "a")),
    (f"<|channel|>analysis{S}{F}b", Answer("b")),
    (f"<|channel|>analysis{F}b", Answer("b")),
    (f"<|channel|>analysis<|end|>{S}{F}b", Answer("b")),
    ("<|channel|> final<|message|>b", Answer("b")),
    ("<|channel|><|message|>b", Answer("b")),
    ("<|channel|>final b", Answer(" b")),
    ("<|channel|>final The answer is 4.", Answer(" The answer is 4.")),
    ("<|channel|>analysis I think of it<|end|>" + S + F + "b", Answer("b", " I think of it")),
    ("<|channel|>the answer is 4", Answer("the answer is 4")),
    ("<|channel|>commentaryto=functions.f<|message|>{}", Answer("{}")),
    ('<|channel|>commentary to=functions.f {"a": 1}', Answer(calls=[ToolCall("f", '{"a": 1}')])),
    ('<|channel|>commentary to=f<|message|>{"a": 1}', Answer(calls=[ToolCall("f", '{"a": 1}')])),
    ("<|channel|>commentary json to=functions.f<|message|>{}<|call|>", Answer(calls=[ToolCall("f", "{}")])),
    ("<|channel|>commentary <|constrain|>json to=functions.f<|message|>{}", Answer(calls=[ToolCall("f", "{}")])),
    ("<|channel|>commentary to=functions.new<|message|>{}", Answer(calls=[ToolCall("new", "{}")])),
    ("<|channel|>commentary to=functions.<|message|>{}", Answer("{}")),
    ("<|channel|>commentary to=<|message|>{}", Answer("{}")),
    ("<|channel|>commentary to=functions.f<|call|>", Answer()),
    ("<|channel|>commentary to=functions.f code to=functions.f<|message|>{}", Answer(calls=[ToolCall("f", "{}")])),
    ("<|channel|>commentary to=functions.f <|constrain|>I need it.<|end|>", Answer("I need it.")),
    (f"{S}<|channel|>f<|channel|>commentary to=functions.f<|message|>{{}}", Answer(calls=[ToolCall("f", "{}")])),
    (f"{S}assistant{A}a", Answer("", "a")),
    ("<|channel|>analysis??<|message|>a", Answer("", "a")),
    ("<|channel|>finally, then", Answer("finally, then")),
    (f"<|channel|>commentary to=assistant<|channel|>commentary?<|end|>{S}{A}a", Answer("", "a")),
    ("<|channel|>final" + " x" * 2000, Answer(" x" * 2000)),
    ("<|channel|>" + "x" * 2000 + "<|message|>b", Answer("x" * 2000 + "\nb")),
    (" " * 2000 + F + "b", Answer(" " * 2000 + "\nb")),
]


@BOTH
@pytest.mark.parametrize(("text", "expected"), ODD, ids=[text[:60] for text, _ in ODD])
def test_what_is_malformed(text: str, expected: Answer, whole: bool) -> None:
    for pieces in ([text], list(text), [text[i : i + 3] for i in range(0, len(text), 3)]):
        assert parse(pieces, whole=whole) == expected


@BOTH
def test_a_header_that_is_cut_says_nothing(whole: bool) -> None:
    header = f"{S} to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>"
    for length in range(len(header)):
        cut = header[:length]
        if any(cut.endswith(tag[:i]) for tag in TAGS for i in range(1, len(tag))):
            continue  # tokens never end inside of a tag
        assert parse([f"{A}a<|end|>{cut}"], whole=whole) == Answer("", "a"), cut


@BOTH
def test_without_tools_nothing_is_a_call(whole: bool) -> None:
    text = f'{A}a<|end|>{S}<|channel|>commentary to=functions.f <|constrain|>json<|message|>{{"a": 1}}<|call|>'
    assert parse([text], tools=None, whole=whole) == Answer('{"a": 1}', "a")
    assert parse([text], whole=whole, form=OutputParserNames("none", "harmony")) == Answer('{"a": 1}', "a")
    assert parse([text], whole=whole, form=OutputParserNames("harmony", "none")).content == "a"


@BOTH
def test_reasoning_that_the_prompt_has_opened(whole: bool) -> None:
    assert parse([f"a<|end|>{S}{F}b"], begun=True, whole=whole) == Answer("b", "a")
    for end, opened in (
        (f"{S}<|channel|>analysis<|message|>", True),
        (f"{S}<|channel|>analysis <|constrain|>text<|message|>So,", True),
        (f"{S}{A}a<|end|>{S}", False),
        (f"{S}{F}", False),
        (S, False),
    ):
        assert FORM.begun(end) == opened


def test_text_is_not_held_longer_than_needed() -> None:
    parser = OutputParser(FORM, tools=TOOLS)
    told = [[event[0] for event in parser.push(piece)] for piece in (A, "I ", "<", "b> ", "so<|end|>", S + F, "F", "o")]
    assert told == [[], ["I "], [], ["<b> "], ["so"], [], ["F"], ["o"]]
    parser = OutputParser(FORM, tools=TOOLS)
    call = ("<|channel|>commentary to=functions.f", "<|message|>", ' {"a', '": ', "1} ", "<|call|>")
    told = [[event[0] for event in parser.push(piece)] for piece in call]
    assert told == [[], ["f"], ['{"a'], ['":'], [" 1}"], []]
    assert parser.settled


# All that may stand around what is told, each told text being \0: headers, ends, and a header that is cut.
_TAG = r"<\|(?:start|channel|constrain|message|end|return|call)\|>"
_WORD = rf"(?:(?!{_TAG})[^\s\0])+"
HEADERS = re.compile(
    rf"(?:\s|\0|<\|(?:start|channel|constrain)\|>\s*{_WORD}|{_TAG}|to=(?:functions\.)?(?:{_WORD})?"
    rf"|{_WORD}(?=\s*<\|(?:channel|constrain|message)\|>))*"
    r"(?:(?:json|analysis|commentary|final|assistant)\s*)*[<\s]*"
)
SHREDS = st.sampled_from(
    [
        *TAGS,
        "analysis",
        "commentary",
        "final",
        "assistant",
        "to=functions.f",
        "to=",
        " ",
        "\n",
        "json",
        "word",
        *'{}"<',
        A,
    ]
)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), begun=st.booleans(), whole=st.booleans(), tools=st.sampled_from([TOOLS, (), None]))
def test_cuts_change_nothing_and_nothing_is_lost(data, begun, whole, tools) -> None:
    shreds = data.draw(st.lists(SHREDS, max_size=14))
    text = "".join(shreds)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    options = {"begun": begun, "whole": whole, "tools": tools}
    answer = parse([text], **options)
    assert parse(pieces, **options) == parse(list(text), **options) == answer
    parser = OutputParser(FORM, tools=tools, begun=begun, whole=whole)
    events = [event for event in [*parser.push(text), *parser.finish()] if event.at != PUT_IN]
    places = [(event.at, event.at + len(event[0])) for event in events]
    for (a, b), event in zip(places, events, strict=True):
        assert text[a:b] == event[0]
    gaps = zip([0, *(end for _, end in places)], [*(begin for begin, _ in places), len(text)], strict=True)
    assert HEADERS.fullmatch("\0".join(text[a:b] for a, b in gaps))
    if whole:
        assert all(isinstance(json.loads(call.arguments), dict) for call in answer.calls)


def test_rendering() -> None:
    """Our own template writes what openai-harmony writes of the same conversation, so it is given all that it needs."""
    goldens = read("harmony.json")
    clock = datetime.fromisoformat(goldens["date"])
    chats = ChatTemplates(templates.HARMONY, "the test", make_environment(lambda: clock))
    for case in goldens["conversations"]:
        variables = {name: case[name] for name in ("reasoning_effort", "model_identity") if name in case}
        text = chats.render(
            case["messages"],
            add_generation_prompt=True,
            tools=case["tools"],
            template=None,
            variables=variables,
            special_tokens={},
            settle=True,
        )
        assert text == case["text"]
