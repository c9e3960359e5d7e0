"""A server with OpenAI's interface that misbehaves as a request's prompt tells it to. Written on asyncio alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

STEP = 0.02  # seconds between tokens
GOOD, BUSY, BREAKS, STALLS, CUT, NO_USAGE, NOISE = range(100, 107)  # the first token id of a prompt


@dataclass
class FakeOpenAi:
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    began: list[float] = field(default_factory=list)


async def _answer(body: dict[str, Any], write: Any) -> None:
    async def event(data: Any) -> None:
        await write(b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\r\n\r\n")

    how = body["prompt"][0] if "prompt" in body else GOOD
    chat = "messages" in body
    count = body["max_tokens"]
    if chat:  # OpenAI's first event has a role and no token
        await event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
    for i in range(count):
        await asyncio.sleep(STEP)
        if i == 2 and how == STALLS:
            await asyncio.sleep(60)
        if i == 2 and how == CUT:
            return
        if i == 2 and how == BREAKS:
            await event({"error": {"message": "the model fell over", "code": 500}})
            return
        if how == NOISE:
            await write(b": a comment\n\nevent: token\n")
        text = {"delta": {"content": "a"}} if chat else {"text": "" if i == 1 else "a"}
        await event({"choices": [{"index": 0, **text, "finish_reason": None}], "usage": None})
    end = {"delta": {}} if chat else {"text": ""}
    await event({"choices": [{"index": 0, **end, "finish_reason": "length"}]})
    if how != NO_USAGE:
        prompt = len(body.get("prompt", [1]))
        details = {"prompt_tokens_details": {"cached_tokens": 1}}
        await event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": count, **details}})
    await event(b"[DONE]")


@contextlib.asynccontextmanager
async def fake_openai() -> AsyncIterator[FakeOpenAi]:
    fake = FakeOpenAi()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                sizes = [int(line.split(":")[1]) for line in head if line.lower().startswith("content-length:")]
                data = await reader.readexactly(sizes[0] if sizes else 0)
                if head[0].startswith("GET"):
                    _whole(writer, 200, {"data": [{"id": "first"}, {"id": "second"}]})
                    continue
                body = json.loads(data)
                fake.bodies.append(body)
                fake.began.append(asyncio.get_running_loop().time())
                if "prompt" in body and body["prompt"][0] == BUSY:
                    _whole(writer, 503, {"error": {"message": "come back later"}})
                    continue
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")

                async def write(data: bytes) -> None:
                    writer.write(data)
                    await writer.drain()

                await _answer(body, write)
                return
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()


def _whole(writer: asyncio.StreamWriter, status: int, body: Any) -> None:
    data = json.dumps(body).encode()
    writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
