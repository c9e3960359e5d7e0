"""Tool calls over HTTP: arguments have the types of the tool's schema, and what max_tokens cuts off is no text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serving.harness import run
from tests.serving.http.harness import http_serving, says

TOOL = {
    "name": "get_tide",
    "parameters": {
        "type": "object",
        "properties": {"harbour": {"type": "string"}, "days": {"type": "integer"}, "code": {"type": "string"}},
    },
}
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Tides?"}],
    "temperature": 0,
    "tools": [{"type": "function", "function": TOOL}],
}
RESPONSE = {"input": "Tides?", "temperature": 0, "tools": [{"type": "function", **TOOL}]}
XML = (
    "I look.\n<tool_call>\n<function=get_tide>\n<parameter=harbour>\nBrest\n</parameter>\n"
    "<parameter=days>\n2\n</parameter>\n<parameter=code>\n29\n</parameter>\n</function>\n</tool_call>"
)
ARGUMENTS = {"harbour": "Brest", "days": 2, "code": "29"}


def test_arguments_have_the_types_of_the_schema() -> None:
    async def scenario() -> None:
        async with http_serving(says(XML), tool_call_parser="qwen3_coder") as s:
            answer = (await s.post("/v1/chat/completions", **CHAT)).json()["choices"][0]
            assert (answer["message"]["content"], answer["finish_reason"]) == ("I look.", "tool_calls")
            assert json.loads(answer["message"]["tool_calls"][0]["function"]["arguments"]) == ARGUMENTS
            chunks = await s.events("/v1/chat/completions", **CHAT)
            calls = [
                call
                for chunk in chunks[:-1]
                for choice in chunk["choices"]
                for call in choice["delta"].get("tool_calls", [])
            ]
            assert json.loads("".join(call["function"].get("arguments", "") for call in calls)) == ARGUMENTS
            output = (await s.post("/v1/responses", **RESPONSE)).json()["output"]
            assert [item["type"] for item in output] == ["message", "function_call"]
            assert json.loads(output[1]["arguments"]) == ARGUMENTS

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_max_tokens_cuts_is_no_content(stream: bool) -> None:
    begin, end = XML.index("<tool_call>") + 2, len(XML)

    async def scenario() -> None:
        async with http_serving(says(XML), tool_call_parser="qwen3_coder") as s:
            for length in (begin, begin + 20, XML.index("Brest") + 3, XML.index("</function>") + 4, end - 3):
                body = CHAT | {"max_tokens": length}
                if stream:
                    chunks = await s.events("/v1/chat/completions", **body)
                    choices = [choice for chunk in chunks[:-1] for choice in chunk["choices"]]
                    content = "".join(choice["delta"].get("content") or "" for choice in choices)
                    reason = choices[-1]["finish_reason"]
                else:
                    choice = (await s.post("/v1/chat/completions", **body)).json()["choices"][0]
                    content, reason = choice["message"]["content"], choice["finish_reason"]
                    calls = choice["message"].get("tool_calls", [])
                    assert [json.loads(call["function"]["arguments"]) for call in calls] == [ARGUMENTS] * (
                        length >= end - 20
                    )
                assert (content, reason) == ("I look.", "length")

    run(scenario())
