"""The official client, unmodified, sync and async, against the HTTP server."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from jaxinfer.messages import Abort
from tests.fakes import FakeOptions
from tests.serving.harness import run, until
from tests.serving.http.harness import http_serving, says

USER = [{"role": "user", "content": "hi"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALLS = (
    "<think>two cities</think>\nI look.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Łódź"}}\n</tool_call>'
)
HERMES = {"tool_call_parser": "hermes", "reasoning_parser": "think"}


def test_completions():
    async def test():
        async with http_serving() as s:
            client = s.openai()
            whole = await client.completions.create(
                model="fake", prompt="hi", temperature=0, max_tokens=5, logprobs=2, echo=True, n=2, user="me"
            )
            assert [choice.text for choice in whole.choices] == ["hiabcde", "hiabcde"]
            assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 10)  # with <s>
            logprobs = whole.choices[0].logprobs
            assert logprobs.tokens == ["<s>", "h", "i", *"abcde"]
            assert logprobs.text_offset == [0, 0, 1, 2, 3, 4, 5, 6]
            assert logprobs.token_logprobs == [None] + [-0.5] * 7
            assert logprobs.top_logprobs[3] == {"a": -0.5, "b": -1.5}
            several = await client.completions.create(
                model="fake", prompt=["one", "two"], temperature=0, max_tokens=3, n=2
            )
            assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
            stream = await client.completions.create(
                model="fake", prompt=[[5, 6], [7]], temperature=0, max_tokens=4, stream=True,
                stream_options={"include_usage": True},
            )  # fmt: skip
            texts = ["", ""]
            async for chunk in stream:
                for choice in chunk.choices:
                    texts[choice.index] += choice.text
                usage = chunk.usage
            assert texts == ["abcd", "abcd"]
            assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 8, 11)

    run(test())


def test_chat():
    async def test():
        async with http_serving(says("Hello ünïcode 😀.")) as s:
            client = s.openai()
            whole = await client.chat.completions.create(
                model="fake", messages=USER, temperature=0, logprobs=True, top_logprobs=1
            )
            choice = whole.choices[0]
            assert (choice.message.role, choice.message.content) == ("assistant", "Hello ünïcode 😀.")
            assert choice.finish_reason == "stop"
            entries = choice.logprobs.content
            assert b"".join(bytes(entry.bytes) for entry in entries[:-1]).decode() == choice.message.content
            assert entries[-1].token == "</s>"  # every token counts, the one that ended it too
            assert len(entries) == whole.usage.completion_tokens
            stream = await client.chat.completions.create(model="fake", messages=USER, temperature=0, stream=True)
            chunks = [chunk async for chunk in stream]
            assert chunks[0].choices[0].delta.role == "assistant"
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
            assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
            assert len({chunk.id for chunk in chunks}) == 1

    run(test())


def test_chat_stream_helper_accumulates_what_the_whole_answer_is():
    async def test():
        async with http_serving(says(CALLS), **HERMES) as s:
            client = s.openai()
            request = {"model": "fake", "messages": USER, "temperature": 0, "tools": TOOLS}
            whole = (await client.chat.completions.create(**request)).choices[0]
            async with client.chat.completions.stream(**request) as stream:
                streamed = (await stream.get_final_completion()).choices[0]
            for choice in (whole, streamed):
                assert choice.finish_reason == "tool_calls"
                assert choice.message.content == "I look."
                assert choice.message.reasoning_content == "two cities"
                assert [call.function.name for call in choice.message.tool_calls] == ["get_weather"] * 2
                cities = [json.loads(call.function.arguments)["city"] for call in choice.message.tool_calls]
                assert cities == ["Paris", "Łódź"]
                assert len({call.id for call in choice.message.tool_calls}) == 2
            # The calls and their results go back as the client has them.
            results = [
                {"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in whole.message.tool_calls
            ]
            messages = [*USER, whole.message.model_dump(), *results]
            await client.chat.completions.create(model="fake", messages=messages, temperature=0, tools=TOOLS)

    run(test())


def test_one_call_where_the_client_wants_no_more():
    async def test():
        async with http_serving(says(CALLS), **HERMES) as s:
            client = s.openai()
            answer = await client.chat.completions.create(
                model="fake", messages=USER, temperature=0, tools=TOOLS, parallel_tool_calls=False
            )
            assert len(answer.choices[0].message.tool_calls) == 1
            answer = await client.chat.completions.create(
                model="fake", messages=USER, temperature=0, tools=TOOLS, tool_choice="none"
            )
            assert answer.choices[0].message.tool_calls is None
            assert "<tool_call>" in answer.choices[0].message.content

    run(test())


def test_responses():
    async def test():
        async with http_serving(says(CALLS), **HERMES) as s:
            client = s.openai()
            tools = [{"type": "function", **TOOLS[0]["function"], "strict": False}]
            request = {"model": "fake", "input": "hi", "temperature": 0, "tools": tools, "instructions": "be brief"}
            whole = await client.responses.create(**request)
            assert whole.status == "completed"
            assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call"]
            assert whole.output_text == "I look."
            assert whole.output[0].content[0].text == "two cities"
            assert json.loads(whole.output[3].arguments) == {"city": "Łódź"}
            assert whole.usage.output_tokens_details.reasoning_tokens == len("two cities")
            async with client.responses.stream(**request) as stream:
                numbers = [event.sequence_number async for event in stream]
                streamed = await stream.get_final_response()
            assert numbers == list(range(len(numbers)))
            assert [item.type for item in streamed.output] == [item.type for item in whole.output]
            assert streamed.output_text == whole.output_text
            assert [i.arguments for i in streamed.output[2:]] == [i.arguments for i in whole.output[2:]]
            call = whole.output[2]
            back = [*[item.model_dump() for item in whole.output]]
            back += [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
            again = await client.responses.create(**{**request, "input": [{"role": "user", "content": "hi"}, *back]})
            assert again.usage.input_tokens > whole.usage.input_tokens
            short = await client.responses.create(model="fake", input="hi", temperature=0, max_output_tokens=20)
            assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")

    run(test())


def test_the_synchronous_client():
    async def test():
        async with http_serving() as s:

            def work() -> None:
                with openai.OpenAI(base_url=s.url + "/v1", api_key="none", max_retries=0) as client:
                    assert [model.id for model in client.models.list()] == ["fake"]
                    assert client.models.retrieve("fake").id == "fake"
                    answer = client.completions.create(model="fake", prompt="x", temperature=0, max_tokens=3)
                    assert answer.choices[0].text == "abc"
                    stream = client.chat.completions.create(
                        model="fake", messages=USER, temperature=0, max_tokens=3, stream=True
                    )
                    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "abc"
                    response = client.responses.create(model="fake", input="x", temperature=0, max_output_tokens=3)
                    assert response.output_text == "abc"
                    with pytest.raises(openai.NotFoundError) as missing:
                        client.models.retrieve("gpt-4")
                    assert missing.value.code == "model_not_found"
                    with pytest.raises(openai.BadRequestError) as bad:
                        client.completions.create(model="fake", prompt="x", temperature=-1)
                    assert bad.value.param == "temperature"
                    assert "temperature is -1" in bad.value.message

            await asyncio.to_thread(work)

    run(test())


def test_leaving_a_stream_aborts_it():
    async def test():
        async with http_serving(FakeOptions(step_seconds=0.005)) as s:
            stream = await s.openai().completions.create(
                model="fake", prompt="x", temperature=0, max_tokens=4000, stream=True
            )
            await anext(aiter(stream))
            await stream.close()
            await until(lambda: len(s.grpc.received(Abort)) == 1, "the engine was told")
            await until(lambda: s.grpc.server.frontend.open_requests == 0, "nothing is left")

    run(test())


def test_leaving_a_whole_answer_aborts_it():
    async def test():
        async with http_serving(FakeOptions(step_seconds=0.005)) as s:
            client = s.openai(timeout=0.2)
            with pytest.raises(openai.APITimeoutError):
                await client.completions.create(model="fake", prompt="x", temperature=0, max_tokens=4000)
            await until(lambda: len(s.grpc.received(Abort)) == 1, "the engine was told")
            await until(lambda: s.grpc.server.frontend.open_requests == 0, "nothing is left")

    run(test())


def test_an_engine_that_fails_in_the_middle_is_an_error_to_the_client():
    async def test():
        async with http_serving(FakeOptions(crash_at_step=5, step_seconds=0.01)) as s:
            stream = await s.openai().completions.create(
                model="fake", prompt="x", temperature=0, max_tokens=100, stream=True
            )
            with pytest.raises(openai.APIError, match="the engine failed"):
                async for _ in stream:
                    pass
            health = await s.http.get("/health")
            assert (health.status_code, health.json()) == (503, {"status": "failed"})

    run(test())


def test_the_client_waits_as_long_as_it_is_told():
    async def test():
        async with http_serving(FakeOptions(step_seconds=0.002, max_num_seqs=1), max_waiting=0) as s:
            busy = asyncio.create_task(s.complete(max_tokens=300))
            await until(lambda: s.grpc.server.frontend.open_requests == 1, "the place is taken")
            refused = await s.post("/v1/completions", prompt="x", max_tokens=1)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "server_full"
            answer = await s.openai(max_retries=5).completions.create(
                model="fake", prompt="x", temperature=0, max_tokens=2
            )
            assert answer.choices[0].text == "ab"
            await busy

    run(test())
