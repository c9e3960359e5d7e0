"""Every kind of task: its own answers are right, wrong ones are not, guessing does not pay, the sides do not mix."""

from __future__ import annotations

import collections
import itertools
import json
import random

import jsonschema
import pytest

from jaxinfer.evaluation.extract import canonical_json
from jaxinfer.evaluation.item import Item, Kind, draw, held_out_items, is_held_out
from jaxinfer.evaluation.tasks import KINDS
from jaxinfer.evaluation.tasks.answers import last_date, last_word
from jaxinfer.evaluation.tasks.arithmetic import added, multiplied, subtracted
from jaxinfer.evaluation.tasks.calling import found_calls
from jaxinfer.evaluation.tasks.wording import user

NAMES = sorted(KINDS)
ITEMS = 1000  # what the judge asks of each kind


class Items(dict[str, list[Item]]):
    """Of each kind, made when they are asked for."""

    def __missing__(self, name: str) -> list[Item]:
        self[name] = held_out_items(KINDS[name], ITEMS)
        return self[name]


@pytest.fixture(scope="module")
def items() -> Items:
    return Items()


@pytest.mark.parametrize("name", NAMES)
def test_a_kind_knows_right_from_wrong(name: str, items: dict[str, list[Item]]) -> None:
    kind, asked = KINDS[name], items[name]
    assert all(kind.is_right(item, item.response) for item in asked)
    # the answer to another question, and none at all
    shifted = [kind.is_right(item, other.response) for item, other in itertools.pairwise(asked)]
    assert sum(shifted) < 0.25 * len(shifted)
    assert not any(kind.is_right(item, "") for item in asked)


@pytest.mark.parametrize("name", NAMES)
def test_items_are_different_and_guessing_does_not_pay(name: str, items: dict[str, list[Item]]) -> None:
    asked = items[name]
    assert len({item.key for item in asked}) == ITEMS
    majority = collections.Counter(item.answer for item in asked).most_common(1)[0][1]
    assert majority / ITEMS <= 0.4
    assert asked[:20] == held_out_items(KINDS[name], 20)
    assert asked[:20] != held_out_items(KINDS[name], 20, seed=1)


@pytest.mark.parametrize("name", NAMES)
def test_training_items_are_not_held_out(name: str) -> None:
    rng = random.Random(1)
    drawn = [draw(KINDS[name], rng, "train") for _ in range(50)]
    assert not any(is_held_out(item.key) for item in drawn)
    assert all(item.kind == name and item.messages[-1]["role"] == "user" for item in drawn)


def test_recall_is_as_deep_as_it_says(items: dict[str, list[Item]]) -> None:
    for name, least in (("recall", 1000), ("recall_near", 0)):
        for item in items[name][:200]:
            text = item.messages[-1]["content"]
            behind = text.split(item.response, 1)[1]
            assert len(behind.split()) >= item.depth >= least
            assert len(text.split()) < 1400


def test_working_is_school_arithmetic() -> None:
    assert added(47, 85) == "7+5=12, 4+8+1=13. 47 + 85 = 132"
    assert added(3, 4) == "3 + 4 = 7"
    assert subtracted(342, 136) == "12-6=6, 4-1-3=0, 3-1=2. 342 - 136 = 206"
    assert multiplied(347, 6) == "7x6=42, 4x6+4=28, 3x6+2=20. 347 x 6 = 2082"
    for a in range(0, 1000, 37):
        for b in range(0, a + 1, 23):
            for text, result in ((added(a, b), a + b), (subtracted(a, b), a - b)):
                assert text.endswith(f" = {result}")
                for step in text.split(". ")[0].split(", ") if ". " in text else []:
                    left, right = step.split("=")
                    assert eval(left) == int(right)  # digits and signs that were made above


def test_json_answers_are_what_the_sentence_says(items: dict[str, list[Item]]) -> None:
    for item in items["json"][:200]:
        for value in json.loads(item.response).values():
            assert str(value) in item.messages[-1]["content"]


def test_an_exhausted_kind_says_so() -> None:
    def make(rng: random.Random, split: str) -> Item:
        key = str(rng.randrange(40))
        return Item("small", key, user(key), key, key)

    with pytest.raises(ValueError, match="kind small has only about"):
        held_out_items(Kind("small", "", make, lambda text: text), 30)


def test_answers_of_a_known_shape() -> None:
    assert last_word("The city of Nora is **Bremen**.") == "Bremen"
    assert last_word("") is None
    assert last_date("It was March 3, so it is April 04.") == "April 4"
    assert last_date("tomorrow") is None


def test_a_continuation_may_not_bring_in_somebody_new() -> None:
    kind = KINDS["continuation"]
    item = held_out_items(kind, 1)[0]
    assert not kind.is_right(item, item.response + " Then Walter came.")
    assert not kind.is_right(item, "They all slept.")


def test_calls_are_found_in_every_format() -> None:
    right = canonical_json([{"name": "get_time", "arguments": {"city": "Oslo"}}])
    for response in (
        '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>',
        '[TOOL_CALLS][{"name": "get_time", "arguments": {"city": "Oslo"}}]',
        "Well. <tool_call>\n<function=get_time>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
    ):
        assert found_calls(response) == right
    assert found_calls("It is 8:41 in Oslo.") == "none"
    assert found_calls(" \n") is None


def test_items_with_tools_ask_for_one_of_them_or_for_none(items: dict[str, list[Item]]) -> None:
    calls = 0
    for item in items["tools"]:
        names = [tool["function"]["name"] for tool in item.tools]
        assert 1 <= len(names) <= 4
        for call in [] if item.answer == "none" else json.loads(item.answer):
            calls += 1
            (tool,) = [tool for tool in item.tools if tool["function"]["name"] == call["name"]]
            jsonschema.validate(call["arguments"], tool["function"]["parameters"])
    assert 600 <= calls <= 850


def test_thinking_must_end_and_what_is_behind_it_counts(items: dict[str, list[Item]]) -> None:
    kind = KINDS["thinking"]
    for item in items["thinking"][:200]:
        working, said = item.response.split("\n</think>\n")
        assert item.variables == {"enable_thinking": True}
        assert not kind.is_right(item, said)
        assert not kind.is_right(item, f"{item.response}\n</think>\nnothing")
        assert not kind.is_right(item, f"{said}\n</think>\n")
        assert working


def test_a_working_of_a_list_takes_one_after_the_other() -> None:
    rng = random.Random(3)
    for name in ("sorting", "number_sorting", "word_reversal"):
        working, said = draw(KINDS[name], rng, "train").thought
        assert [step.split()[-1].strip(".,") for step in working.rstrip(".").split(". ")][-1] == said.split(", ")[-1]
    assert Item("k", "k", (), "5", "2+3=5. That is 5.").thought == ("2+3=5.", "That is 5.")
    assert Item("k", "k", (), "5", "5.").thought == ("", "5.")
