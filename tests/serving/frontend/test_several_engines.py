"""One frontend over two scripted engines: who gets which request, and what is counted, aborted and ended together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from jaxinfer.messages import Abort, Drain, Submit
from serving.engine_process import EXIT_CRASHED, EXIT_OK, EXIT_REFUSED
from serving.errors import Refusal
from serving.frontend.frontend import Frontend
from serving.frontend.stream import GenerationStream
from serving.frontend.watchdog import watch
from serving.request import GenerationRequest, TokenPrompt
from serving.server import ServerConfig, model_context
from serving.text_worker import TextWorker
from tests.fakes import FakeOptions
from tests.serving.harness import ThreadEngine, run, tokenizer, until

SLOW = FakeOptions(step_seconds=0.01)


class Two:
    def __init__(self, frontend: Frontend, engines: list[ThreadEngine]) -> None:
        self.frontend, self.engines = frontend, engines

    async def submit(self, name: str = "", *, n: int = 1, max_tokens: int = 2000) -> GenerationStream:
        sampling = {"temperature": 0.0, "max_tokens": max_tokens, "n": n}
        request = GenerationRequest(TokenPrompt([1, 2, 3]), sampling, request_id=name)
        (stream,), _ = await self.frontend.submit(100, lambda _, prepare: (prepare([request]), None))
        return stream

    def names(self, kind: type) -> list[list[str]]:
        """For each engine the ids in the messages of a kind, without the serial number."""
        found: list[list[str]] = []
        for engine in self.engines:
            assert engine.engine is not None
            found.append([m.request_id.split("/")[0] for m in engine.engine.received if isinstance(m, kind)])
        return found

    @property
    def places(self) -> list[int]:
        return [link.open_sequences for link in self.frontend.links]


@contextlib.asynccontextmanager
async def two(*options: FakeOptions, max_waiting: int = 10) -> AsyncIterator[Two]:
    engines = [ThreadEngine(each.build) for each in options or (SLOW, SLOW)]
    worker = TextWorker(1 << 20)
    frontend = Frontend(max_waiting, worker)
    try:
        await frontend.connect(engines, lambda _: None)
        await asyncio.wait([frontend.ready, frontend.ended], return_when=asyncio.FIRST_COMPLETED)
        if frontend.ready.done():
            frontend.open(model_context(frontend.ready.result(), tokenizer(), ServerConfig()))
        yield Two(frontend, engines)
    finally:
        frontend.shutdown()
        await frontend.disconnect()
        worker.close()


async def everything(stream: GenerationStream) -> list[int]:
    found: list[int] = []
    while (deltas := await stream.read()) is not None:
        found += [token for delta in deltas for token in delta.token_ids]
    return found


def test_a_request_goes_where_the_fewest_sequences_are_open() -> None:
    async def test() -> None:
        async with two() as s:
            streams = [await s.submit("three", n=3)]
            for name in "abc":
                streams.append(await s.submit(name))
            assert s.places == [3, 3]
            streams.append(await s.submit("d"))  # of equals the first
            await until(lambda: sum(map(len, s.names(Submit))) == 5, "all have arrived")
            assert s.names(Submit) == [["three", "d"], ["a", "b", "c"]]
            s.frontend.close(streams[0])
            assert s.places == [1, 3]
            s.frontend.close(await s.submit("e"))
            await until(lambda: "e" in s.names(Submit)[0], "it goes where there is room again")
            for stream in streams:
                s.frontend.close(stream)
            assert s.places == [0, 0]
            assert (s.frontend.open_requests, s.frontend.open_sequences) == (0, 0)
            assert s.frontend.idle.is_set()

    run(test())


def test_both_answer_and_are_counted_together() -> None:
    async def test() -> None:
        async with two() as s:
            streams = [await s.submit(max_tokens=5 + i) for i in range(4)]
            assert s.places == [2, 2]
            answers = await asyncio.gather(*map(everything, streams))
            assert [len(answer) for answer in answers] == [5, 6, 7, 8]
            assert answers[0] == answers[1][:5] == answers[2][:5] == answers[3][:5]
            each = [link.streams for link in s.frontend.links]
            assert [len(streams) for streams in each] == [2, 2]
            assert s.frontend.stats.generated_tokens == 26
            assert s.frontend.recorder.metrics.generation_tokens == 26
            for stream in streams:
                s.frontend.close(stream)
            await until(lambda: not s.frontend.recorder._live, "both engines have ended theirs")
            assert s.frontend.recorder.metrics.finished["length",] == 4

    run(test())


def test_an_abort_reaches_the_engine_that_has_the_request() -> None:
    async def test() -> None:
        async with two() as s:
            streams = [await s.submit(name) for name in "ab"]
            assert s.frontend.abort("b")
            assert not s.frontend.abort("c")
            await everything(streams[1])
            assert s.names(Abort) == [[], ["b"]]
            with pytest.raises(Refusal, match="must differ"):  # wherever the other one is
                await s.submit("a")
            for stream in streams:
                s.frontend.close(stream)

    run(test())


def test_places_are_those_of_both() -> None:
    async def test() -> None:
        async with two(max_waiting=3) as s:
            assert s.frontend.max_sequences == 4 + 4 + 3
            streams = [await s.submit() for _ in range(11)]
            assert s.places == [6, 5]
            with pytest.raises(Refusal, match="holds 11 sequences and takes at most 11") as caught:
                await s.submit()
            assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (s.frontend.accepted, s.frontend.refused) == (11, 1)
            for stream in streams:
                s.frontend.close(stream)

    run(test())


@pytest.mark.parametrize("crashes", [False, True])
def test_one_that_has_drained_leaves_before_the_others(crashes: bool) -> None:
    async def test() -> None:
        busy = FakeOptions(step_seconds=0.01, crash_at_step=30 if crashes else None)
        async with two(busy, SLOW) as s:
            stream = await s.submit(max_tokens=40)
            s.frontend.drain()
            working, idle = s.frontend.links
            await until(idle.ended.done, "the end of the engine that has nothing to do")
            assert s.places == [1, 0]
            assert not s.frontend.failed
            assert s.frontend.state == "the server is shutting down"
            drained = asyncio.create_task(s.frontend.drained(20))
            await asyncio.sleep(0.02)
            assert not drained.done()
            if crashes:
                with pytest.raises(Refusal, match="as it was told to"):
                    await everything(stream)
            else:
                assert len(await everything(stream)) == 40
            s.frontend.close(stream)
            await drained
            assert working.drained.is_set() != crashes
            assert (await s.frontend.ended).code == (EXIT_CRASHED if crashes else EXIT_OK)

    run(test())


def test_all_are_drained() -> None:
    async def test() -> None:
        async with two() as s:
            streams = [await s.submit(max_tokens=20) for _ in range(2)]
            s.frontend.drain()
            with pytest.raises(Refusal, match="shutting down"):
                await s.submit()
            assert [len(await everything(stream)) for stream in streams] == [20, 20]
            for stream in streams:
                s.frontend.close(stream)
            await s.frontend.drained(20)
            assert all(link.drained.is_set() for link in s.frontend.links)
            for engine in s.engines:
                assert engine.engine is not None
                assert any(isinstance(message, Drain) for message in engine.engine.received)
            assert (await s.frontend.ended).code == EXIT_OK

    run(test())


def test_the_end_of_one_is_the_end_of_all() -> None:
    async def test() -> None:
        async with two(FakeOptions(step_seconds=0.01, crash_at_step=5), SLOW) as s:
            streams = [await s.submit(max_tokens=2000) for _ in range(2)]
            with pytest.raises(Refusal, match="the engine failed"):
                await everything(streams[0])
            assert (await s.frontend.ended).code != EXIT_OK
            assert s.frontend.state == "the engine has ended"
            with pytest.raises(Refusal, match="the engine has ended"):
                await s.submit()
            assert await streams[1].read()  # until the server ends it
            records = [stream.record for stream in streams]
            assert [record.failed for record in records] == [True, False]
            for stream in streams:
                s.frontend.close(stream)

    run(test())


def test_one_that_is_stuck_makes_the_server_unready_until_it_goes_on() -> None:
    async def test() -> None:
        async with two(FakeOptions(hang_at_step=3), SLOW) as s:
            streams = [await s.submit(max_tokens=400) for _ in range(2)]
            states: list[bool] = []

            async def tell() -> None:
                states.append(s.frontend.stuck)

            watches = [asyncio.create_task(watch(link, 0.3, 0.0, tell)) for link in s.frontend.links]
            await until(lambda: bool(states), "the watchdog barks")
            assert [link.stuck for link in s.frontend.links] == [True, False]
            assert s.frontend.state == "the engine has no news of its requests"
            s.engines[0].kill()  # ends the hang
            await until(lambda: not s.frontend.stuck, "it goes on")
            assert states == [True, False]
            for each in watches:
                each.cancel()
            for stream in streams:
                s.frontend.close(stream)

    run(test())


@pytest.mark.parametrize(("other", "named"), [({"vocab_size": 300}, "vocab_size"), ({"num_pages": 501}, "num_pages")])
def test_engines_that_differ_are_refused(other: dict[str, Any], named: str) -> None:
    async def test() -> None:
        async with two(FakeOptions(), FakeOptions(**other)) as s:
            end = await s.frontend.ended
            assert (end.code, f"differ in {named}: " in end.reason) == (EXIT_REFUSED, True)
            assert not s.frontend.ready.done()
            with pytest.raises(Refusal, match="still loading"):
                await s.submit()

    run(test())
