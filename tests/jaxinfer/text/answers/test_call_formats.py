"""All formats of tool calls alike: what a format spells comes back, whole, in pieces, in thoughts and cut off."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.text.answers import CallSpelling, OutputParser, OutputParserNames, collect
from jaxinfer.text.answers.events import Answer
from jaxinfer.text.answers.formats import CALL_FORMATS, CALL_SPELLINGS
from jaxinfer.text.answers.spelling import GemmaArguments, ParameterArguments

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "code": {"type": "string"},
        "days": {"type": "integer"},
        "ratio": {"type": "number"},
        "sure": {"type": "boolean"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "place": {"$ref": "#/$defs/Place"},
        "list": {"type": "array", "items": {"type": "string"}},
    },
    "$defs": {"Place": {"type": "object", "properties": {"at": {"type": "array"}}}},
}
TOOLS = {"look_up": SCHEMA, "g": {"type": "object", "properties": {}}}
# Written so that no string is an end in any format.
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"city": "Bern"},
    {"city": "Z\u00fcrich \u2014 \U0001f30d \u6771\u4eac", "code": 'if a < b:\n\tprint("{x}", [1])\n\n# \\n'},
    {"city": "5", "code": "", "days": -3, "ratio": 0.5, "sure": True, "note": None},
    {"note": "null and void", "sure": False, "code": " {true} "},
    {"place": {"at": [1, {"k": "]}"}, []], "empty": {}}, "list": ["a, b", "c:d"]},
]


class Case(NamedTuple):
    form: str
    spelling: CallSpelling
    text: str
    calls: list[tuple[str, Any]]


def _case(form: str, spelling: CallSpelling, *calls: tuple[str, Any]) -> Case:
    written = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    return Case(form, spelling, spelling.spell_all(written), list(calls))


SPELLINGS = [(form, spelling) for form, spellings in CALL_SPELLINGS.items() for spelling in spellings]
SINGLE = [_case(*each, ("look_up", arguments)) for each in SPELLINGS for arguments in ARGUMENTS]
SHORT = {"city": "\u6771 {5}", "days": -3, "note": None}
SEVERAL = [_case(*each, ("look_up", SHORT), ("g", {})) for each in SPELLINGS]
NAMES = [f"{form}-{i}" for form, spellings in CALL_SPELLINGS.items() for i in range(len(spellings))]
ALL = pytest.mark.parametrize("several", SEVERAL, ids=NAMES)
# Around the reasoning, and the format that goes with it.
REASONING = {
    "harmony": ("harmony", "<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
    "gemma4": ("gemma4", "<|channel>thought\n", "\n<channel|>"),
    "seed_oss": ("seed_oss", "<seed:think>", "</seed:think>"),
    "mistral": ("mistral", "[THINK]", "[/THINK]"),
}
THINK = ("think", "<think>\n", "\n</think>\n\n")


def parse(form: str, pieces: list[str], *, reasoning: str = "", whole: bool = False, cut: bool = False) -> Answer:
    names = OutputParserNames(form, "harmony" if form == "harmony" else reasoning or "none")
    parser = OutputParser(names, tools=TOOLS, whole=whole)
    events = [event for piece in pieces for event in parser.push(piece)]
    return collect([*events, *parser.finish(cut=cut)])


def calls_of(answer: Answer) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in answer.calls]


@pytest.mark.parametrize("case", [*SINGLE, *SEVERAL], ids=lambda case: case.form)
def test_what_is_spelled_comes_back(case: Case) -> None:
    for whole in (False, True):
        for pieces in ([case.text], list(case.text)):
            answer = parse(case.form, pieces, whole=whole)
            assert calls_of(answer) == case.calls
            assert (answer.content, answer.reasoning) == ("", "")


@ALL
def test_every_cut_into_two_pieces_says_the_same(several: Case) -> None:
    at_once = parse(several.form, [several.text])
    for i in range(1, len(several.text)):
        assert parse(several.form, [several.text[:i], several.text[i:]]) == at_once


@ALL
def test_text_before_and_after(several: Case) -> None:
    form, _, text, calls = several
    if form == "harmony":
        before, after = "<|channel|>final<|message|>I look.<|end|><|start|>assistant", ""
    else:
        before, after = "I look.\n\n", "\n"
    before = "" if form == "llama3" else before  # there a call is the whole answer
    for whole in (False, True):
        answer = parse(form, list(before + text + after), whole=whole)
        assert calls_of(answer) == calls
        assert answer.content == ("I look." if before else "")


@ALL
def test_calls_in_thoughts_that_end_later_are_thoughts(several: Case) -> None:
    form, spelling, text, calls = several
    reasoning, opening, closing = REASONING.get(form, THINK)
    # In harmony a message ends at its first tag of an end.
    draft = "to=functions.g" if form == "harmony" else spelling.spell_all([("g", "{}")])
    for whole in (False, True):
        for pieces in ([opening + draft + closing + text], list(opening + draft + closing + text)):
            answer = parse(form, pieces, reasoning=reasoning, whole=whole)
            assert answer.reasoning == draft.strip()
            assert calls_of(answer) == calls
            assert answer.content == ""


@ALL
def test_an_answer_cut_anywhere_shows_no_markup(several: Case) -> None:
    """From the second character of a tag on; of Llama's bare objects from the name on, for before it may be JSON."""
    form, _, text, calls = several
    tags = ("<", "[TOOL", "functools", '{"name": "look_up"')
    for length in range(len(text) + 1):
        for whole in (False, True):
            answer = parse(form, [text[:length]], whole=whole, cut=True)
            bare = form == "llama3" and answer.content == text[:length].strip() and not answer.calls
            assert bare or len(answer.content) < 2 or not any(tag in answer.content for tag in tags), answer
            assert [call.name for call in answer.calls] == [name for name, _ in calls[: len(answer.calls)]]
            for call, (_, arguments) in zip(answer.calls, calls, strict=False):
                if whole or call is not answer.calls[-1]:
                    assert json.loads(call.arguments) == arguments


