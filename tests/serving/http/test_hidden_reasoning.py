"""`include_reasoning: false`: nothing of the reasoning is in anything that leaves the server, in no shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.batch import BatchRun, Output, read_input
from serving.observing.setup import ObservingConfig
from tests.serving.harness import run
from tests.serving.http.harness import HttpServer, http_serving, says

CANARY = "%"  # in the reasoning alone; the fake's alternatives are the next two ids, so they cannot be it elsewhere
CALL = '<tool_call>{"name": "f", "arguments": {"q": 1}}</tool_call>'
ANSWERS = {
    "whole": f"<think>\nwe %% then %\n\n</think>\n\nHi there. {CALL}",
    "no answer": "<think>\nonly % of it",
    "cut in the tag": "<think>so %</thi",
    "line ends": "\n <think>\n%\n%\n </think>\n",
    "a call at once": f"<think>%</think>{CALL}",
    "a draft of a call": f"<think>so % {CALL} or % not</think>Hi",
    "a call that ends it": f"<think>so % then\n{CALL}",
}
PARSERS = {"tool_call_parser": "hermes", "reasoning_parser": "think"}
CHANNELS = {
    "analysis": "<|channel|>analysis<|message|>we %% then<|end|><|start|>assistant<|channel|>final<|message|>Hi there.",
    "analysis and a call": "<|channel|>analysis<|message|>%<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.f <|constrain|>json<|message|>{"q": 1}',
    "analysis behind content": "<|channel|>commentary<|message|>So.<|end|><|start|>assistant<|channel|>analysis"
    "<|message|>no %<|end|><|start|>assistant<|channel|>analysis<|message|>%\n<|end|><|start|>assistant<|channel|>final"
    "<|message|>Hi",
    "analysis without a message": "<|channel|>analysis we % then<|end|><|start|>assistant<|channel|>final<|message|>Hi",
}
QUICK = ["analysis behind content"]
HARMONY = {"tool_call_parser": "openai", "reasoning_parser": "openai_gptoss"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]
FIELDS: list[dict[str, Any]] = [
    {"logprobs": True, "top_logprobs": 2},
    {"logprobs": True, "return_token_ids": True, "n": 2},
    {"logprobs": True, "top_logprobs": 2, "return_tokens_as_token_ids": True, "return_token_ids": True},
    {"return_token_ids": True, "parallel_tool_calls": False},
    {"max_tokens": 18, "logprobs": True, "top_logprobs": 1, "return_token_ids": True},
]


def gives_away(value: Any) -> bool:
    """Whether the canary is anywhere: as text, as a token's name, as an id or a byte in a list."""
    if isinstance(value, dict):
        return any(gives_away(name) or gives_away(item) for name, item in value.items())
    if isinstance(value, list):
        return ord(CANARY) in value or any(map(gives_away, value))
    return isinstance(value, str) and (CANARY in value or f"token_id:{ord(CANARY)}" in value or "\\x25" in value)


def asked(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hi"}]
    base = {"messages": messages, "temperature": 0, "tools": TOOLS, "include_reasoning": False}
    return {**base, **fields}


def test_the_canary_is_seen_where_nothing_hides_it():
    async def test():
        async with http_serving(says(ANSWERS["whole"]), **PARSERS) as s:
            for fields in FIELDS:
                body = {**asked(**fields), "include_reasoning": True}
                choice = (await s.post("/v1/chat/completions", **body)).json()["choices"][0]
                assert gives_away(choice["message"])
                assert gives_away(choice.get("token_ids")) == bool(fields.get("return_token_ids"))
                assert gives_away(choice["logprobs"]) == bool(fields.get("logprobs"))

    run(test())


@pytest.mark.parametrize(
    "answer",
    [*ANSWERS, *(pytest.param(name, marks=pytest.mark.longer) for name in CHANNELS if name not in QUICK), *QUICK],
)
def test_no_server_gives_it_away(answer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def test():
        ledger = tmp_path / "usage.jsonl"
        parsers = HARMONY if answer in CHANNELS else PARSERS
        async with http_serving(
            says({**ANSWERS, **CHANNELS}[answer]), **parsers, observing=ObservingConfig(ledger=ledger)
        ) as s:
            for fields in FIELDS:
                whole = (await s.post("/v1/chat/completions", **asked(**fields))).json()
                assert not gives_away(whole), fields
                options = {"include_usage": True, "continuous_usage_stats": True}
                events = await s.events("/v1/chat/completions", **asked(**fields), stream_options=options)
                assert not gives_away(events), fields
                assert not gives_away((await s.http.get("/debug/requests/" + whole["id"].split("-", 1)[1])).json())
                agree(whole, events[:-2])
            response = {"input": "hi", "temperature": 0, "include_reasoning": False, "top_logprobs": 2}
            response |= {"include": ["message.output_text.logprobs"], "tools": [{"type": "function", "name": "f"}]}
            whole = (await s.post("/v1/responses", **response)).json()
            assert whole["status"] == "completed"
            assert not gives_away([whole, await s.events("/v1/responses", **response)])
            await batch(s, tmp_path)
        assert CANARY not in ledger.read_text()

    async def batch(s: HttpServer, folder: Path) -> None:
        lines = [
            {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": asked(**fields)}
            for i, fields in enumerate(FIELDS)
        ]
        (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        output = Output(folder / "out.jsonl")
        api = s.grpc.server.api
        await BatchRun(folder / "in.jsonl", read_input(folder / "in.jsonl"), output, lambda _: None).run(api, 2)
        output.close()
        answers = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
        assert len(answers) == len(FIELDS)
        assert all(each["response"]["status_code"] == 200 for each in answers)
        assert not gives_away(answers)

    caplog.set_level("DEBUG")
    run(test())
    assert CANARY not in "".join(record.getMessage() for record in caplog.records if record.name != "asyncio")


def agree(whole: dict[str, Any], events: list[dict[str, Any]]) -> None:
    """The stream adds up to the whole answer, tokens and all."""
    for choice in whole["choices"]:
        own = [each for event in events for each in event["choices"] if each["index"] == choice["index"]]
        content = "".join(each["delta"].get("content") or "" for each in own)
        assert content == (choice["message"]["content"] or "")
        assert not any("reasoning" in each["delta"] or "reasoning_content" in each["delta"] for each in own)
        if choice["logprobs"] is not None:
            assert choice["logprobs"]["content"] == [
                entry for each in own if each["logprobs"] for entry in each["logprobs"]["content"]
            ]
        if "token_ids" in choice:
            assert choice["token_ids"] == [token for each in own for token in each.get("token_ids", ())]


def test_what_is_shown_keeps_its_tokens():
    """Hidden reasoning takes its own tokens along and nobody else's."""

    async def test():
        async with http_serving(says("<think>why %</think>\n\nHi.")) as s:
            plain = (await s.chat(logprobs=True, max_tokens=None))["choices"][0]
            assert len(plain["logprobs"]["content"]) == len("<think>why %</think>\n\nHi.") + 1
        async with http_serving(says("<think>why %</think>\n\nHi."), **PARSERS) as s:
            fields = {"include_reasoning": False, "logprobs": True, "return_token_ids": True, "max_tokens": None}
            answer = await s.chat(**fields)
            choice = answer["choices"][0]
            assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["H", "i", ".", "</s>"]
            assert choice["token_ids"] == [*b"Hi.", 257]
            assert answer["usage"]["completion_tokens"] == 26, "they were computed, and count"
            assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": len("why %")}

    run(test())
