"""Which part of an answer a token belongs to: random cuts of texts into tokens, judged character by character."""

from __future__ import annotations

import random

import pytest

from jaxinfer.outputs import Delta
from jaxinfer.text.answers import CallArguments, CallName, Content, OutputParser, OutputParserNames, Reasoning
from serving.http.parts import Part, PartedAnswer, joined
from serving.http.tokens import ShownTokens, Token

HERMES, MISTRAL = OutputParserNames("hermes", "think"), OutputParserNames("mistral", "mistral")
QWEN, GEMMA = OutputParserNames("qwen3_xml", "think"), OutputParserNames("gemma4", "gemma4")
DEEPSEEK = OutputParserNames("deepseek_v4", "think")

ANSWERS = [
    (
        HERMES,
        "<think>\nab t\n</think>\n\nt then\n"
        '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>\n'
        '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
    ),
    (HERMES, "<think>all of it"),
    (HERMES, "no call: <tool_call>{7} < b"),
    (HERMES, 't<tool_call>{"name": "f", "arguments": {"k": "t"}}</tool_call>t'),
    (MISTRAL, '[THINK]x y[/THINK]t[TOOL_CALLS][{"name": "f", "arguments": {"a": "[]"}}, {"name": "g"}]'),
    (MISTRAL, 't[TOOL_CALLS]f[ARGS]{"a": 1}'),
    (
        QWEN,
        "<think>\nab t\n</think>\n\nt then\n"
        "<tool_call>\n<function=f>\n<parameter=a>\nx y\n</parameter>\n</function>\n</tool_call>",
    ),
    (QWEN, "t<tool_call>\n<function=f>\n<parameter=a>\nx y\n</parameter>\n</function>\n</tool_call>\nt"),
    (GEMMA, '<|channel>thought\nab<channel|>t<|tool_call>call:f{a:<|"|>x y<|"|>}<tool_call|>'),
    (
        DEEPSEEK,
        't<|invoke name="g"><|parameter name="a">x y</|parameter></|invoke>t'.replace("|", "\uff5cDSML\uff5c"),
    ),
    (OutputParserNames("llama3", "none"), '{"name": "f", "parameters": {"a": "t"}}; {"name": "g", "parameters": {}}'),
]


def cut(text: str, random_: random.Random, longest: int) -> list[Token]:
    """Tokens of 1 to `longest` characters, and some without text."""
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        end = at if random_.random() < 0.1 else min(len(text), at + random_.randint(1, longest))
        tokens.append(Token(len(tokens), None, at, end, b""))
        at = end
    return [*tokens, Token(len(tokens), None, at, at, b"")]  # the end token


def parts_of(form: OutputParserNames, text: str, tokens: list[Token]) -> list[Part]:
    answer = PartedAnswer(OutputParser(form, tools={"f", "g"}), form.marks(tools=True))
    parts: list[Part] = []
    for token in tokens:
        parts += answer.push(text[token.begin : token.end], token)
    return joined([*parts, *answer.finish()])


@pytest.mark.parametrize(("form", "text"), ANSWERS)
def test_every_token_is_in_one_part_and_spells_it(form: OutputParserNames, text: str) -> None:
    whole = OutputParser(form, tools={"f", "g"})
    expected = joined([Part(event, []) for event in [*whole.push(text), *whole.finish()]])
    for seed in range(60):
        random_ = random.Random(seed)
        tokens = cut(text, random_, longest=random_.choice([1, 3, 12]))
        parts = parts_of(form, text, tokens)
        told = [part.event for part in parts if part.event is not None]
        assert [(type(e), e[0]) for e in told if e[0]] == [(type(e.event), e.event[0]) for e in expected]
        assert [token for part in parts for token in part.tokens] == tokens
        hidden = ""
        for event, own in parts:
            spelled = "".join(text[token.begin : token.end] for token in own)
            if isinstance(event, Content):
                assert event.text in spelled or max(token.end - token.begin for token in tokens) > 1
            if isinstance(event, Reasoning):
                hidden += spelled
        assert all(part.event.text in hidden for part in expected if isinstance(part.event, Reasoning))


