"""What ends, however it ends, is forgotten: a server that runs for months has no use for it."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable

import pytest

from serving.frontend.stream import GenerationStream
from tests.fakes import FakeOptions
from tests.serving.bad_days.hostile_http import post
from tests.serving.harness import collect, greedy, run, until
from tests.serving.http.harness import HttpServer, http_serving

COUNT = 20


def http_request(**body: object) -> bytes:
    return post("/v1/completions", json.dumps({"prompt": "hi", "temperature": 0, **body}).encode())


async def http_cut(s: HttpServer, *, stream: bool) -> None:
    host, port = str(s.grpc.server.http_address).split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    accepted = s.grpc.server.frontend.accepted
    writer.write(http_request(max_tokens=4000, stream=stream))
    if stream:
        await reader.read(400)
    await until(lambda: s.grpc.server.frontend.accepted > accepted, "the request is in")
    writer.transport.abort()


async def http_cut_stream(s: HttpServer) -> None:
    await http_cut(s, stream=True)


async def http_cut_whole(s: HttpServer) -> None:
    await http_cut(s, stream=False)


async def http_whole(s: HttpServer) -> None:
    await s.complete()


async def http_refused(s: HttpServer) -> None:
    assert (await s.post("/v1/completions", prompt="hi", n=0)).status_code == 400


async def grpc_cut(s: HttpServer) -> None:
    call = s.grpc.stub.Generate(greedy(max_tokens=4000))
    await call.read()
    call.cancel()


async def grpc_late(s: HttpServer) -> None:
    call = s.grpc.stub.Generate(greedy(max_tokens=4000), timeout=0.02)
    with pytest.raises(Exception, match="Deadline"):
        await collect(call)


async def grpc_whole(s: HttpServer) -> None:
    await collect(s.grpc.stub.Generate(greedy()))


ENDS = [http_cut_stream, http_cut_whole, http_whole, http_refused, grpc_cut, grpc_late, grpc_whole]


@pytest.mark.parametrize("end", ENDS)
def test_streams_are_gone_when_they_have_ended(end: Callable[[HttpServer], Awaitable[None]]) -> None:
    async def test() -> None:
        async with http_serving(FakeOptions(step_seconds=0.001, max_num_seqs=32)) as s:
            for _ in range(COUNT):
                await end(s)
            client = s.grpc.server.frontend
            await until(lambda: client.open_requests == 0, "the requests have ended")
            await until(lambda: not (s.grpc.engine._running or s.grpc.engine._waiting), "in the engine, too")
            await asyncio.sleep(0.05)  # the loop's last callbacks
            gc.collect()
            kept = [found for found in gc.get_objects() if isinstance(found, GenerationStream)]
            assert len(kept) < COUNT / 4

    run(test())