@ALL
def test_a_call_whose_closing_is_cut_is_complete(several: Case) -> None:
    form, spelling, _, _ = several
    text = spelling.spell_all([("look_up", '{"city": "Bern"}')])
    closing = (spelling.after_arguments + spelling.closing).rstrip()
    shared = len(closing) - len(closing.lstrip("}"))  # that belongs to the arguments
    certain = 2  # characters of a closing tag that no other tag begins with
    for length in range(len(closing) - shared - certain):
        for whole in (False, True):
            answer = parse(form, list(text.rstrip()[: len(text.rstrip()) - length]), whole=whole, cut=True)
            assert answer.content == ""
            assert calls_of(answer) == [("look_up", {"city": "Bern"})]


@ALL
def test_what_only_looks_like_a_call_is_text(several: Case) -> None:
    if several.form == "harmony":  # whose header says what a text is
        return
    opening = several.spelling.opening or several.spelling.before_name
    for text in (
        f"The tag {opening.strip()} begins it.",
        opening.strip(),
        f"{opening.strip()}\n\nNo.",
        "a < b [1] {2}",
    ):
        for whole in (False, True):
            assert parse(several.form, list(text), whole=whole) == Answer(text)


def shreds(form: str) -> list[str]:
    """What answers in a format are made of, and pieces of it."""
    parser = CALL_FORMATS[form]
    found = [
        *parser.tags,
        *parser.more_tags,
        "look_up",
        "g",
        "word ",
        "\n",
        " ",
        "<",
        "{",
        "}",
        '"',
        ":",
        ",",
        "</",
        "5",
        "[",
        "]",
    ]
    for spelling in parser.spellings:
        found += [spelling.opening, spelling.before_name, spelling.before_arguments, spelling.after_arguments]
        found += [spelling.closing, spelling.spell_all([("look_up", '{"city": "a", "days": 2}'), ("g", "{}")])]
        written = spelling.arguments
        if isinstance(written, ParameterArguments):
            found += [written.before_key, "city", written.before_text, written.before_json, written.after]
        elif isinstance(written, GemmaArguments):
            found += [written.quote, "city:", "days:"]
        else:
            found += ['{"city": "a"}', '"name": "g"']
    return [shred for shred in found if shred]


@settings(max_examples=120, deadline=None)
@given(data=st.data(), form=st.sampled_from(sorted(CALL_FORMATS)), whole=st.booleans(), cut=st.booleans())
def test_random_pieces_of_a_format_say_the_same_however_they_come(
    data: st.DataObject, form: str, whole: bool, cut: bool
) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(shreds(form)), max_size=16)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    reasoning = REASONING.get(form, THINK)[0]
    at_once = parse(form, [text], reasoning=reasoning, whole=whole, cut=cut)
    assert parse(form, pieces, reasoning=reasoning, whole=whole, cut=cut) == at_once
    assert parse(form, list(text), reasoning=reasoning, whole=whole, cut=cut) == at_once
    if whole:
        assert all(isinstance(json.loads(call.arguments), dict) for call in at_once.calls)
