"""POST /v1/messages and its count of tokens over HTTP: answers, events, ends, errors, headers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from jaxinfer.messages import Abort, Submit
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.http.thinking_signature import signature_of
from tests.fakes import FakeOptions
from tests.serving.harness import run, until
from tests.serving.http.harness import HttpServer, http_serving, says

PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
HERMES = {"tool_call_parser": "hermes", "reasoning_parser": "think"}
BODY: dict[str, Any] = {"max_tokens": 512, "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
TOOLS = [{"name": "f", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]
CALLS = (
    "<think>two\ncities</think>\nI look.\n"
    '<tool_call>\n{"name": "f", "arguments": {"city": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "f", "arguments": {"city": "Łódź"}}\n</tool_call>'
)


async def ask(s: HttpServer, path: str = PATH, **body: Any) -> dict[str, Any]:
    response = await s.post(path, **{**BODY, **body})
    assert response.status_code == 200, response.text
    return response.json()


async def events(s: HttpServer, **body: Any) -> list[dict[str, Any]]:
    async with s.http.stream("POST", PATH, json={**BODY, **body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        lines = [line async for line in response.aiter_lines()]
    found = [json.loads(line.removeprefix("data: ")) for line in lines[1::3]]
    assert lines[0::3] == [f"event: {event['type']}" for event in found]  # the clients look at this name alone
    return found


def summed(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the events add up to, as Anthropic's clients add them."""
    assert [event["type"] for event in found[:2]] == ["message_start", "ping"]
    assert [event["type"] for event in found[-2:]] == ["message_delta", "message_stop"]
    message = found[0]["message"]
    inputs: dict[int, str] = {}
    for event in found[2:-2]:
        at = event["index"]
        if event["type"] == "content_block_start":
            assert at == len(message["content"])
            message["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], message["content"][at]
            if delta["type"] == "input_json_delta":
                inputs[at] = inputs.get(at, "") + delta["partial_json"]
                continue
            key = delta["type"].removesuffix("_delta")
            block[key] += delta[key]
        elif at in inputs:
            message["content"][at]["input"] = json.loads(inputs[at])
    return {**message, **found[-2]["delta"], "usage": {**message["usage"], **found[-2]["usage"]}}


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_ids(inner) for key, inner in value.items() if key != "id"}
    return [without_ids(inner) for inner in value] if isinstance(value, list) else value


