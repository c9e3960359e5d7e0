"""What only a body of HTTP can have wrong is named: the field as the client wrote it, its value, and what is allowed.

Rules of all servers are in tests/serving/test_refusals.py."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import FakeOptions
from tests.serving.harness import run
from tests.serving.http.harness import http_serving

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "f"}}
CASES = [
    # (path, body, param, words)
    ("completions", {}, "prompt", "prompt is missing; it is required"),
    ("completions", {"prompt": 5}, "prompt", "prompt is 5; it must be a string or a list"),
    ("completions", {"prompt": None}, "prompt", "prompt is None; it must be a string or a list"),
    ("completions", {"prompt": []}, "prompt", "prompt is []; it must hold texts"),
    ("completions", {"prompt": ["a", 5]}, "prompt", "of one kind"),
    ("completions", {"prompt": [[5], ["x"]]}, "prompt[1][0]", "prompt[1][0] is 'x'; it must be an integer"),
    ("completions", {"prompt": [5, -1]}, "prompt", "prompt is -1; token ids are integers from 0 to 259"),
    ("completions", {"prompt": [5], "add_special_tokens": True}, "add_special_tokens", "a text prompt only"),
    ("completions", {"prompt": ["a"] * 1025}, "prompt", "prompt is '1025 prompts'; at most 1024"),
    ("completions", {"prompt": ["a"] * 600, "n": 2}, "prompt", "at most 514 are taken at a time"),
    ("completions", {"prompt": ""}, None, None),  # <s> is a token
    ("completions", {"prompt": "", "add_special_tokens": False}, "prompt", "at least one token"),
    ("completions", {"prompt": "x", "max_token": 5}, "max_token", "did you mean max_tokens?"),
    ("completions", {"prompt": "x", "temperature": "hot"}, "temperature", "temperature is 'hot'; it must be a number"),
    ("completions", {"prompt": "x", "temperature": True}, "temperature", "temperature is True; it must be a number"),
    ("completions", {"prompt": "x", "n": 2.5}, "n", "n is 2.5; it must be an integer"),
    ("completions", {"prompt": "x", "n": 10**30}, "n", "it must be an integer from 1 to 64"),
    ("completions", {"prompt": "x", "seed": 2**70}, "seed", "it must be a 64-bit integer"),
    ("completions", {"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias", "logit_bias is 'a'; keys must be token ids"),
    ("completions", {"prompt": "x", "logit_bias": {"-1": 1}}, "logit_bias", "keys must be token ids"),
    ("completions", {"prompt": "x", "logit_bias": {"9999999999": 1}}, "logit_bias", "token ids are from 0 to 259"),
    ("completions", {"prompt": "x", "logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "at most 1024"),
    ("completions", {"prompt": "x", "best_of": 3, "n": 2}, "best_of", "best_of is 3; it must be the value of n, 2"),
    ("completions", {"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options", "it needs stream"),
    ("completions", {"prompt": "x", "stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not a field"),
    ("completions", {"prompt": "x", "stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "without stream"),
    ("completions", {"prompt": "x", "user": "x" * 513}, "user", "at most 512 characters"),
    ("completions", {"prompt": "x", "request_id": "ü"}, "request_id", "printable ASCII"),
    ("completions", {"prompt": "x", "priority": 2**31}, "priority", "a 32-bit integer"),
    ("chat/completions", {**CHAT, "max_completion_tokens": 0}, "max_completion_tokens", "max_completion_tokens is 0"),
    ("chat/completions", {**CHAT, "max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "give one"),
    ("chat/completions", {**CHAT, "max_completion_tokens": 1, "min_tokens": 2}, "min_tokens", "completion_tokens 1"),
    ("chat/completions", {**CHAT, "logprobs": 5}, "logprobs", "it must be true or false"),
    ("chat/completions", {**CHAT, "top_logprobs": 5}, "top_logprobs", "it needs logprobs"),
    ("chat/completions", {**CHAT, "chat_template": "{{ 1 }}"}, "chat_template", "the model's chat templates are"),
    ("chat/completions", {**CHAT, "chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs", "may set"),
    ("chat/completions", {**CHAT, "reasoning_effort": "low"}, "reasoning_effort", "template reads no"),
    ("chat/completions", {**CHAT, "reasoning_effort": "most"}, "reasoning_effort", "it must be none, minimal, low"),
    ("chat/completions", {**CHAT, "tools": [TOOL]}, "tools", "--tool-call-parser was not given"),
    ("chat/completions", {**CHAT, "tool_choice": "required"}, "tool_choice", "it needs tools"),
    ("chat/completions", {"messages": []}, "messages", "at least one message"),
    ("chat/completions", {"messages": "hi"}, "messages", "messages is 'hi'; it must be a list"),
    ("chat/completions", {"messages": ["hi"]}, "messages[0]", "messages[0] is 'hi'; it must be an object"),
    ("chat/completions", {"messages": [{"content": "x"}]}, "messages[0].role", "messages[0].role is None"),
    ("chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "a list of text parts"),
    ("chat/completions", {"messages": [{**CHAT["messages"][0], "x": 1}]}, "messages[0].x", "a message may have role"),
    ("chat/completions", {**CHAT, "logprob_token_ids": [5]}, "logprob_token_ids", "it needs logprobs"),
    ("chat/completions", {**CHAT, "logprobs": True, "logprob_token_ids": [9999]}, "logprob_token_ids", "9999"),
    ("chat/completions", {**CHAT, "logprobs": True, "logprob_token_ids": [1] * 129}, "logprob_token_ids", "most 128"),
    ("chat/completions", {**CHAT, "logprobs": True, "logprob_token_ids": [5]}, "logprob_token_ids", "--max-logprobs"),
    ("completions", {"prompt": "x", "logprobs": 1, "echo": True, "logprob_token_ids": [5]},
     "logprob_token_ids", "echo"),
    ("responses", {"input": []}, "input", "at least one item"),
    ("responses", {"input": [{"type": "file"}]}, "input[0].type", "input[0].type is 'file'"),
    ("responses", {"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "input[0].role is 'tool'"),
    ("responses", {"input": [{"role": "user", "content": "x", "y": 1}]}, "input[0].y", "a message may have"),
    ("responses", {"input": [{"type": "function_call", "call_id": 5, "name": "f"}]}, "input[0].call_id", "a string"),
    ("responses", {"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input[0].encrypted_content", "null"),
    ("responses", {"input": "x", "include": ["file_search_call.results"]}, "include[0]", "no such output"),
    ("responses", {"input": "x", "top_logprobs": 1}, "top_logprobs", "it needs include"),
    ("responses", {"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type", "only functions are supported"),
    ("responses", {"input": "x", "reasoning": {"effort": "low"}}, "reasoning.effort", "template reads no"),
    ("responses", {"input": "x", "reasoning": {"summary": "detailed"}}, "reasoning.summary", "none is summarized"),
    ("responses", {"input": "x", "reasoning": {"x": 1}}, "reasoning.x", "not a field"),
    ("responses", {"input": "x", "store": True}, "store", "--response-store none"),
]  # fmt: skip


def test_every_fault_is_named():
    async def test():
        async with http_serving(max_waiting=1025, unknown_fields="refuse") as s:
            for path, body, param, words in CASES:
                if words is None:
                    assert (await s.post("/v1/" + path, **body)).status_code == 200
                    continue
                error = await s.refused("/v1/" + path, **body)
                assert error["param"] == param, error
                assert words in error["message"], error
                assert error["type"] == "invalid_request_error"

    run(test())


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "web"}], "tools[0].type"),
        ([{"type": "function"}], "tools[0].function"),
        ([{**TOOL, "x": 1}], "tools[0].x"),
        ([TOOL, {"type": "function", "function": {"name": "a b"}}], "tools[1].function.name"),
        ([{"type": "function", "function": {"name": "f", "parameters": 5}}], "tools[0].function.parameters"),
        ([{"type": "function", "function": {"name": "f", "strict": "yes"}}], "tools[0].function.strict"),
        ([{"type": "function", "function": {"name": "f", "x": 1}}], "tools[0].function.x"),
        ([TOOL] * 129, "tools"),
    ],
)
def test_tools(tools, param):
    async def test():
        async with http_serving(tool_call_parser="hermes", unknown_fields="refuse") as s:
            assert (await s.refused("/v1/chat/completions", **CHAT, tools=tools))["param"] == param

    run(test())


def test_hostile_json():
    async def test():
        async with http_serving() as s:
            bodies = [
                b"", b"null", b"[]", b"5", b"{", b'{"prompt": "x"} {}', b'{"prompt": "\xff"}',
                b'{"prompt": "\\ud800 x"}',
                b'{"prompt": "x", "top_p": NaN}', b'{"prompt": "x", "top_p": 1e999}', b"[" * 100_000,
                b'{"prompt": ' + b"[" * 100_000, b'{"prompt": "x", "suffix": ' + b"[" * 5000 + b"]" * 5000 + b"}",
                b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
            ]  # fmt: skip
            for body in bodies:
                answer = await s.http.post(
                    "/v1/completions", content=body, headers={"content-type": "application/json"}
                )
                assert answer.status_code == 400, (body[:40], answer.text)
                assert answer.json()["error"]["message"]
            assert (await s.complete())["choices"][0]["text"] == "abcdefgh"

    run(test())


def test_an_id_is_taken_while_its_request_lives():
    async def test():
        async with http_serving() as s:
            first = await s.complete(request_id="mine")
            assert first["id"] == "cmpl-mine"
            again = await s.post("/v1/completions", prompt=["a", "b"], request_id="mine", max_tokens=2)
            assert again.json()["id"] == "cmpl-mine"
            assert again.headers["x-request-id"] == "mine-0"

    run(test())


def test_an_id_is_measured_as_the_client_wrote_it():
    async def test():
        async with http_serving() as s:
            for prompt in ("a", ["a"], ["a", "b"], [[97], [98]]):
                assert (await s.complete(prompt=prompt, request_id="x" * 128))["id"] == "cmpl-" + "x" * 128
                error = await s.refused("/v1/completions", prompt=prompt, request_id="x" * 129)
                assert error["param"] == "request_id"
                assert "-0" not in error["message"]
                error = await s.refused("/v1/completions", prompt=prompt, request_id="\u00e9")
                assert error["message"].startswith("request_id is '\u00e9';"), error["message"]

    run(test())


def test_nothing_of_a_list_runs_when_not_all_can():
    async def test():
        async with http_serving(FakeOptions(max_num_seqs=2, step_seconds=0.005), max_waiting=1) as s:
            busy = [s.post("/v1/completions", prompt=["a", "b"], max_tokens=50) for _ in range(2)]
            statuses = sorted(answer.status_code for answer in await asyncio.gather(*busy))
            assert statuses == [200, 429]
            assert s.grpc.server.frontend.open_requests == 0

    run(test())
