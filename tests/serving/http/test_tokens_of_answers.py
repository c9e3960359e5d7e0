"""Log-probabilities, token ids and offsets at the HTTP server: each with the text that it spells, whole and
streamed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes import FakeOptions
from tests.serving.harness import run
from tests.serving.http.harness import http_serving, says

CALL = '<tool_call>{"name": "f", "arguments": {"q": "é"}}</tool_call>'
TEXT = f"<think>\na€b\n</think>\n\nX 😀 <b> {CALL}{CALL}"
PARSERS = {"tool_call_parser": "hermes", "reasoning_parser": "think"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def kind(delta: dict[str, Any]) -> str:
    """The part that a delta adds to."""
    if delta.get("tool_calls"):
        call = delta["tool_calls"][0]
        return f"call {call['index']} " + ("name" if "name" in call["function"] else "arguments")
    return "reasoning" if "reasoning" in delta else "content" if delta.get("content") else "none"


def test_each_delta_of_a_chat_has_the_tokens_of_its_own_part():
    async def test():
        async with http_serving(says(TEXT), **PARSERS) as s:
            fields = {"tools": TOOLS, "logprobs": True, "return_token_ids": True, "max_tokens": None}
            whole = (await s.chat(**fields))["choices"][0]
            request = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, **fields}
            events = [e["choices"][0] for e in (await s.events("/v1/chat/completions", **request))[:-1]]
            spelled: dict[str, bytes] = {}
            ids: list[int] = []
            for choice in events:
                entries = choice["logprobs"]["content"] if choice["logprobs"] else []
                data = b"".join(bytes(entry["bytes"]) for entry in entries)
                spelled[kind(choice["delta"])] = spelled.get(kind(choice["delta"]), b"") + data
                ids += choice.get("token_ids", [])
                assert data.replace(b"</s>", b"") == bytes(t for t in choice.get("token_ids", ()) if t < 256)
            assert {name: data.decode() for name, data in spelled.items()} == {
                "content": "X 😀 <b>",
                "reasoning": "<think>\na€b\n</think>\n\n",
                "call 0 name": ' <tool_call>{"name": "f", "arguments": ',
                "call 0 arguments": '{"q": "é"}}</tool_call>',
                "call 1 name": '<tool_call>{"name": "f", "arguments": ',
                "call 1 arguments": '{"q": "é"}}</tool_call>',
                "none": "</s>",
            }
            assert ids == whole["token_ids"] == [*TEXT.encode(), 257]
            assert whole["logprobs"]["content"] == [
                entry for choice in events if choice["logprobs"] for entry in choice["logprobs"]["content"]
            ]

    run(test())


@pytest.mark.parametrize("stream", [False, True])
def test_a_responses_text_has_its_own_log_probabilities_alone(stream: bool):
    async def test():
        text = f"<think>why</think>\nOne é. {CALL}"
        async with http_serving(says(text), **PARSERS) as s:
            request = {
                "input": "hi",
                "temperature": 0,
                "include": ["message.output_text.logprobs"],
                "tools": [{"type": "function", "name": "f"}],
            }
            deltas: list[Any] = []
            if stream:
                events = await s.events("/v1/responses", **request)
                response = events[-1]["response"]
                deltas = [e for e in events if e["type"] == "response.output_text.delta"]
                done = next(e for e in events if e["type"] == "response.output_text.done")
                assert [entry for e in deltas for entry in e["logprobs"]] == done["logprobs"]
                for event in deltas:
                    assert "".join(entry["token"] for entry in event["logprobs"]) == event["delta"]
            else:
                response = (await s.post("/v1/responses", **request)).json()
            assert [item["type"] for item in response["output"]] == ["reasoning", "message", "function_call"]
            (part,) = response["output"][1]["content"]
            assert part["text"] == "One é."
            assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"]
            assert bytes(b for entry in part["logprobs"] for b in entry["bytes"]) == part["text"].encode()
            if stream:
                assert part["logprobs"] == done["logprobs"]

    run(test())


@pytest.mark.parametrize("echo", [False, True])
def test_offsets_of_a_completion_are_places_in_its_text(echo: bool):
    """As vLLM 0.32 has it: a byte that leaves a character incomplete is "", the one that completes it is the
    character, and both begin where the character does."""

    async def test():
        async with http_serving(says("€x😀é漢z")) as s:
            request = {"prompt": "ü 字", "logprobs": 1, "echo": echo, "max_tokens": None, "return_token_ids": True}
            choice = (await s.complete(**request))["choices"][0]
            text, logprobs = choice["text"], choice["logprobs"]
            assert text == ("ü 字" if echo else "") + "€x😀é漢z"
            tokens, offsets = logprobs["tokens"], logprobs["text_offset"]
            own = [token for token in tokens if token not in ("<s>", "</s>")]
            assert "".join(own) == text
            assert own[-14:] == ["", "", "€", "x", "", "", "", "😀", "", "é", "", "", "漢", "z"]
            for token, offset in zip(tokens, offsets, strict=True):
                if token not in ("<s>", "</s>"):
                    assert text[offset : offset + len(token)] == token
            assert offsets == sorted(offsets)
            assert offsets[-1] == len(text)
            for token, top, value in zip(tokens, logprobs["top_logprobs"], logprobs["token_logprobs"], strict=True):
                assert top is None or top[token] == value
            events = await s.events("/v1/completions", **{"temperature": 0, **request})
            streamed = [event["choices"][0] for event in events[:-1]]
            for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
                assert [v for each in streamed for v in each["logprobs"][name]] == logprobs[name]
            assert [t for each in streamed for t in each["token_ids"]] == choice["token_ids"]
            assert "".join(each["text"] for each in streamed) == text

    run(test())


def test_offsets_where_a_stop_string_holds_text_back_and_cuts_it():
    async def test():
        async with http_serving(FakeOptions(script="ab€cd€")) as s:
            request = {"logprobs": 0, "stop": ["€cde", "d€a"], "max_tokens": 20}
            choice = (await s.complete(**request))["choices"][0]
            assert (choice["text"], choice["stop_reason"]) == ("ab€c", "d€a")
            assert choice["logprobs"]["tokens"] == ["a", "b", "", "", "€", "c", "d", "", "", "€", "a"]
            assert choice["logprobs"]["text_offset"] == [0, 1, 2, 2, 2, 3, 4, 4, 4, 4, 4]
            events = await s.events("/v1/completions", **{"prompt": "hi", "temperature": 0, **request})
            streamed = [event["choices"][0] for event in events[:-1]]
            assert [o for e in streamed for o in e["logprobs"]["text_offset"]] == choice["logprobs"]["text_offset"]
            at = 0
            for event in streamed:  # a token comes with its text, not before
                at += len(event["text"])
                assert all(offset <= at for offset in event["logprobs"]["text_offset"])

    run(test())


def test_a_chats_tokens_of_several_bytes():
    async def test():
        async with http_serving(says("a😀")) as s:
            content = (await s.chat(logprobs=True, top_logprobs=1))["choices"][0]["logprobs"]["content"]
            assert [entry["token"] for entry in content] == ["a", "", "", "", "😀", "</s>"]
            assert bytes(byte for entry in content[:-1] for byte in entry["bytes"]).decode() == "a😀"
            assert all(entry["top_logprobs"][0]["token"] == entry["token"] for entry in content)

    run(test())
