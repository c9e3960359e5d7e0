"""Answers are measured as they come: from a real server over both protocols, and from one that misbehaves."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest

from jaxinfer.messages import Submit
from serving.bench.grpc_client import GrpcClient
from serving.bench.http_client import CHAT, COMPLETIONS, HttpClient
from serving.bench.records import Answer, BenchRequest, Client, RequestFailed, ServerTrouble
from serving.bench.run import Run, drive
from tests.fakes import FakeOptions
from tests.serving.bench import openai_server
from tests.serving.bench.openai_server import FakeOpenAi, fake_openai
from tests.serving.harness import run, serving

GREEDY = {"temperature": 0.0}


def ids(first: int, length: int = 4, output_len: int = 5) -> BenchRequest:
    return BenchRequest(output_len, token_ids=(first, *range(1, length)))


async def at_once(client: Client, requests: Sequence[BenchRequest], **settings: object) -> Run:
    return await drive(client, requests, np.zeros(len(requests)), rate=math.inf, **settings)  # type: ignore[arg-type]


@asynccontextmanager
async def http_client(url: str, endpoint: str = COMPLETIONS, **body: object) -> AsyncIterator[HttpClient]:
    pytest.importorskip("aiohttp")
    client = HttpClient(url, endpoint, None, {**GREEDY, **body})
    try:
        assert "model" in await client.describe()
        yield client
    finally:
        await client.close()


def check_whole(answer: Answer, prompt: int, output: int) -> None:
    assert answer.error is None
    assert (answer.prompt_tokens, answer.output_tokens, answer.counted) == (prompt, output, True)
    assert answer.sent < answer.event_times[0] <= answer.event_times[-1] <= answer.ended
    assert answer.event_times == sorted(answer.event_times)


def test_our_server_over_grpc():
    async def test():
        async with serving(FakeOptions(step_seconds=0.01, max_num_seqs=8)) as s:
            client = GrpcClient(grpc.aio.insecure_channel(s.server.address), GREEDY, ignore_eos=True)
            described = await client.describe()
            assert (described["model"], described["vocab_size"]) == ("fake", 260)
            found = await at_once(client, [ids(7, 4, 6), BenchRequest(3, text="hi"), ids(8, 9, 1)])
            for answer, (prompt, output) in zip(found.answers, [(4, 6), (3, 3), (9, 1)], strict=True):
                check_whole(answer, prompt, output)
                assert sum(answer.event_tokens) == output
            assert len(found.answers[0].itl) == len(found.answers[0].event_times) - 1 >= 1
            submitted = [message.params for message in s.received(Submit)]
            assert all(params.ignore_eos and params.temperature == 0 for params in submitted)
            await client.close()

    run(test())


def test_our_server_over_http():
    async def test():
        async with serving(FakeOptions(step_seconds=0.01, max_num_seqs=8), http_port=0) as s:
            assert s.server.http_address is not None
            url = f"http://{s.server.http_address}"
            async with http_client(url, ignore_eos=True) as client:
                for answer in (await at_once(client, [ids(7, 4, 6)] * 3)).answers:
                    check_whole(answer, 4, 6)
                    assert 1 <= len(answer.event_times) <= 6  # what the client does not take at once is merged
            async with http_client(url, CHAT, ignore_eos=True) as client:
                asked = BenchRequest(6, messages=({"role": "user", "content": "hi"},), turns=("and then?",))
                first, second = (await at_once(client, [asked])).answers
                check_whole(first, first.prompt_tokens, 6)
                check_whole(second, second.prompt_tokens, 6)
                assert second.prompt_tokens > first.prompt_tokens + 6  # the answer and the next message are in it
                assert "".join(first.text) == "abcdef"
                assert second.sent >= first.ended

    run(test())


def test_requests_that_our_server_refuses():
    async def test():
        async with serving(FakeOptions()) as s:
            client = GrpcClient(grpc.aio.insecure_channel(s.server.address), GREEDY, ignore_eos=False)
            bad, good = (await at_once(client, [ids(70_000), ids(7)])).answers
            assert bad.error is not None
            assert bad.error.startswith("INVALID_ARGUMENT: ")
            assert bad.ended > bad.sent
            check_whole(good, 4, 5)
            await client.close()

    run(test())


async def _answers(fake: FakeOpenAi, *requests: BenchRequest, endpoint: str = COMPLETIONS) -> list[Answer]:
    async with http_client(fake.url, endpoint) as client:
        return (await at_once(client, requests, timeout=1.0)).answers


def test_a_server_that_misbehaves():
    kinds = ("GOOD", "BUSY", "BREAKS", "STALLS", "CUT", "NO_USAGE", "NOISE")

    async def test():
        async with fake_openai() as fake:
            asked = [ids(getattr(openai_server, kind)) for kind in kinds]
            found = dict(zip(kinds, await _answers(fake, *asked), strict=True))
            for kind in ("GOOD", "NOISE"):
                check_whole(found[kind], 4, 5)
                assert len(found[kind].event_times) == 5  # an event without text is a token, the end is none
                assert found[kind].e2el >= 5 * openai_server.STEP
                assert found[kind].cached_tokens == 1
            assert found["NO_USAGE"].error is None
            assert (found["NO_USAGE"].output_tokens, found["NO_USAGE"].counted) == (5, False)
            assert {kind: found[kind].error for kind in ("BUSY", "BREAKS", "STALLS", "CUT")} == {
                "BUSY": "HTTP 503: come back later",
                "BREAKS": "an error in the stream: the model fell over",
                "STALLS": "not finished within 1 s",
                "CUT": "the stream ended without [DONE]",
            }
            assert all(body["model"] == "first" and body["stream"] for body in fake.bodies)
            (chat,) = await _answers(fake, BenchRequest(4, messages=({"role": "user", "content": "x"},)), endpoint=CHAT)
            assert len(chat.event_times) == 4

    run(test())


def test_nobody_there():
    async def test():
        pytest.importorskip("aiohttp")
        client = HttpClient("http://127.0.0.1:1", COMPLETIONS, None, {})
        with pytest.raises(ServerTrouble, match=r"no server answers at http://127\.0\.0\.1:1"):
            await client.describe()
        await client.close()
        over_grpc = GrpcClient(grpc.aio.insecure_channel("127.0.0.1:1"), {}, ignore_eos=True)
        with pytest.raises(ServerTrouble, match="UNAVAILABLE"):
            await over_grpc.describe()
        await over_grpc.close()

    run(test())


class Slow:
    """Takes its time for every request; notes how many it had at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.open, self.most = seconds, 0, 0

    async def describe(self) -> dict[str, object]:
        return {}

    async def ask(self, request: BenchRequest, answer: Answer) -> None:
        loop = asyncio.get_running_loop()
        answer.sent = loop.time()
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(self.seconds)
        self.open -= 1
        if request.kind == "bad":
            raise RequestFailed("as it was told")
        answer.took_tokens(loop.time(), 1)
        answer.ended, answer.output_tokens = loop.time(), 1

    async def close(self) -> None: ...


def test_slow_answers_delay_no_arrival():
    async def test():
        slow = Slow(0.5)
        found = await drive(slow, [ids(1)] * 8, np.arange(8) * 0.01, rate=100.0)
        assert slow.most == 8
        offsets = [answer.due - found.began for answer in found.answers]
        assert offsets == pytest.approx(np.arange(8) * 0.01)
        assert found.answers[0].ended > found.answers[-1].sent

    run(test())


def test_a_limit_of_concurrency_delays_them_here():
    async def test():
        slow, done = Slow(0.03), []
        requests = [ids(1), BenchRequest(1, token_ids=(1,), kind="bad"), *[ids(1)] * 4]
        found = await drive(slow, requests, np.zeros(6), rate=math.inf, max_concurrency=2, done=done.append)
        assert slow.most == 2
        assert max(found.lateness) > 0.05
        assert found.limited
        assert done == [1, 2, 3, 4, 5, 6]
        assert [answer.error for answer in found.answers].count("as it was told") == 1

    run(test())
