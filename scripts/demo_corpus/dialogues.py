"""Chats of a model that thinks before it answers, and of one that is offered functions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxinfer.evaluation.item import Item, draw
from jaxinfer.evaluation.tasks import KINDS
from jaxinfer.evaluation.tasks.functions import FAMILIES, arguments, draw_use

Message = dict[str, Any]
Messages = list[Message]

NO_FUNCTION = "I have no function for that."
_DONE = "That is the result."
_SUMS = ("addition", "subtraction", "multiplication")
_THINKING_SHARE = 0.3  # of the dialogues with functions
# What is thought before an answer that has no working.
_THOUGHTS = {
    "string_reversal": "I write the characters from last to first.",
    "copying": "I copy it.",
    "table": "I look it up in the table.",
    "json": "I take the fields from the sentence.",
    "reading": "I look for it in the story.",
    "continuation": "I go on with the story.",
    "chinese": "I translate it.",
}
# How often a kind is drawn with thinking: most are those in which a working helps.
_WEIGHTS = {
    "addition": 1.0, "subtraction": 1.0, "multiplication": 1.0, "counting": 1.5, "sorting": 2.0, "number_sorting": 2.0,
    "word_reversal": 3.0, "string_reversal": 0.2, "copying": 0.4, "dates": 0.8, "units": 0.8, "table": 0.5,
    "json": 0.5, "logic": 1.2, "reading": 0.1, "continuation": 0.1, "chinese": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class Dialogue:
    """A chat as the model's template takes it.

    Attributes:
        messages: the last one is the assistant's.
        tools: functions that it is offered.
        thinking: its template is told to open a reasoning.
    """

    messages: Messages
    tools: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool = False


def says(content: str, reasoning: str | None = None, calls: Sequence[Message] = ()) -> Message:
    """A message of the assistant."""
    message: Message = {"role": "assistant", "content": content}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = list(calls)
    return message


def asks(content: str) -> Message:
    """A message of the user."""
    return {"role": "user", "content": content}


def thought(item: Item) -> tuple[str, str]:
    """What is thought about an item, and what is said then."""
    working, said = item.thought
    return working or _THOUGHTS.get(item.kind, said), said


def answered(rng: random.Random, kinds: Sequence[str], weights: Sequence[float] | None, *, thinking: bool) -> Messages:
    """A question of one of the kinds and its answer."""
    item = draw(KINDS[rng.choices(kinds, weights)[0]], rng, "train")
    reasoning, answer = thought(item)
    said = says(answer, reasoning) if thinking else says(item.response)
    return [asks(item.messages[-1]["content"]), said]


def thinking_turn(rng: random.Random) -> Messages:
    """A question and an answer behind a reasoning."""
    return answered(rng, list(_WEIGHTS), list(_WEIGHTS.values()), thinking=True)


def tool_dialogue(rng: random.Random, opening: Messages) -> Dialogue:
    """One or two questions to a model that is offered functions: most are for one of them, some for none."""
    thinking = rng.random() < _THINKING_SHARE
    names = rng.sample(sorted(FAMILIES), rng.choice((1, 1, 2, 2, 3, 4)))
    offered = {name: FAMILIES[name].offered(rng) for name in names}
    messages = list(opening)
    for _ in range(rng.choice((1, 1, 2))):
        choice = rng.random()
        if choice < 0.2:
            sums = _SUMS if "calculate" in names else ()
            messages += answered(rng, [kind for kind in _WEIGHTS if kind not in sums], None, thinking=thinking)
        elif choice < 0.3 and "search" not in names:  # a search might find it
            messages += unknown(rng, names, thinking=thinking)
        else:
            messages += _calls(rng, offered, 2 if rng.random() < 0.08 else 1, thinking=thinking)
    return Dialogue(messages, list(offered.values()), thinking)


def unknown(rng: random.Random, names: Sequence[str], *, thinking: bool) -> Messages:
    """A question that needs a function that is not among those named."""
    family = FAMILIES[rng.choice([name for name in FAMILIES if name not in names and name != "calculate"])]
    said = says(NO_FUNCTION, "No function fits." if thinking else None)
    return [asks(draw_use(family, rng, "train").question), said]


def _calls(rng: random.Random, offered: dict[str, dict[str, Any]], count: int, *, thinking: bool) -> Messages:
    """A question, or two in one message, the calls, their results and the answer."""
    chosen = [rng.choice(list(offered)) for _ in range(count)]
    uses = [draw_use(FAMILIES[name], rng, "train") for name in chosen]
    functions = [
        {"name": offered[name]["function"]["name"], "arguments": arguments(offered[name], use)}
        for name, use in zip(chosen, uses, strict=True)
    ]
    called = " and ".join(dict.fromkeys(function["name"] for function in functions))
    reasoning = f"I call {called}." if thinking else None
    if rng.random() < 0.3:
        reasoning = None  # not every client gives it back
    return [
        asks(" ".join(use.question for use in uses)),
        says("", reasoning, [{"type": "function", "function": function} for function in functions]),
        *({"role": "tool", "content": use.result} for use in uses),
        says(" ".join(use.reply for use in uses), _DONE if thinking else None),
    ]
