"""Anthropic's client, unmodified, sync and async, against the HTTP server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.messages import Abort
from serving.access.access import AccessConfig
from tests.fakes import FakeOptions
from tests.serving.access.harness import Keys
from tests.serving.harness import run, until
from tests.serving.http.harness import HttpServer, http_serving, says
from tests.serving.http.test_messages import CALLS, HERMES

anthropic = pytest.importorskip("anthropic", reason="Anthropic's client is not installed (pip install '.[test]')")

TOOLS: Any = [
    {
        "name": "f",
        "description": "Weather of a city",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]
ASKED: dict[str, Any] = {
    "model": "fake",
    "max_tokens": 512,
    "messages": [{"role": "user", "content": "hi"}],
    "extra_body": {"temperature": 0},  # the client's own arguments have none since its version 2
}


def client(s: HttpServer, **settings: Any) -> Any:
    return anthropic.AsyncAnthropic(base_url=s.url, **{"api_key": "none", "max_retries": 0, **settings})


def asked(**more: Any) -> dict[str, Any]:
    return {**ASKED, **more}


def test_a_loop_with_tools() -> None:
    async def test() -> None:
        async with http_serving(says(CALLS), **HERMES) as s:
            whole = await client(s).messages.create(**asked(tools=TOOLS))
            assert whole.stop_reason == "tool_use"
            assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
            assert [block.input for block in whole.content[2:]] == [{"city": "Paris"}, {"city": "Łódź"}]
            assert whole.usage.output_tokens_details.thinking_tokens == len("two\ncities")
            assert whole._request_id == whole.id.removeprefix("msg_")

            async with client(s).messages.stream(**asked(tools=TOOLS, thinking={"type": "adaptive"})) as stream:
                seen = [event async for event in stream]
                final = await stream.get_final_message()
                assert stream.request_id == final.id.removeprefix("msg_")
            assert final.model_dump(exclude={"id", "content"}) == whole.model_dump(exclude={"id", "content"})
            assert [block.model_dump(exclude={"id"}) for block in final.content] == [
                block.model_dump(exclude={"id"}) for block in whole.content
            ]
            kinds = {event.type for event in seen}
            assert {"thinking", "signature", "text", "input_json", "content_block_stop", "message_stop"} <= kinds
            assert "".join(event.text for event in seen if event.type == "text") == "I look."

            results = [
                {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "rain"}]}
                for block in final.content[2:]
            ]
            turns = [{"role": "assistant", "content": final.content}, {"role": "user", "content": results}]
            again = await client(s).messages.create(**asked(tools=TOOLS, messages=[*ASKED["messages"], *turns]))
            assert again.usage.input_tokens > whole.usage.input_tokens

    run(test())


def test_the_synchronous_client() -> None:
    async def test() -> None:
        async with http_serving() as s:

            def work() -> None:
                with anthropic.Anthropic(base_url=s.url, api_key="none", max_retries=0) as c:
                    counted = c.messages.count_tokens(model="fake", messages=ASKED["messages"], system="S")
                    answer = c.messages.create(**asked(system="S", stop_sequences=["de"]))
                    usage = answer.usage
                    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
                    assert answer.content[0].text == "abc"
                    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "de")
                    with c.messages.stream(**asked(max_tokens=3)) as stream:
                        assert "".join(stream.text_stream) == "abc"
                        assert stream.get_final_message().stop_reason == "max_tokens"
                    raw = c.messages.create(**asked(max_tokens=2), stream=True)
                    # As many deltas as the reader has taken pieces.
                    assert list(dict.fromkeys(event.type for event in raw)) == [
                        *("message_start", "content_block_start", "content_block_delta"),
                        *("content_block_stop", "message_delta", "message_stop"),
                    ]
                    beta = c.beta.messages.create(**asked(max_tokens=2), betas=["interleaved-thinking-2025-05-14"])
                    assert beta.content[0].text == "ab"

            await asyncio.to_thread(work)

    run(test())


def test_errors_have_their_classes(tmp_path: Path) -> None:
    async def test() -> None:
        keys = Keys(tmp_path)
        key = keys.new()
        async with http_serving(access=AccessConfig(keys.path)) as s:
            with pytest.raises(anthropic.AuthenticationError) as unknown:
                await client(s, api_key="sk-none").messages.create(**asked())
            assert unknown.value.type == "authentication_error"
            assert unknown.value.request_id == unknown.value.body["request_id"]
            for settings in ({"api_key": key}, {"api_key": None, "auth_token": key}):
                c = client(s, **settings)
                assert (await c.messages.create(**asked(max_tokens=2))).content[0].text == "ab"
                for change, kind, name, told in (
                    ({"model": "gpt-4"}, anthropic.NotFoundError, "not_found_error", "model is 'gpt-4'"),
                    (
                        {"extra_body": {"temperature": -1}},
                        anthropic.BadRequestError,
                        "invalid_request_error",
                        "temperature is -1",
                    ),
                    ({"messages": []}, anthropic.BadRequestError, "invalid_request_error", "messages is []"),
                ):
                    with pytest.raises(kind) as refused:
                        await c.messages.create(**asked(**change))
                    assert refused.value.type == name
                    assert told in refused.value.api_message

    run(test())


def test_it_waits_as_long_as_it_is_told_and_leaving_aborts() -> None:
    async def test() -> None:
        async with http_serving(FakeOptions(step_seconds=0.002, max_num_seqs=1), max_waiting=0) as s:
            busy = await client(s).messages.create(**asked(max_tokens=4000), stream=True)
            await anext(aiter(busy))
            with pytest.raises(anthropic.RateLimitError) as full:
                await client(s).messages.create(**asked(max_tokens=1))
            assert int(full.value.response.headers["retry-after"]) >= 1
            waits = asyncio.create_task(client(s, max_retries=5).messages.create(**asked(max_tokens=2)))
            await asyncio.sleep(0.1)
            await busy.close()
            await until(lambda: len(s.grpc.received(Abort)) == 1, "the engine was told")
            assert (await waits).content[0].text == "ab"

    run(test())


def test_an_engine_that_fails_in_the_middle_is_an_error_to_the_client() -> None:
    async def test() -> None:
        async with http_serving(FakeOptions(crash_at_step=5, step_seconds=0.01)) as s:
            stream = await client(s).messages.create(**asked(), stream=True)
            with pytest.raises(anthropic.APIStatusError, match="the engine failed") as failed:
                async for _ in stream:
                    pass
            assert failed.value.type == "api_error"

    run(test())
