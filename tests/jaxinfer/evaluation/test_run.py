"""Tasks and texts put to a source: what is counted, skipped and reported."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from jaxinfer.evaluation.item import held_out_items
from jaxinfer.evaluation.items import Task
from jaxinfer.evaluation.run import json_validity, recall_by_depth, report, run_tasks, run_texts
from jaxinfer.evaluation.source import Chat
from tests.jaxinfer.evaluation.fake_source import KINDS, FakeSource


def number(prompt: str) -> int:
    found = re.search(r"\d+", prompt)
    assert found is not None
    return int(found[0])


def tasks(count: int = 40) -> dict[str, Task]:
    return {name: Task(kind, held_out_items(kind, count)) for name, kind in KINDS.items()}


def clever(prompt: str) -> str:
    """Doubles even numbers rightly, odd ones wrongly, forgets what is more than 300 tokens back, and so on."""
    n = number(prompt)
    if prompt.startswith("Twice"):
        return f"It is {2 * n}." if n % 2 == 0 else "It is -1."
    if prompt.startswith("JSON"):
        return f'{{"n": {n}}}' if n % 4 else "I cannot."
    return str(n) if "over 100" in prompt else "I forgot."


def silent(*_: object) -> None:
    pass


def test_accuracy_and_what_is_found() -> None:
    asked = tasks()
    results = run_tasks(FakeSource(clever), asked, silent)
    doubles = results["double"]
    even = sum(number(item.messages[0]["content"]) % 2 == 0 for item in asked["double"].items)
    assert 5 < even < 35
    assert (doubles.n, doubles.right, doubles.skipped, doubles.cut_off, doubles.unanswered) == (40, even, 0, 0, 0)
    assert doubles.accuracy.low < even / 40 < doubles.accuracy.high
    assert doubles.baseline == 1 / 40
    assert results["recall"].unanswered == 40 - results["recall"].right > 0
    valid, count = json_validity(results) or (None, 0)
    assert valid is not None
    assert (count, valid.share) == (40, results["json"].right / 40)
    assert 0.5 < valid.share < 1


class Listening(FakeSource):
    """Its prompts name the tools."""

    def encode_chats(self, chats: Sequence[Chat]) -> list[list[int]]:
        named = [" ".join(tool["name"] for tool in chat.tools) for chat in chats]
        return [[*ids, *names.encode()] for ids, names in zip(super().encode_chats(chats), named, strict=True)]


def test_items_with_tools_are_asked_where_the_prompt_shows_them() -> None:
    plain = held_out_items(KINDS["double"], 5)
    asked = {"double": Task(KINDS["double"], [replace(item, tools=({"name": "f"},)) for item in plain])}
    deaf = run_tasks(FakeSource(clever), asked, silent)["double"]
    assert (deaf.n, deaf.skipped, deaf.unheard) == (0, 0, 5)
    prompts: list[str] = []
    heard = run_tasks(Listening(lambda prompt: prompts.append(prompt) or clever(prompt)), asked, silent)["double"]
    assert (heard.n, heard.skipped, heard.unheard) == (5, 0, 0)
    assert all(prompt.endswith("?f") for prompt in prompts)


def test_recall_by_depth() -> None:
    asked = tasks()
    bins = recall_by_depth(run_tasks(FakeSource(clever), asked, silent))
    near = sum(item.depth == 100 for item in asked["recall"].items)
    assert [(b.start, b.stop, b.n, b.accuracy.share) for b in bins] == [(0, 250, near, 1.0), (250, 500, 40 - near, 0.0)]


def test_items_that_do_not_fit_are_counted() -> None:
    asked = tasks()
    lengths = [len(item.messages[0]["content"]) + 1 + item.max_tokens for item in asked["double"].items]
    longest = max(lengths)
    results = run_tasks(FakeSource(clever, max_model_len=longest - 1), asked, silent)
    skipped = lengths.count(longest)
    assert skipped > 0
    assert (results["double"].skipped, results["double"].n) == (skipped, 40 - skipped)
    nothing = run_tasks(FakeSource(clever, max_model_len=4), asked, silent)
    assert (nothing["double"].n, nothing["double"].skipped) == (0, 40)
    record = report(FakeSource(clever), nothing, None)["tasks"]["double"]
    assert (record["accuracy"], record["baseline"], record["n"], record["skipped"]) == (None, None, 0, 40)


def test_responses_that_are_cut_off_are_counted() -> None:
    results = run_tasks(FakeSource(lambda _: "so long an answer that it cannot end: 1"), tasks(), silent)
    assert results["double"].cut_off == 40
    assert results["double"].right == 0


def test_a_model_without_chat_template_gets_questions() -> None:
    seen: list[str] = []
    source = FakeSource(lambda prompt: (seen.append(prompt), "1")[1], chat=False)
    results = run_tasks(source, {"double": tasks(1)["double"]}, silent)
    question = results["double"].answers[0].item.messages[0]["content"]
    assert seen == [f"Question: {question}\nAnswer:"]
    assert "no chat template" in report(source, results, None)["prompts"]


def test_perplexity_on_texts() -> None:
    """ "abcd" is predicted byte by byte but for the first; "aa" never is."""
    source = FakeSource(clever, likely=0.5)
    found = run_texts(source, ["abcd", "aa"], silent)
    rest = 0.5 / 299
    total = 3 * math.log(0.5) + 3 * math.log(rest)  # after the 256 anything but a 1 is unlikely
    assert found.perplexity is not None
    assert (found.perplexity.tokens, found.perplexity.bytes, found.texts, found.skipped) == (6, 6, 2, 0)
    assert found.perplexity.per_token == pytest.approx(math.exp(-total / 6), rel=1e-6)
    assert found.perplexity.bits_per_byte == pytest.approx(-total / math.log(2) / 6, rel=1e-6)


def test_texts_that_do_not_fit_are_counted() -> None:
    source = FakeSource(clever, max_model_len=5)
    found = run_texts(source, ["abc", "abcd", ""], silent)
    assert (found.texts, found.skipped) == (1, 2)
    none = run_texts(source, ["abcdefgh"], silent)
    assert (none.perplexity, none.texts, none.skipped) == (None, 0, 1)


def test_progress_counts_every_prompt() -> None:
    said: list[tuple[str, int, int]] = []
    run_tasks(FakeSource(clever), tasks(3), lambda *news: said.append(news))
    assert said == [(name, done, 3) for name in KINDS for done in range(4)]


def test_the_report_is_json() -> None:
    source = FakeSource(clever)
    results = run_tasks(source, tasks(), silent)
    record = report(source, results, run_texts(source, ["abcd"], silent))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert list(record["tasks"]) == list(KINDS)
    assert {"accuracy", "n", "low", "high", "baseline"} <= record["tasks"]["double"].keys()
    assert record["recall_by_depth"][0]["from"] == 0
    assert record["json_validity"]["n"] == 40
    assert record["perplexity"]["texts"] == 1
