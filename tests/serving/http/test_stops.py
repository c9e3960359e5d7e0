"""What ends an answer, over HTTP: min_tokens, stop strings, stop tokens, and where the model reasons first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.messages import Abort
from jaxinfer.text import load_tokenizer
from tests.fakes import write_tokenizer
from tests.serving.harness import run, until
from tests.serving.http.harness import HttpServer, http_serving, says

REPORTS = Path(__file__).parents[2] / "cases" / "reports"
THOUGHT = "Question: what is 3 + 4? I restate the question and add."
BEGUN = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}"


def handed(name: str) -> Any:
    return json.loads((REPORTS / name).read_text(encoding="utf-8"))


def test_handed_completions() -> None:
    async def test() -> None:
        async with http_serving() as s:
            for name in ("f05a.json", "f06.json"):
                case = handed(name)
                s.grpc.engine.options = says(case["answer"])
                whole = (await s.post(case["path"], **case["request"])).json()
                choice = whole["choices"][0]
                found = {**choice, **whole["usage"]}
                assert {key: found[key] for key in case["expect"]} == case["expect"]
                events = await s.events(case["path"], **case["request"])
                choices = [event["choices"][0] for event in events[:-1]]
                assert "".join(each["text"] for each in choices) == case["expect"]["text"]
                assert choices[-1]["stop_reason"] == choice["stop_reason"]

    run(test())


def parts(choices: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> tuple[str, str, str | None, Any]:
    """(reasoning, content, finish reason, stop reason) of a stream's choices."""
    reasoning = content = ""
    ends: tuple[str | None, Any] = (None, None)
    for choice in choices:
        reasoning += choice["delta"].get("reasoning_content") or ""
        content += choice["delta"].get("content") or ""
        if choice["finish_reason"] is not None:
            ends = choice["finish_reason"], choice["stop_reason"]
    return reasoning, content, *ends


async def all_ways(s: HttpServer, **body: Any) -> tuple[str, str, str | None, Any]:
    """The answer of chat completions whole and streamed, and of responses: all the same."""
    choice = (await s.chat(**body))["choices"][0]
    message = choice["message"]
    found = message.get("reasoning_content", ""), message["content"], choice["finish_reason"], choice["stop_reason"]
    events = await s.events("/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], **body)
    assert parts([event["choices"][0] for event in events[:-1]]) == found
    asked = {**body, "max_output_tokens": body["max_tokens"], "input": "hi"}
    del asked["max_tokens"]
    response = (await s.post("/v1/responses", **asked)).json()
    texts = {item["type"]: item["content"][0]["text"] for item in response["output"]}
    assert (texts.get("reasoning", ""), texts.get("message", "")) == found[:2]
    return found


CASES: list[tuple[str, str, bool, dict[str, Any], tuple[str, str, str, Any]]] = [
    ("in the reasoning", f"<think>\n{THOUGHT}\n</think>\n\nIt is 7.", False, {"stop": ["Question:"]},
     (THOUGHT, "It is 7.", "stop", None)),
    ("in both", f"<think>{THOUGHT}</think>7 Question: 8", False, {"stop": ["Question:"]},
     (THOUGHT, "7 ", "stop", "Question:")),
    ("begun by the prompt", f"{THOUGHT}\n</think>\n\n7. Question: 8", True, {"stop": ["Question:"]},
     (THOUGHT, "7. ", "stop", "Question:")),
    ("white space behind the reasoning", "<think>a</think>\n\nb\n\nc", False, {"stop": ["\n\n"]},
     ("a", "b", "stop", "\n\n")),
    ("across the closing tag", "<think>a</think>b c", False, {"stop": ["k>b", "</think>", "a</"]},
     ("a", "b c", "stop", None)),
    ("no reasoning at all", "b Question: c", False, {"stop": ["Question:"]}, ("", "b ", "stop", "Question:")),
    ("reasoning without an end", f"<think>{THOUGHT}", False, {"stop": ["Question:"]}, (THOUGHT, "", "stop", None)),
    ("cut within the reasoning", f"<think>{THOUGHT}", False, {"stop": ["Question:"], "max_tokens": 20},
     (THOUGHT[:13], "", "length", None)),
    ("kept", "<think>a.</think>b.c", False, {"stop": ["."], "include_stop_str_in_output": True},
     ("a.", "b.", "stop", ".")),
    ("behind min_tokens", "<think>a.</think>b.c.d", False, {"stop": ["."], "min_tokens": 19},
     ("a.", "b.c", "stop", ".")),
]  # fmt: skip


@pytest.mark.parametrize("begun", [False, True])
def test_stop_strings_wait_for_the_answer(begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if begun:
        monkeypatch.setattr("tests.fakes.CHAT_TEMPLATE", BEGUN)
        loaded = load_tokenizer(write_tokenizer(tmp_path))
        monkeypatch.setattr("tests.serving.harness.tokenizer", lambda: loaded)

    async def test() -> None:
        async with http_serving(reasoning_parser="think") as s:
            for name, answer, opened, given, expected in CASES:
                if opened == begun:
                    s.grpc.engine.options = says(answer)
                    assert await all_ways(s, **{"temperature": 0, "max_tokens": 200, **given}) == expected, name

    run(test())


def test_the_handed_reasoning() -> None:
    case = handed("f04a.expect.json")
    answer = (REPORTS / "f04a.answer.txt").read_text(encoding="utf-8").removesuffix("\n")

    async def test() -> None:
        async with http_serving(says(answer), reasoning_parser="think") as s:
            found = await all_ways(s, temperature=0, max_tokens=200, stop=case["stop"])
            assert found[:3] == (case["reasoning"], case["content"], case["finish_reason"])

    run(test())


def test_the_engine_is_told_when_the_answer_is_stopped_and_not_before() -> None:
    answer = "<think>stop stop</think>a stop " + "b" * 100

    async def test() -> None:
        async with http_serving(says(answer), reasoning_parser="think") as s:
            found = await s.chat(stop="stop", max_tokens=120)
            assert found["usage"]["completion_tokens"] == len("<think>stop stop</think>a stop")
            await until(lambda: bool(s.grpc.received(Abort)), "the engine hears of it")
            assert len(s.grpc.received(Abort)) == 1

    run(test())


def test_a_format_without_reasoning_and_completions_stop_at_once() -> None:
    async def test() -> None:
        async with http_serving(says("<think>a stop</think>b")) as s:
            assert (await s.chat(stop="stop", max_tokens=40))["choices"][0]["message"]["content"] == "<think>a "
        async with http_serving(says("<think>a stop</think>b"), reasoning_parser="think") as s:
            assert (await s.complete(stop="stop", max_tokens=40))["choices"][0]["text"] == "<think>a "

    run(test())