def test_a_text() -> None:
    async def test() -> None:
        async with http_serving(says("Hello ünïcode 😀.")) as s:
            response = await s.post(PATH + "?beta=true", **BODY, model="fake")
            answer = response.json()
            request_id = response.headers["request-id"]
            assert response.headers["x-request-id"] == request_id
            assert answer == {
                "id": f"msg_{request_id}",
                "type": "message",
                "role": "assistant",
                "model": "fake",
                "content": [{"type": "text", "text": "Hello ünïcode 😀."}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {
                    "input_tokens": len("<user>hi;<assistant>") - 3,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 3,  # as the fake says
                    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
                    "output_tokens": len("Hello ünïcode 😀.".encode()) + 1,
                },
            }
            found = await events(s)
            assert without_ids(summed(found)) == without_ids(answer)
            assert found[0]["message"]["usage"]["output_tokens"] == 0

    run(test())


def test_reasoning_text_and_calls_are_blocks() -> None:
    async def test() -> None:
        async with http_serving(says(CALLS), **HERMES) as s:
            answer = await ask(s, tools=TOOLS)
            assert answer["stop_reason"] == "tool_use"
            thinking, told, *calls = answer["content"]
            assert thinking == {
                "type": "thinking",
                "thinking": "two\ncities",
                "signature": signature_of("two\ncities", omitted=False),
            }
            assert told == {"type": "text", "text": "I look."}
            assert [call["input"] for call in calls] == [{"city": "Paris"}, {"city": "Łódź"}]
            assert {call["type"] for call in calls} == {"tool_use"}
            assert len({call["id"] for call in calls}) == 2
            assert all(call["id"].startswith("toolu_") for call in calls)
            assert answer["usage"]["output_tokens_details"] == {"thinking_tokens": len("two\ncities")}
            assert without_ids(summed(await events(s, tools=TOOLS))) == without_ids(answer)

            one = await ask(s, tools=TOOLS, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
            assert [block["type"] for block in one["content"]] == ["thinking", "text", "tool_use"]
            none = await ask(s, tools=TOOLS, tool_choice={"type": "none"})
            assert [block["type"] for block in none["content"]] == ["thinking", "text"]
            assert "<tool_call>" in none["content"][1]["text"]

            omitted = {"thinking": {"type": "adaptive", "display": "omitted"}}
            answer = await ask(s, tools=TOOLS, **omitted)
            assert answer["content"][0] == {
                "type": "thinking",
                "thinking": "",
                "signature": signature_of("two\ncities", omitted=True),
            }
            assert without_ids(summed(await events(s, tools=TOOLS, **omitted))) == without_ids(answer)
            hidden = await ask(s, tools=TOOLS, include_reasoning=False)
            assert [block["type"] for block in hidden["content"]] == ["text", "tool_use", "tool_use"]

            # What was answered goes back as the client has it.
            results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "rain"} for call in calls]
            turns = [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": results}]
            again = await ask(s, tools=TOOLS, messages=[*BODY["messages"], *turns])
            assert again["stop_reason"] == "tool_use"

    run(test())


def test_an_answer_goes_on_from_a_last_turn_of_its_own() -> None:
    async def test() -> None:
        async with http_serving(says(" greatest city.")) as s:
            turns = [*BODY["messages"], {"role": "assistant", "content": [{"type": "text", "text": "Paris, the"}]}]
            answer = await ask(s, messages=turns)
            assert answer["content"] == [{"type": "text", "text": " greatest city."}]
            shown = bytes(s.grpc.received(Submit)[-1].prompt_token_ids).decode()
            assert shown == "<user>hi;<assistant>Paris, the"
            counted = (await s.post(COUNT, messages=turns)).json()["input_tokens"]
            assert counted == len(shown)

    run(test())


def test_a_call_that_must_come_reaches_the_engine_as_a_grammar() -> None:
    async def test() -> None:
        async with http_serving(says(CALLS), **HERMES) as s:
            await ask(s, tools=TOOLS)
            assert s.grpc.received(Submit)[-1].constraint == ""
            await ask(s, tools=TOOLS, tool_choice={"type": "tool", "name": "f"})
            assert "tool_call" in s.grpc.received(Submit)[-1].constraint
            schema = {"type": "object", "properties": {"tide": {"type": "integer"}}}
            await ask(s, output_config={"format": {"type": "json_schema", "schema": schema}})
            assert "tide" in s.grpc.received(Submit)[-1].constraint
            refused = await s.post(
                PATH, **BODY, output_config={"format": {"type": "json_schema", "schema": {"type": "tide"}}}
            )
            check_error(refused, 400, "invalid_request_error", "output_config.format.schema")
        async with http_serving(says(CALLS)) as s:  # whose template shows no format of calls
            await ask(s, tools=TOOLS, tool_choice={"type": "any"})
            assert "tool_call" in s.grpc.received(Submit)[-1].constraint

    run(test())


def test_how_an_answer_ends() -> None:
    async def test() -> None:
        async with http_serving(FakeOptions(max_model_len=64)) as s:
            prompt = len("<user>hi;<assistant>")
            for body, expected, text in (
                ({"max_tokens": 5}, ("max_tokens", None), "abcde"),
                ({"max_tokens": 32000}, ("model_context_window_exceeded", None), None),
                ({"max_tokens": 64 - prompt}, ("max_tokens", None), None),
                ({"stop_sequences": ["x", "def"]}, ("stop_sequence", "def"), "abc"),
                ({"stop_sequences": ["x"], "stop": "c"}, ("stop_sequence", "c"), "ab"),
                ({"stop_token_ids": [ord("d")]}, ("end_turn", None), "abc"),
            ):
                answer = await ask(s, **body)
                assert (answer["stop_reason"], answer["stop_sequence"]) == expected, body
                assert text is None or answer["content"] == [{"type": "text", "text": text}]
                streamed = (await events(s, **body))[-2]
                assert streamed["delta"] == {"stop_reason": expected[0], "stop_sequence": expected[1]}
                assert streamed["usage"] == answer["usage"]
            assert s.grpc.received(Submit)[0].params.max_tokens == 5
        async with http_serving(FakeOptions(eos_after=0)) as s:
            assert (await ask(s))["content"] == []
            assert [event["type"] for event in await events(s)] == [
                *("message_start", "ping", "message_delta", "message_stop")
            ]

    run(test())


def test_an_answer_that_somebody_else_ends_is_a_refusal() -> None:
    async def test() -> None:
        async with http_serving(FakeOptions(step_seconds=0.005)) as s:
            answer = asyncio.create_task(ask(s, max_tokens=4000, request_id="mine"))
            await until(lambda: s.grpc.server.frontend.open_requests == 1, "it runs")
            await s.grpc.stub.Abort(pb.AbortRequest(request_id="mine"))
            assert (await answer)["stop_reason"] == "refusal"

    run(test())


def test_counts_are_those_of_the_answer() -> None:
    async def test() -> None:
        async with http_serving(says("x"), **HERMES) as s:
            asked = {"messages": BODY["messages"], "system": [{"type": "text", "text": "S"}], "tools": TOOLS}
            response = await s.post(COUNT + "?beta=true", model="fake", **asked)
            usage = (await ask(s, **asked))["usage"]
            assert response.json() == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}
            turns = [*BODY["messages"], {"role": "assistant", "content": "so far"}]
            assert (await s.post(COUNT, messages=turns)).status_code == 200

    run(test())


