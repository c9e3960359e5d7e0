"""What a model's chat template must take part in: calls of functions, and a working before the answer."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxinfer.evaluation.extract import canonical_json, last_line_words, last_number
from jaxinfer.evaluation.item import Item, Kind, Split, draw
from jaxinfer.evaluation.tasks import arithmetic, lists, measures
from jaxinfer.evaluation.tasks.functions import FAMILIES, arguments, draw_use
from jaxinfer.evaluation.tasks.wording import user
from jaxinfer.text.answers import CALL_FORMATS, REASONING_FORMATS, OutputParser, OutputParserNames, collect

NO_CALL = "none"
_WITHOUT_CALL = 0.2  # of the items
_PLAIN = [kind for kind in lists.KINDS if kind.name in ("counting", "sorting", "number_sorting", "string_reversal")]
# Kinds that are worked out in steps; their answers are a number, or words.
_WORKED = [
    *arithmetic.KINDS,
    *(kind for kind in lists.KINDS if kind.name in ("counting", "sorting", "number_sorting", "word_reversal")),
    *(kind for kind in measures.KINDS if kind.name == "units"),
]
_CLOSES = tuple({close for tags in REASONING_FORMATS.values() for close in tags.closes})


def _tools(rng: random.Random, split: Split) -> Item:
    """One to four functions, and a question for one of them, or for none."""
    names = rng.sample(sorted(FAMILIES), rng.randint(1, 4))
    offered = {name: FAMILIES[name].offered(rng) for name in names}
    tools = tuple(offered.values())
    if rng.random() < _WITHOUT_CALL:
        item = draw(rng.choice(_PLAIN), rng, split)
        return replace(item, kind="tools", answer=NO_CALL, tools=tools)
    name = rng.choice(names)
    use = draw_use(FAMILIES[name], rng, split)
    call = {"name": offered[name]["function"]["name"], "arguments": arguments(offered[name], use)}
    response = f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
    return Item("tools", use.key, user(use.question), canonical_json([call]), response, tools=tools)


def found_calls(response: str) -> str | None:
    """The calls in the response, in whichever format it writes them, or `NO_CALL`; None where it says nothing."""
    if not response.strip():
        return None
    for name in CALL_FORMATS:
        parser = OutputParser(OutputParserNames(name), tools=(), whole=True)
        calls = collect([*parser.push(response), *parser.finish()]).calls
        if calls:
            return canonical_json([{"name": call.name, "arguments": _object(call.arguments)} for call in calls])
    return NO_CALL


def _object(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _thinking(rng: random.Random, split: Split) -> Item:
    item = draw(rng.choice(_WORKED), rng, split)
    working, said = item.thought
    response = f"{working or said}\n</think>\n{said}"  # the prompt opens it
    return replace(item, kind="thinking", response=response, max_tokens=256, variables={"enable_thinking": True})


def behind_reasoning(response: str) -> str | None:
    """What stands behind the end of the reasoning; None where it does not end."""
    ends = [response.rfind(close) + len(close) for close in _CLOSES if close in response]
    return response[max(ends) :].strip() or None if ends else None


def _is_right(item: Item, response: str) -> bool:
    said = behind_reasoning(response)
    found: Mapping[bool, Any] = {True: last_number, False: last_line_words}
    return said is not None and found[item.answer.isdecimal()](said) == item.answer


KINDS = (
    Kind("tools", "the right function and its arguments, or no call", _tools, found_calls),
    Kind("thinking", "sums and lists, the template's thinking switched on", _thinking, behind_reasoning, _is_right),
)
