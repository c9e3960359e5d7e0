"""Every spelling of "absent" in every optional key of messages, items and tools, in each server that takes chats."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from jaxinfer.messages import Submit
from protos.jaxinfer.v1 import inference_pb2 as pb
from tests.serving import harness
from tests.serving.harness import collect, run
from tests.serving.http.harness import HttpServer, http_serving

NOTHING: list[Any] = [None, "", [], {}]
CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a1b2c3d4e", "content": "21"},
]
ITEMS: list[dict[str, Any]] = [
    {"type": "message", "role": "user", "content": "hi"},
    {"type": "function_call", "call_id": "a1b2c3d4e", "name": "f", "arguments": '{"a": 1}'},
    {"type": "function_call_output", "call_id": "a1b2c3d4e", "output": "21"},
]
RENDERED = "<user>hi;<assistant>;<tool>21;"

# (which message, key, spellings of "absent" that its type allows)
OF_MESSAGES = [
    *((i, key, [None, ""]) for i in range(3) for key in ("name", "refusal")),
    *((i, key, [*NOTHING, "x", {"a": 1}]) for i in range(3) for key in ("annotations", "id", "reasoning_details")),
    *((i, key, NOTHING) for i in range(3) for key in ("audio", "function_call", "parsed", "provider_specific_fields")),
    (1, "content", [*NOTHING, [{"type": "text", "text": None}], [{"type": "text", "text": ""}]]),
    *((1, key, NOTHING) for key in ("reasoning_content", "reasoning", "thinking", "tool_call_id")),
    *((i, "tool_calls", NOTHING) for i in (0, 2)),
    *((1, "tool_calls", [[CALL | {key: value}]]) for key in ("type", "index", "x") for value in NOTHING),
]
OF_ITEMS = [
    *((i, key, NOTHING) for i in range(3) for key in ("id", "status", "namespace")),
    (0, "phase", [None, ""]),
    (0, "type", NOTHING),
    (2, "output", ["21", [{"type": "input_text", "text": "21"}]]),
    (0, "content", ["hi", [{"type": "input_text", "text": "hi", "annotations": [], "logprobs": []}]]),
]
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
OF_FUNCTIONS = [
    ("description", NOTHING),
    ("parameters", NOTHING),
    ("strict", [*NOTHING, False]),
    ("x", NOTHING),
]


def prompt(s: HttpServer) -> str:
    return bytes(s.grpc.received(Submit)[-1].prompt_token_ids).decode()


async def rendered(s: HttpServer, path: str, **body: Any) -> str:
    response = await s.post(path, temperature=0, **body)
    assert response.status_code == 200, (body, response.text)
    return prompt(s)


def test_messages_and_items_say_nothing_in_many_ways() -> None:
    async def test() -> None:
        async with http_serving() as s:
            for path, name, given, cases in (
                ("/v1/chat/completions", "messages", MESSAGES, OF_MESSAGES),
                ("/v1/responses", "input", ITEMS, OF_ITEMS),
            ):
                limit = {"max_tokens": 1} if name == "messages" else {"max_output_tokens": 1}
                for i, key, spellings in cases:
                    for value in spellings:
                        body = {name: [m | ({key: value} if j == i else {}) for j, m in enumerate(given)]}
                        assert (await rendered(s, path, **body, **limit)).startswith(RENDERED), (key, value)

    run(test())


async def check_content(s: HttpServer, role: str, content: dict[str, Any]) -> None:
    message = {"role": role, **content}
    expected = f"<{'system' if role == 'developer' else role}>;"
    assert (await rendered(s, "/v1/chat/completions", messages=[message], max_tokens=1)).startswith(expected)
    output = {"output": content["content"]} if content else {}
    item = {"type": "function_call_output", "call_id": "", **output} if role == "tool" else message
    assert (await rendered(s, "/v1/responses", input=[item], max_output_tokens=1)).startswith(expected)
    chat = pb.Chat(messages=[pb.ChatMessage(role=role, extra_json=json.dumps(content))])
    request = pb.GenerateRequest(chat=chat, sampling=pb.SamplingParams(max_tokens=1, temperature=0.0))
    await collect(s.grpc.stub.Generate(request))
    assert prompt(s).startswith(expected)


def test_no_content_is_an_empty_one() -> None:
    async def test() -> None:
        async with http_serving() as s:
            for role in ("system", "user", "assistant", "tool", "developer"):
                for content in (*NOTHING, [{"type": "text", "text": None}], [{"type": "text", "text": ""}]):
                    await check_content(s, role, {"content": content})
                await check_content(s, role, {})

    run(test())


def test_tools_say_nothing_in_many_ways() -> None:
    async def test() -> None:
        async with http_serving(tool_call_parser="hermes") as s:
            chat: dict[str, Any] = {"messages": MESSAGES[:1], "max_tokens": 1}
            plain = await rendered(s, "/v1/chat/completions", **chat)
            for tools, choice in (([], None), (None, None), ([], "auto"), ([], "none"), (None, "none")):
                assert await rendered(s, "/v1/chat/completions", **chat, tools=tools, tool_choice=choice) == plain
                answer = await s.post("/v1/responses", input="hi", max_output_tokens=1, tools=tools, tool_choice=choice)
                assert answer.status_code == 200, answer.text
            full = {"type": "function", "function": FUNCTION}
            expected = await rendered(s, "/v1/chat/completions", **chat, tools=[full])
            for key, spellings in OF_FUNCTIONS:
                for value in spellings:
                    function = FUNCTION | {key: value}
                    found = await rendered(s, "/v1/chat/completions", **chat, tools=[{"function": function, "x": None}])
                    flat = {"type": None, **function}
                    again = await rendered(s, "/v1/responses", input="hi", max_output_tokens=1, tools=[flat])
                    without = expected.replace('"description": "d", ', "") if key == "description" else expected
                    without = (
                        without.replace('"f", ', '"f", "description": "", ')
                        if value == "" and key[0] == "d"
                        else without
                    )
                    assert found == without == again, (key, value)
            del function["parameters"]
            found = await rendered(s, "/v1/chat/completions", **chat, tools=[{"function": function}])
            assert found == expected

    run(test())


def test_what_is_not_text_is_still_refused() -> None:
    async def test() -> None:
        async with http_serving() as s:
            for message, param in (
                ({"content": 5}, "messages[0].content"),
                ({"content": [5]}, "messages[0].content[0]"),
                ({"content": [{"type": "image_url", "image_url": {"url": "u"}}]}, "messages[0].content[0].type"),
                ({"content": [{"type": "text"}]}, "messages[0].content[0].text"),
                ({"tool_calls": "f"}, "messages[0].tool_calls"),
                ({"tool_calls": [{"type": "custom"}]}, "messages[0].tool_calls[0]"),
                ({"tool_calls": [{"function": {"name": None}}]}, "messages[0].tool_calls[0].function.name"),
                ({"tool_calls": [{"id": True, "function": {"name": "f"}}]}, "messages[0].tool_calls[0].id"),
                ({"audio": {"id": "a"}}, "messages[0].audio"),
                ({"function_call": {"name": "f"}}, "messages[0].function_call"),
                ({"name": 5}, "messages[0].name"),
                ({"refusal": True}, "messages[0].refusal"),
            ):
                error = await s.refused("/v1/chat/completions", messages=[{"role": "assistant", **message}])
                assert error["param"] == param, error

    run(test())


OTHER_PARTS = [
    ({"type": "image_url", "image_url": {"url": "u"}}, "it is an image"),
    ({"type": "input_image", "image_url": "u"}, "it is an image"),
    ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "it is audio"),
    ({"type": "video_url", "video_url": {"url": "u"}}, "it is a video"),
    ({"type": "file", "file": {"file_id": "f"}}, "it is a file"),
    ({"type": "input_file", "file_id": "f"}, "it is a file"),
]


def test_parts_of_other_modalities_are_refused_by_name_in_both_apis() -> None:
    async def test() -> None:
        async with http_serving() as s:
            for part, what in OTHER_PARTS:
                turn = [{"role": "user", "content": [{"type": "text", "text": "look:"}, part]}]
                for path, name, body in (
                    ("/v1/chat/completions", "messages[0].content[1].type", {"messages": turn}),
                    ("/v1/responses", "input[0].content[1].type", {"input": turn}),
                ):
                    error = await s.refused(path, **body)  # with status 400
                    assert error["param"] == name
                    for words in (repr(part["type"]), what, "--language-model-only", "only text"):
                        assert words in error["message"], error

    run(test())


def test_a_template_that_refuses_says_what_of(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tool here') }}{% endif %}{% endfor %}"
    )
    monkeypatch.setattr("tests.fakes.CHAT_TEMPLATE", source)
    monkeypatch.setattr("tests.serving.harness.tokenizer", harness.tokenizer.__wrapped__)

    async def test() -> None:
        async with http_serving() as s:
            error = await s.refused("/v1/chat/completions", messages=MESSAGES)
            assert (error["param"], error["code"]) == ("messages", None)
            assert error["message"] == "the chat template refused the conversation: no tool here"
            assert (await s.refused("/v1/responses", input=ITEMS))["param"] == "input"
            assert (await s.refused("/tokenize", messages=MESSAGES))["param"] == "messages"
            chat = pb.Chat(messages=[pb.ChatMessage(role="tool", content="x")])
            with pytest.raises(grpc.aio.AioRpcError, match="no tool here"):
                await collect(s.grpc.stub.Generate(pb.GenerateRequest(chat=chat)))

    run(test())
