"""What a stream says while nothing happens."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from serving.http import event_stream
from tests.fakes import FakeOptions
from tests.serving.harness import run, until
from tests.serving.http.harness import HttpServer, greedy_chat, http_serving
from tests.serving.http.test_messages import BODY

PATHS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi", "max_tokens": 4},
    "/v1/chat/completions": greedy_chat(),
    "/v1/responses": {"input": "hi", "max_output_tokens": 4},
    "/v1/messages": BODY,
}
ASKED = greedy_chat()
HANGS = FakeOptions(hang_at_step=1, eos_after=4)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "SILENT_SECONDS", 0.05)


async def lines(s: HttpServer, path: str, silent: int, **body: Any) -> list[str]:
    """A stream whose engine goes on when so many signs have come."""
    found: list[str] = []
    async with s.http.stream("POST", path, json={**PATHS[path], "stream": True, **body}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            found.append(line)
            if sum(each in (": keep-alive", "event: ping") for each in found) == silent:
                s.grpc.engine.released.set()
    return found


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/v1/messages"])
def test_comments_until_the_first_event(path: str) -> None:
    async def test() -> None:
        async with http_serving(HANGS) as s:
            found = await lines(s, path, 3)
            assert found[:6] == [": keep-alive", ""] * 3
            assert found[6].startswith(("data: ", "event: "))
            rest = [line for line in found[6:] if line and line != ": keep-alive"]
            assert all(line.startswith(("data: ", "event: ")) for line in rest)

    run(test())


def test_pings_behind_the_beginning_of_a_message() -> None:
    async def test() -> None:
        async with http_serving(HANGS) as s:
            found = await lines(s, "/v1/messages", 3)
            events = [line.removeprefix("event: ") for line in found if line.startswith("event: ")]
            assert events[:4] == ["message_start", "ping", "ping", "ping"]
            assert events.count("message_start") == 1
            assert events[-2:] == ["message_delta", "message_stop"]
            data = [json.loads(line.removeprefix("data: ")) for line in found if line.startswith("data: ")]
            first, last = data[0]["message"]["usage"], data[-2]["usage"]
            assert (first["input_tokens"], first["cache_read_input_tokens"]) == (last["input_tokens"] + 3, 0)
            assert last["cache_read_input_tokens"] == 3

    run(test())


def test_clients_pass_over_signs() -> None:
    """OpenAI's package, and Anthropic's, whose message has the usage of its end."""
    anthropic = pytest.importorskip("anthropic", reason="pip install '.[test]'")

    async def test() -> None:
        async with http_serving(HANGS) as s:
            asyncio.get_running_loop().call_later(0.2, lambda: s.grpc.engine.released.set())
            chunks = [c async for c in await s.openai().chat.completions.create(model="fake", stream=True, **ASKED)]
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == "abcd"
        async with http_serving(HANGS) as s:
            asyncio.get_running_loop().call_later(0.2, lambda: s.grpc.engine.released.set())
            client = anthropic.AsyncAnthropic(base_url=s.url, api_key="none", max_retries=0)
            async with client.messages.stream(model="fake", max_tokens=8, messages=BODY["messages"]) as stream:
                final = await stream.get_final_message()
            assert len(final.content[0].text) == 4
            assert (final.usage.cache_read_input_tokens, final.usage.output_tokens) == (3, 5)

    run(test())


def test_who_is_served_at_once_gets_no_sign() -> None:
    async def test() -> None:
        async with http_serving(FakeOptions(eos_after=3)) as s:
            s.grpc.engine.released.set()
            found = await lines(s, "/v1/chat/completions", 0)
            assert ": keep-alive" not in found

    run(test())


@pytest.mark.parametrize("path", list(PATHS))
def test_an_error_behind_a_sign_is_an_event(path: str) -> None:
    async def test() -> None:
        async with http_serving(FakeOptions(hang_at_step=1, crash_at_step=2)) as s:
            found = await lines(s, path, 2)
            errors = [line for line in found if line.startswith("data: ") and "the engine failed" in line]
            assert len(errors) in (1, 2)  # of responses: what failed, and how the response ended

    run(test())


def test_a_client_that_leaves_in_silence_ends_its_request() -> None:
    async def test() -> None:
        async with http_serving(HANGS) as s:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(lines(s, "/v1/chat/completions", 10**6), 0.3)
            s.grpc.engine.released.set()
            await until(lambda: not s.grpc.server.frontend.open_requests, "it ends")
            assert not [task for task in asyncio.all_tasks() if "_keep_alive" in repr(task.get_coro())]

    run(test())


def test_a_sign_stands_between_two_events_and_not_within_one() -> None:
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def test() -> None:
        stream = event_stream.EventStream(send, list, lambda: b": sign\n\n")
        await stream.push(b"data: 1")
        await asyncio.sleep(0.2)
        assert sent == [b"", b"data: 1"]
        await stream.push(b"2\n\n")
        await asyncio.sleep(0.2)
        await stream.end()
        count = len(sent)
        assert sent[2:5] == [b"2\n\n", b": sign\n\n", b": sign\n\n"]
        await asyncio.sleep(0.2)
        assert len(sent) == count
        assert sent[-1] == b""

    run(test())
