"""What the engine says reaches every stream in order, however much it is, and without a long turn of the event loop."""

from __future__ import annotations

import asyncio
import collections
import itertools
from typing import Any

from jaxinfer.messages import StepOutputs
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.grpc_server.wire import RECEIVED_BYTES, size_of
from tests.fakes import FakeOptions
from tests.serving.harness import run
from tests.serving.http.harness import http_serving


def test_a_step_of_many_sequences_is_delivered_in_pieces_and_in_order() -> None:
    async def test() -> None:
        options = FakeOptions(max_num_seqs=300)
        async with http_serving(options) as s:
            link, turns = s.grpc.server.frontend.links[0], 0
            receive, taken = link._receive, list[tuple[int, int]]()

            def seen(message: Any) -> None:
                if isinstance(message, StepOutputs):
                    taken.append((turns, len(message.sequences)))
                receive(message)

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            link._receive = seen
            counting = asyncio.create_task(count())
            answers = await asyncio.gather(*(s.complete(prompt="hi", n=64, max_tokens=5) for _ in range(4)))
            counting.cancel()
            assert max(count for _, count in taken) == 32
            assert any(a[0] < b[0] for a, b in itertools.pairwise(taken) if a[1] == b[1] == 32)
            for answer in answers:
                assert [choice["text"] for choice in answer["choices"]] == [answers[0]["choices"][0]["text"]] * 64
                assert answer["usage"]["completion_tokens"] == 64 * 5

    run(test())


def test_the_news_before_the_end_of_an_engine_are_delivered() -> None:
    async def test() -> None:
        async with http_serving(FakeOptions(max_num_seqs=300, crash_at_step=6, step_seconds=0.05)) as s:
            streams = [s.events("/v1/completions", prompt="hi", n=64, max_tokens=9, temperature=0) for _ in range(3)]
            for events in await asyncio.gather(*streams):
                news = [event for event in events if event != "[DONE]"]
                assert "error" in news.pop()
                assert collections.Counter(event["choices"][0]["index"] for event in news).keys() == set(range(64))

    run(test())


def test_the_size_of_a_large_message_is_what_came() -> None:
    message = pb.TokenizeRequest(text="a" * 1000)
    assert size_of(message) == message.ByteSize()
    token = RECEIVED_BYTES.set(70_000)
    assert size_of(message) == 70_000
    RECEIVED_BYTES.reset(token)
