"""How requests end other than by themselves: cancelled, out of time, aborted, refused for room, read too slowly."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest

from jaxinfer.messages import Abort, Submit
from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from serving.errors import DEFAULT_RETRY_MS, RETRY_METADATA
from serving.frontend.admission import MIN_RETRY_MS
from tests.fakes import FakeOptions
from tests.serving.harness import Running, collect, greedy, run, serving, status, until

SLOW = FakeOptions(step_seconds=0.01)


async def gone(s: Running, count: int = 1) -> None:
    """The engine was told to abort `count` requests, holds no page of them, and the server holds nothing either."""
    await until(lambda: len(s.received(Abort)) >= count, "the abort reaches the engine")
    engine, client = s.engine, s.server.frontend
    await until(lambda: not engine._running and not engine._waiting, "the sequences leave the engine")
    await until(lambda: client.stats.steps == engine._stats.steps, "the engine's last word arrives")
    stats = await s.stub.GetStats(pb.GetStatsRequest())
    assert (stats.running, stats.waiting, stats.open_requests) == (0, 0, 0)
    assert stats.free_pages == stats.total_pages > 0
    assert s.server.frontend._admission._streams == {}
    assert s.server.frontend.open_sequences == 0


@pytest.fixture(autouse=True)
def _no_errors_logged(caplog):
    """An ordinary end is no error of the server's."""
    with caplog.at_level(logging.WARNING):
        yield
    assert [record.getMessage() for record in caplog.records] == []


def test_cancel():
    async def test():
        async with serving(SLOW) as s:
            call = s.stub.Generate(greedy(max_tokens=4000))
            while not (await call.read()).HasField("delta"):
                pass
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await collect(call)
            assert await call.code() == grpc.StatusCode.CANCELLED
            await gone(s)
            steps = s.engine._stats.steps
            await asyncio.sleep(0.1)
            assert s.engine._stats.steps == steps  # nothing is computed for nobody

    run(test())


def test_cancel_while_waiting_for_a_place():
    async def test():
        async with serving(FakeOptions(step_seconds=0.01, max_num_seqs=1)) as s:
            first = asyncio.create_task(collect(s.stub.Generate(greedy(max_tokens=30))))
            await until(lambda: len(s.received(Submit)) == 1, "the first request arrives")
            second = s.stub.Generate(greedy(max_tokens=4000))
            await until(lambda: len(s.received(Submit)) == 2, "the second request arrives")
            second.cancel()
            await until(lambda: bool(s.received(Abort)), "the abort arrives")
            assert s.received(Abort)[0].request_id == s.received(Submit)[1].request_id
            assert len((await first).token_ids()) == 30  # and the first one never notices
            await gone(s)

    run(test())


def test_disconnect():
    async def test():
        async with serving(SLOW) as s:
            channel = grpc.aio.insecure_channel(s.server.address)
            calls = [pb_grpc.InferenceStub(channel).Generate(greedy(max_tokens=4000)) for _ in range(3)]
            for call in calls:
                await call.read()
            await channel.close()
            await gone(s, 3)

    run(test())


def test_deadline():
    async def test():
        async with serving(SLOW) as s:
            error = await status(s.stub.Generate(greedy(max_tokens=4000), timeout=0.3))
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await gone(s)

    run(test())


def test_deadline_while_the_engine_hangs():
    """A client's deadline does not depend on the engine."""

    async def test():
        async with serving(FakeOptions(hang_at_step=3)) as s:
            error = await status(s.stub.Generate(greedy(max_tokens=100), timeout=0.3))
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: s.server.frontend.open_requests == 0, "the server gives the request up")
            s.link.kill()
            await gone(s)

    run(test())


def test_abort_call():
    async def test():
        async with serving(SLOW) as s:
            request = greedy(max_tokens=4000, n=2)
            request.sampling.temperature = 1.0
            request.request_id = "mine"
            stream = asyncio.create_task(collect(s.stub.Generate(request)))
            await until(lambda: s.server.frontend.stats.running == 2, "both sequences run")
            assert (await s.stub.Abort(pb.AbortRequest(request_id="mine"))).found
            result = await stream
            assert [result.end(i).finish_reason for i in range(2)] == [pb.FINISH_REASON_ABORT] * 2
            assert result.usage.completion_tokens == len(result.token_ids(0)) + len(result.token_ids(1))
            assert not (await s.stub.Abort(pb.AbortRequest(request_id="mine"))).found
            error = await status(s.stub.Abort(pb.AbortRequest()))
            assert (error.code(), "request_id is ''" in error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, True)
            await gone(s)

    run(test())


def test_duplicate_id_while_alive_only():
    async def test():
        async with serving(SLOW) as s:
            request = greedy(max_tokens=60)
            request.request_id = "mine"
            first = asyncio.create_task(collect(s.stub.Generate(request)))
            await until(lambda: s.server.frontend.open_requests == 1, "the first request is in")
            error = await status(s.stub.Generate(request))
            assert error.code() == grpc.StatusCode.ALREADY_EXISTS
            assert "request_id is 'mine'" in error.details()
            assert (await first).usage.completion_tokens == 60  # untouched by its double
            assert (await collect(s.stub.Generate(request))).usage.completion_tokens == 60

    run(test())


def test_an_id_can_be_used_again_while_news_of_its_former_owner_are_under_way():
    """The former request's tokens must not reach the new one."""

    async def test():
        async with serving(FakeOptions(step_seconds=0.005)) as s:
            for _ in range(5):
                request = pb.GenerateRequest(request_id="mine", text="x")
                request.sampling.MergeFrom(pb.SamplingParams(seed=9, max_tokens=4000))
                call = s.stub.Generate(request)
                for _ in range(3):
                    await call.read()
                call.cancel()
                await until(lambda: s.server.frontend.open_requests == 0, "the server has seen the cancellation")
                again = greedy(max_tokens=5)
                again.request_id = "mine"
                assert (await collect(s.stub.Generate(again))).text() == "abcde"

    run(test())


