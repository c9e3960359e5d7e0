"""Requests by the hundred and, as a whole proof, by the ten thousand at each server, broken by a seeded hand: each gets
a client's error or a right answer, and the server is afterwards what it was before."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from protos.jaxinfer.v1 import inference_pb2 as pb
from tests.fakes import FakeOptions
from tests.serving.bad_days.hostile_http import GOOD_TEXT, Hostile, good, hostile
from tests.serving.bad_days.raw_http import Answer, exchange
from tests.serving.gateways.test_hostile_bytes import messages
from tests.serving.harness import Running, collect, greedy, until
from tests.serving.http.harness import HttpServer, http_serving

OPTIONS = FakeOptions(max_model_len=64, max_num_seqs=32)
AT_A_TIME = 16
WHOLE = 10_000
LONGEST_TURN = 0.25  # seconds: a garbage collection of all that the tests have loaded is within


@contextlib.asynccontextmanager
async def turning(limit: float) -> AsyncIterator[None]:
    """Fails when one turn of the event loop, the clients' and the server's, has used more processor seconds than
    `limit`. What other processes do is not in it."""
    turns: list[float] = []
    run = asyncio.events.Handle._run  # what a turn is made of

    def timed(handle: asyncio.events.Handle) -> None:
        began = time.thread_time()
        run(handle)
        turns.append(time.thread_time() - began)

    asyncio.events.Handle._run = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        asyncio.events.Handle._run = run  # type: ignore[method-assign]
    print(f"longest turns of the event loop: {[f'{1000 * turn:.0f} ms' for turn in sorted(turns)[-3:]]}")
    assert max(turns) < limit


@contextlib.asynccontextmanager
async def unharmed(caplog: pytest.LogCaptureFixture) -> AsyncIterator[HttpServer]:
    """A server that must be as good as new when the block ends, and have logged nothing as its own fault."""
    caplog.set_level(logging.ERROR)
    async with http_serving(OPTIONS) as s:
        async with turning(LONGEST_TURN):
            yield s
        server = s.grpc
        await until(lambda: server.server.frontend.open_requests == 0, "no request is left over")
        assert (await collect(server.stub.Generate(greedy()))).text() == GOOD_TEXT
        answer = await exchange(server.server.http_address, good().data)
        assert answer.json()["choices"][0]["text"] == GOOD_TEXT
        await until(lambda: not (server.engine._running or server.engine._waiting), "the engine holds nothing")
        await until(lambda: server.server.frontend.stats.free_pages == OPTIONS.num_pages - 1, "every page is back")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def check_http(sent: Hostile, answer: Answer) -> str:
    """What became of a request. Fails unless it is what the request deserves."""
    status = answer.status
    said = f"{sent.kind}: {sent.data[:600]!r}\n-> {status} {answer.body[:600]!r}"
    if status is None:
        assert not sent.whole, said
        return "closed"
    if sent.kind == "good":
        assert status == 200, said
        assert answer.json()["choices"][0]["text"] == GOOD_TEXT, said
        return "200"
    assert status == 200 or 400 <= status < 500, said
    if status == 429:
        assert int(answer.headers["retry-after"]) > 0, said
    if status >= 400 and sent.method != "HEAD":
        assert answer.json()["error"]["message"], said
    elif answer.headers.get("content-type", "").startswith("text/event-stream"):
        events = [line for line in answer.body.splitlines() if line.startswith(b"data: ")]
        assert all(json.loads(line[6:]) for line in events if line != b"data: [DONE]"), said
        # A stream that goes wrong after its head says so in an event, and nothing here may.
        assert b'"error":{"message"' not in answer.body, said
    elif sent.method != "HEAD" and answer.headers.get("content-type") == "application/json":
        assert isinstance(answer.json(), dict), said
    return str(status)


async def fuzz_http(s: HttpServer, rng: random.Random, count: int) -> Counter[str]:
    found: Counter[str] = Counter()
    address = s.grpc.server.http_address
    assert address is not None

    async def one(sent: Hostile) -> None:
        found[check_http(sent, await exchange(address, sent.data, method=sent.method, end=sent.end))] += 1

    for _ in range(0, count, AT_A_TIME):
        await asyncio.gather(*(one(hostile(rng)) for _ in range(AT_A_TIME)))
    return found


GENERATES = [
    pb.GenerateRequest(
        text="hi", sampling=pb.SamplingParams(temperature=0, max_tokens=4, stop=["z"], n=2, logprobs=1, seed=3)
    ),
    pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2]), sampling=pb.SamplingParams(max_tokens=4, top_p=0.5)),
    pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")]), request_id="mine"),
]
METHODS: list[tuple[str, list[Any], int]] = [  # and their part of ten requests
    ("Generate", GENERATES, 6),
    ("Tokenize", [pb.TokenizeRequest(text="hi")], 1),
    ("Detokenize", [pb.DetokenizeRequest(token_ids=[104, 105])], 1),
    ("Abort", [pb.AbortRequest(request_id="mine")], 1),
    ("GetModelInfo", [pb.GetModelInfoRequest()], 1),
]
METADATA: list[tuple[tuple[str, str | bytes], ...]] = [
    (),
    (),
    (("traceparent", "00-zz-1-ff"),),
    (("authorization", "Bearer \x7e"), ("authorization", "x")),
    (("x-request-id", "x" * 3000),),
    (("some-bin", b"\x00\xff"),),
]
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,  # another model
    grpc.StatusCode.ALREADY_EXISTS,  # the id of a request that runs
}


async def ended(call: Any) -> grpc.aio.AioRpcError | None:
    try:
        async with asyncio.timeout(20):
            async for _ in call:
                pass
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def fuzz_grpc(s: Running, rng: random.Random, count: int) -> Counter[str]:
    found: Counter[str] = Counter()

    async def one(method: str, body: bytes, metadata: Any) -> None:
        call = s.channel.unary_stream(f"/jaxinfer.v1.Inference/{method}")(body, metadata=metadata)
        error = await ended(call)
        code = grpc.StatusCode.OK if error is None else error.code()
        found[code.name] += 1
        assert code in EXPECTED, f"{method} {body[:600]!r} -> {error}"
        assert error is None or error.details()

    async def good_one() -> None:
        assert (await collect(s.stub.Generate(greedy()))).text() == GOOD_TEXT
        found["OK"] += 1

    bodies = [
        (method, body)
        for method, valid, tenths in METHODS
        for body in messages(valid, rng, max(1, count * tenths // 10))
    ]
    rng.shuffle(bodies)
    for i in range(0, len(bodies), AT_A_TIME):
        calls = [one(method, body, rng.choice(METADATA)) for method, body in bodies[i : i + AT_A_TIME]]
        await asyncio.gather(*calls, good_one())
    return found


def run(test: Any, seconds: float) -> None:
    asyncio.run(asyncio.wait_for(test, seconds))


SIZES = [pytest.param(320, 60, id="quick"), pytest.param(WHOLE, 1500, id="whole", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("count", "seconds"), SIZES)
def test_the_http_server_outlives_nonsense(caplog, count, seconds):
    async def test():
        async with unharmed(caplog) as s:
            found = await fuzz_http(s, random.Random(61), count)
            print(f"HTTP: {found.total()} requests: {dict(found.most_common())}")
            assert found.total() >= count
            assert found["200"] > count / 20
            assert found["400"] > count / 4

    run(test(), seconds)


@pytest.mark.parametrize(("count", "seconds"), SIZES)
def test_the_grpc_server_outlives_nonsense(caplog, count, seconds):
    async def test():
        async with unharmed(caplog) as s:
            found = await fuzz_grpc(s.grpc, random.Random(62), count)
            print(f"gRPC: {found.total()} requests: {dict(found.most_common())}")
            assert found.total() >= count
            assert found["INVALID_ARGUMENT"] > count / 8

    run(test(), seconds)