def test_what_has_no_effect_is_named_in_a_header() -> None:
    async def test() -> None:
        async with http_serving(says("x"), **HERMES) as s:
            system = {"type": "text", "text": "S", "citations": [1], "cache_control": {"type": "ephemeral"}}
            body = {"system": [system], "novel": 1}
            for path in (PATH, COUNT):
                given = BODY if path == PATH else {"messages": BODY["messages"]}
                response = await s.post(path, **given, **body)
                named = {"system[0].citations", "novel"} | ({"system[0].cache_control"} if path == COUNT else set())
                assert set(response.headers["x-jaxinfer-ignored"].split(", ")) == named

    run(test())


def check_error(response: httpx.Response, status: int, kind: str, message: str) -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"type", "error", "request_id"}
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert message in body["error"]["message"]
    assert body["request_id"] == response.headers["request-id"]


def test_errors_have_the_shape_that_its_clients_read() -> None:
    async def test() -> None:
        async with http_serving(FakeOptions(step_seconds=0.002, max_num_seqs=1), max_waiting=0) as s:
            for path in (PATH, COUNT):
                check_error(await s.post(path, **BODY, model="gpt-4"), 404, "not_found_error", "model is 'gpt-4'")
                check_error(await s.post(path, messages=[], max_tokens=1), 400, "invalid_request_error", "messages is")
                check_error(await s.http.post(path, content=b"{}"), 415, "invalid_request_error", "Content-Type")
                check_error(await s.http.get(path), 405, "invalid_request_error", "method is GET")
                lacking = await s.post(path, max_tokens=1)
                check_error(lacking, 400, "invalid_request_error", "messages is missing")
            check_error(await s.post(PATH, messages=BODY["messages"]), 400, "invalid_request_error", "max_tokens is")
            check_error(await s.post(PATH + "/batches"), 404, "not_found_error", "no such endpoint")
            both = await s.post(PATH, **{**BODY, "max_tokens": 0, "messages": [{"role": "x"}]})
            check_error(both, 400, "invalid_request_error", "2 faults")
            async with s.http.stream("POST", PATH, json={**BODY, "max_tokens": 4000, "stream": True}) as busy:
                await anext(aiter(busy.aiter_lines()))
                full = await s.post(PATH, **BODY)
                check_error(full, 429, "rate_limit_error", "try again")
                assert int(full.headers["retry-after"]) >= 1
            await until(lambda: len(s.grpc.received(Abort)) == 1, "the engine was told")
            other = await s.post("/v1/chat/completions", messages=[])
            assert other.json()["error"].keys() == {"message", "type", "param", "code"}

    run(test())