def test_overload_says_when_to_come_back():
    async def test():
        async with serving(FakeOptions(step_seconds=0.01, max_num_seqs=2), max_waiting=1) as s:
            calls = [asyncio.create_task(collect(s.stub.Generate(greedy(max_tokens=60)))) for _ in range(3)]
            await until(lambda: s.server.frontend.open_requests == 3, "three requests are in: two run, one waits")
            error = await status(s.stub.Generate(greedy()))
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "holds 3 sequences and takes at most 3" in error.details()
            retry = dict(error.trailing_metadata())[RETRY_METADATA]
            assert int(retry) == DEFAULT_RETRY_MS  # nothing has ended yet, so there is nothing to judge by
            assert f"{retry} ms" in error.details()
            assert [(await call).usage.completion_tokens for call in calls] == [60] * 3
            assert MIN_RETRY_MS <= s.server.frontend._admission._retry_ms(1) < DEFAULT_RETRY_MS  # now there is
            assert (await collect(s.stub.Generate(greedy()))).text() == "abcdefgh"

    run(test())


def test_sequences_are_counted_not_requests():
    async def test():
        async with serving(FakeOptions(step_seconds=0.01, max_num_seqs=2), max_waiting=1) as s:
            sampling = pb.SamplingParams(n=2, seed=1, max_tokens=60)
            first = asyncio.create_task(collect(s.stub.Generate(pb.GenerateRequest(text="x", sampling=sampling))))
            await until(lambda: s.server.frontend.open_requests == 1, "the first request is in")
            error = await status(s.stub.Generate(pb.GenerateRequest(text="x", sampling=sampling)))
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            await first

    run(test())


def test_a_slow_reader_slows_nobody_and_gets_everything():
    """While a client reads nothing, the engine goes on, and what is pending is one merged piece a sequence."""
    tokens = 6000

    async def test():
        async with serving(FakeOptions(max_model_len=8192)) as s:
            # Small windows: what the transport itself takes in is not what this is about.
            options = [("grpc.http2.lookahead_bytes", 16_384), ("grpc.http2.bdp_probe", 0)]
            async with grpc.aio.insecure_channel(s.server.address, options=options) as channel:
                stub = pb_grpc.InferenceStub(channel)
                call = stub.Generate(greedy(max_tokens=tokens, logprobs=20))
                await call.read()
                (stream,) = s.server.frontend.streams
                await until(lambda: stream.finished, "the engine finishes regardless")
                assert (await collect(s.stub.Generate(greedy()))).text() == "abcdefgh"  # others are served meanwhile
                await asyncio.sleep(0.1)
                assert s.server.frontend.open_requests == 1  # the writer waits for the reader
                assert len(stream._pending) <= 1
                result = await collect(call)
                assert len(result.deltas) < tokens / 4
                assert result.token_ids() == list(("abcdefghijklmnopqrstuvwxyz " * 300).encode()[:tokens])
                assert result.text() == bytes(result.token_ids()).decode()
                assert sum(len(delta.logprobs) for delta in result.deltas) == tokens
            await until(lambda: s.server.frontend.open_requests == 0, "the call is over")

    run(test())


def test_a_slow_reader_does_not_delay_its_stop_string():
    async def test():
        async with serving(FakeOptions(script="abcd " * 800 + "stop", max_model_len=60_000, num_pages=4000)) as s:
            options = [("grpc.http2.lookahead_bytes", 16_384), ("grpc.http2.bdp_probe", 0)]
            async with grpc.aio.insecure_channel(s.server.address, options=options) as channel:
                call = pb_grpc.InferenceStub(channel).Generate(greedy(max_tokens=50_000, stop=["stop"], logprobs=20))
                await call.read()
                await until(lambda: bool(s.received(Abort)), "the engine is told without the reader's help")
                assert (await collect(call)).end().stop_string == "stop"

    run(test())


@pytest.mark.parametrize("timeout", [None, 0.5])
def test_cancel_or_deadline_while_the_writer_waits_for_the_reader(timeout):
    async def test():
        async with serving(FakeOptions(max_model_len=100_000, num_pages=7000)) as s:
            options = [("grpc.http2.lookahead_bytes", 16_384), ("grpc.http2.bdp_probe", 0)]
            async with grpc.aio.insecure_channel(s.server.address, options=options) as channel:
                stub = pb_grpc.InferenceStub(channel)
                call = stub.Generate(greedy(max_tokens=90_000, logprobs=20), timeout=timeout)
                await call.read()
                (stream,) = s.server.frontend.streams
                await until(lambda: len(stream._pending) == 1, "the writer is behind")
                if timeout is None:
                    call.cancel()
                await until(lambda: s.server.frontend.open_requests == 0, "the server sees the end of the call")
                await gone(s)

    run(test())


def test_a_text_that_cannot_be_decoded_ends_its_own_stream_only(caplog):
    async def test():
        async with serving(SLOW) as s:
            bad = asyncio.create_task(status(s.stub.Generate(greedy(max_tokens=4000))))
            await until(lambda: s.server.frontend.open_requests == 1, "the request is in")
            (stream,) = s.server.frontend.streams

            def fail(_):
                raise ZeroDivisionError("a bug")

            stream.push = fail
            good = await collect(s.stub.Generate(greedy()))
            error = await bad
            assert error.code() == grpc.StatusCode.INTERNAL
            assert "a bug" in error.details()
            assert good.text() == "abcdefgh"
            await gone(s)

    run(test())
    assert "cannot turn the engine's tokens into text" in caplog.text
    caplog.clear()