@pytest.mark.parametrize(("form", "text"), ANSWERS)
def test_tokens_of_one_character_are_in_exactly_their_part(form: OutputParserNames, text: str) -> None:
    tokens = [Token(i, None, i, i + 1, b"") for i in range(len(text))]
    for event, own in parts_of(form, text, tokens):
        spelled = "".join(text[token.begin : token.end] for token in own)
        if isinstance(event, Content):
            assert spelled == event.text, "neither tags nor other parts are content"
        elif isinstance(event, CallName):
            assert event.name in spelled
        elif isinstance(event, Reasoning | CallArguments):
            other = form in (QWEN, GEMMA, DEEPSEEK)  # formats that write arguments in another way than JSON
            assert event.text in spelled or event.text == "{}" or (other and "x y" in spelled)
        else:
            assert not spelled.strip()


def test_what_closes_a_part_belongs_to_it() -> None:
    text = '<think>r</think>\nt <tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g"'
    text += ', "arguments": {"a": 1}}</tool_call>end'
    tokens = [Token(i, None, i, i + 1, b"") for i in range(len(text))]
    found = [
        (type(event).__name__, "".join(text[token.begin : token.end] for token in own))
        for event, own in parts_of(HERMES, text, tokens)
    ]
    assert found == [
        ("Reasoning", "<think>r</think>\n"),
        ("Content", "t"),
        ("CallName", ' <tool_call>{"name": "f", "arguments": '),
        ("CallArguments", "{}}</tool_call>"),
        ("CallName", '<tool_call>{"name": "g", "arguments": '),
        ("CallArguments", '{"a": 1}}</tool_call>'),
        ("Content", "end"),
    ]


@pytest.mark.parametrize(
    ("cuts", "expected"),
    [
        # A token belongs to the part in which it begins; reasoning takes every token that has some of it.
        (["<think>", "why", "</think>\n\nThe", " end"], {"Reasoning": "<think>why</think>\n\nThe", "Content": " end"}),
        (["<think>", "why", "</think>", "\n", "\n", " The", " end"], {
            "Reasoning": "<think>why</think>\n\n",
            "Content": " The end",
        }),
        (["<think>why", " ", " The", " end"], {"Reasoning": "<think>why  The end"}),
        (["<think>why</think>", " ", " <tool_call>x"], {
            "Reasoning": "<think>why</think> ",
            "Content": " <tool_call>x",
        }),
        (["<think>why</think>The", " end"], {"Reasoning": "<think>why</think>The", "Content": " end"}),
        (["  <think>w", "hy</think>", "The", " end"], {"Reasoning": "  <think>why</think>", "Content": "The end"}),
        (['The<tool_call>{"name": "f", "arguments": {"a', '": 1}}</tool_call>'], {
            "Content": 'The<tool_call>{"name": "f", "arguments": {"a',
            "CallName": "",
            "CallArguments": '": 1}}</tool_call>',
        }),
    ],
)  # fmt: skip
def test_a_token_that_spans_two_parts(cuts: list[str], expected: dict[str, str]) -> None:
    text, at, tokens = "".join(cuts), 0, []
    for piece in cuts:
        tokens.append(Token(len(tokens), None, at, at + len(piece), b""))
        at += len(piece)
    found: dict[str, str] = {}
    for event, own in parts_of(HERMES, text, tokens):
        name = type(event).__name__
        found[name] = found.get(name, "") + "".join(text[token.begin : token.end] for token in own)
    assert found == expected


def test_reasoning_is_counted_in_tokens_that_spell_it() -> None:
    answer = PartedAnswer(OutputParser(HERMES, tools=None), HERMES.marks(tools=False))
    at = 0
    for piece in ("<think>", "\n", "one", " two", "\n\n", "three", "\n", "</think>", "\n\n", "four"):
        answer.push(piece, Token(0, None, at, at + len(piece), b""))
        at += len(piece)
    answer.finish()
    assert answer.reasoning_tokens == 4  # "one", " two", the line between, "three"


def test_a_token_waits_for_its_text_and_tokens_behind_a_stop_have_none() -> None:
    shown = ShownTokens(lambda token, open_: b"")
    assert list(shown.add(Delta(0, ["a"], [1, 2], [], ends=[1, 4]))) == [("a", Token(1, None, 0, 1, b""))]
    assert list(shown.add(Delta(0, [], [3], [], ends=[6]))) == []
    assert list(shown.add(Delta(0, ["bcd"], [4], [], ends=[8]))) == [("bcd", Token(2, None, 1, 4, b""))]
    last = list(shown.add(Delta(0, ["e"], [5], [], "stop", "f", ends=[9])))
    assert [(text, token and token[:1] + token[2:4]) for text, token in last] == [
        ("e", (3, 4, 5)), ("", (4, 5, 5)), ("", (5, 5, 5)),
    ]  # fmt: skip
