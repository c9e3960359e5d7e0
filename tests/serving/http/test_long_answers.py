"""An answer with hundreds of thousands of log-probabilities keeps nobody waiting: it is built, encoded and sent in
parts, and what one part takes is bounded."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import msgspec
import pytest

from serving.http import app
from serving.http.logprobs import Spelling
from serving.pace import STEPS
from tests.fakes import FakeOptions
from tests.serving.harness import run, serving

CHAT = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 20, "n": 4}),
    "chat's prompt": ("/v1/chat/completions", {**CHAT, "prompt_logprobs": 20, "messages": "LONG"}),
    "completions": ("/v1/completions", {"prompt": "hi", "temperature": 0, "logprobs": 20, "n": 4, "echo": True}),
    "responses": (
        "/v1/responses",
        {"input": "hi", "temperature": 0, "top_logprobs": 20, "include": ["message.output_text.logprobs"]},
    ),
}
# A stream gives none of the prompt's.
CASES = [(name, stream) for name in BODIES for stream in (False, True) if not (stream and name == "chat's prompt")]


async def answer(api: Any, path: str, body: dict[str, Any], sent: list[bytes]) -> None:
    """As the HTTP server does it, to a client that takes everything at once."""

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    reply = await api.begin(path, msgspec.json.encode(body))
    try:
        if reply.stream:
            async for data in reply.events():
                await send({"body": data})
        else:
            await app.send_json(send, 200, await reply.result())
    finally:
        reply.close()


def body_of(name: str, tokens: int, **more: Any) -> tuple[str, dict[str, Any]]:
    path, body = BODIES[name]
    limit = {"/v1/completions": "max_tokens", "/v1/responses": "max_output_tokens"}.get(path, "max_completion_tokens")
    if body.get("messages") == "LONG":
        return path, {**body, "messages": [{"role": "user", "content": "x" * tokens}], limit: 1, **more}
    return path, {**body, limit: tokens, **more}


@pytest.mark.parametrize(("name", "stream"), CASES)
def test_between_two_turns_of_others_a_bounded_number_of_entries_is_made(
    name: str, stream: bool, monkeypatch: pytest.MonkeyPatch
):
    if name == "chat's prompt" and stream:
        pytest.skip("a stream gives none of the prompt's")
    made = [0, 0, 0]  # since the last turn of others, the most of them, all

    def counted(method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            made[0] += 1
            made[2] += 1
            return method(*arguments)

        return call

    for method in ("chat", "quoted"):
        monkeypatch.setattr(Spelling, method, counted(getattr(Spelling, method)))

    async def others() -> None:
        while True:
            made[:2] = 0, max(made[:2])
            await asyncio.sleep(0)

    async def test():
        async with serving(FakeOptions(), http_port=0) as running:
            task = asyncio.create_task(others())
            sent: list[bytes] = []
            # Nothing is read before all of it is there, as by a client that was slow.
            monkeypatch.setattr("serving.frontend.stream.GenerationStream.read", patient(running))
            path, body = body_of(name, 700, stream=stream)
            await answer(running.server.api, path, body, sent)
            task.cancel()
            assert made[2] > 700 * 20
            assert max(made[:2]) <= STEPS + 1100
            assert max(map(len, sent)) < 1 << 20
            if not stream:
                json.loads(b"".join(sent))

    run(test())


def patient(running: Any) -> Any:
    from serving.frontend.stream import GenerationStream

    read = GenerationStream.read

    async def wait(self: Any) -> Any:
        while not self.finished:
            await asyncio.sleep(0.001)
        return await read(self)

    return wait


@pytest.fixture
def callbacks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """CPU seconds of this thread that each callback of the event loop took, the longest last."""
    found: list[float] = []
    turn = asyncio.events.Handle._run

    def timed(self: asyncio.events.Handle) -> None:
        began = time.thread_time()
        turn(self)
        found.append(time.thread_time() - began)

    monkeypatch.setattr(asyncio.events.Handle, "_run", timed)
    return found


@pytest.mark.longer
@pytest.mark.parametrize(("name", "stream"), CASES)
def test_no_turn_of_the_event_loop_is_long(name: str, stream: bool, callbacks: list[float]):
    async def test():
        async with serving(FakeOptions(max_num_seqs=16), http_port=0) as running:
            many = {"n": 16} if name in ("chat", "completions") else {}
            path, body = body_of(name, 2000, stream=stream, **many)
            sent: list[bytes] = []
            callbacks.clear()
            began = time.thread_time()
            await answer(running.server.api, path, body, sent)
            print(name, stream, f"{time.thread_time() - began:.2f} s, {sum(map(len, sent)) >> 20} MiB", end=" ")
            print("longest turns in ms:", [round(1000 * each) for each in sorted(callbacks)[-3:]])
            assert max(callbacks) < 0.1

    asyncio.run(asyncio.wait_for(test(), 120))