def test_an_engine_that_fails_in_the_middle_is_an_event() -> None:
    async def test() -> None:
        async with http_serving(FakeOptions(crash_at_step=5, step_seconds=0.01)) as s:
            *_, last = await events(s)
            assert (last["type"], last["error"]["type"]) == ("error", "api_error")
            assert "the engine failed" in last["error"]["message"]

    run(test())


def test_the_root_has_a_head() -> None:
    async def test() -> None:
        async with http_serving() as s:
            response = await s.http.head("/")
            assert (response.status_code, response.content) == (200, b"")

    run(test())


def test_what_an_agent_sends() -> None:
    """A turn of Claude Code's, as far as its shape goes."""
    mark = {"cache_control": {"type": "ephemeral"}}
    tools = [{"name": f"Tool{i}", "description": "d", "input_schema": {"type": "object"}} for i in range(24)]
    body = {
        "model": "fake",
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.1c0; cc_entrypoint=sdk-cli;"},
            {"type": "text", "text": "You are an agent.", **mark},
            {"type": "text", "text": "\nYou help.", **mark},
        ],
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "<system-reminder>"}, {"type": "text", "text": "go"}],
            },
            {"role": "system", "content": "Available agents: none"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "Tool1", "input": {}}]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no", "is_error": True, **mark}
                ],
            },
        ],
        "tools": tools,
        "metadata": {"user_id": '{"device_id":"815208278b7a50e7","account_uuid":"","session_id":"ff3ccb8d"}'},
        "max_tokens": 32000,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "stream": True,
    }

    async def test() -> None:
        async with http_serving(says("Done."), **HERMES) as s:
            found = await events(s, **body)
            assert summed(found)["content"] == [{"type": "text", "text": "Done."}]
            submit = s.grpc.received(Submit)[-1]
            shown = bytes(submit.prompt_token_ids).decode()
            assert "<user><system-reminder>\ngo;<system>Available agents: none;<assistant>;<tool>Error: no;[" in shown
            assert shown.startswith(
                "<system>x-anthropic-billing-header: cc_version=2.1.197.1c0; cc_entrypoint=sdk-cli;"
            )
            assert all(f'"Tool{i}"' in shown for i in range(24))

    run(test())


def test_a_thread_is_refused_so_that_clients_send_the_whole_conversation() -> None:
    async def test() -> None:
        async with http_serving(says("hi")) as s:
            for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
                response = await s.post(PATH, **BODY, thread=thread, unheard_of=1)
                error = response.json()["error"]
                assert (response.status_code, error["type"]) == (400, "invalid_request_error")
                assert error["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
                assert "thread is" in error["message"]
            assert not s.grpc.received(Submit)
            assert (await s.post(PATH, **BODY, thread=None)).status_code == 200

    run(test())


def test_a_word_that_is_none_of_a_few_is_answered_with_those() -> None:
    async def test() -> None:
        async with http_serving() as s:
            response = await s.post(PATH, **BODY, output_config={"effort": "most"})
            message = response.json()["error"]["message"]
            assert message == (
                "output_config.effort is 'most'; it must be high, low, max, medium, minimal, none or xhigh"
            )

    run(test())
