"""The server's life on the fake engine in a thread: loading, serving, draining, and the engine's failures."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from jaxinfer.messages import Abort, Drain, Submit
from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from serving.engine_process import EXIT_CRASHED, EXIT_REFUSED
from serving.server import SERVICE, ServerError
from tests.fakes import FakeOptions
from tests.serving.harness import Running, collect, greedy, make_server, run, serving, status, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(s: Running, service: str = SERVICE) -> int:
    stub = health_pb2_grpc.HealthStub(s.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


def test_not_serving_until_ready():
    async def test():
        async with serving(FakeOptions(load_seconds=0.2), ready=False) as s:
            assert await health(s) == await health(s, "") == NOT_SERVING
            error = await status(s.stub.Generate(greedy()))
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert "still loading" in error.details()
            assert (await status(s.stub.GetModelInfo(pb.GetModelInfoRequest()))).code() == grpc.StatusCode.UNAVAILABLE
            assert (await s.stub.GetStats(pb.GetStatsRequest())).steps == 0
            await s.server.wait_ready()
            assert await health(s) == await health(s, "") == SERVING
            assert (await collect(s.stub.Generate(greedy()))).text() == "abcdefgh"
            assert [(p.stage, p.done, p.total) for p in s.record.progressed] == [
                *(("load", i, 3) for i in (1, 2, 3)),
                *(("warmup", i, 2) for i in (1, 2)),
            ]
            assert s.record.addresses == [s.server.address]

    run(test())


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (FakeOptions(refuse="config.json: unknown architecture 'X'"), EXIT_REFUSED, "unknown architecture 'X'"),
        (FakeOptions(break_load="a bug"), EXIT_CRASHED, "RuntimeError: a bug"),
    ],
)
def test_an_engine_that_cannot_load_stops_the_start(options, code, message):
    async def test():
        with pytest.raises(ServerError, match=message) as raised:
            async with serving(options):
                pass
        assert raised.value.code == code
        assert bool(raised.value.traceback) == (code == EXIT_CRASHED)  # a traceback is for bugs

    run(test())


def test_a_taken_port_is_named():
    async def test():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            server, links, _ = make_server(FakeOptions(), port=taken.getsockname()[1])
            with pytest.raises(ServerError, match=r"cannot listen on 127.0.0.1:\d+: Address already in use"):
                await server.start()
            assert links == []  # no model was loaded for nothing

    run(test())


def test_two_servers_do_not_share_a_port():
    async def test():
        async with serving() as s:
            port = int(s.server.address.rpartition(":")[2])
            server, _, _ = make_server(FakeOptions(), port=port)
            with pytest.raises(ServerError, match="cannot listen"):
                await server.start()

    run(test())


def test_drain_finishes_what_runs_and_refuses_what_comes():
    async def test():
        async with serving(FakeOptions(step_seconds=0.01)) as s:
            running = asyncio.create_task(collect(s.stub.Generate(greedy(max_tokens=40))))
            await until(lambda: bool(s.received(Submit)), "the request is in")
            drain = asyncio.create_task(s.server.drain())
            await until(lambda: bool(s.received(Drain)), "the engine hears of it")
            error = await status(s.stub.Generate(greedy()))
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert "shutting down" in error.details()
            assert await health(s) == await health(s, "") == NOT_SERVING
            assert (await s.stub.GetStats(pb.GetStatsRequest())).draining
            assert len((await running).token_ids()) == 40
            await drain
            assert s.record.drains == [1]
            assert s.server.frontend.links[0].drained.is_set()
            assert not s.server._failed

    run(test())


def test_drain_aborts_after_the_grace_period():
    async def test():
        async with serving(FakeOptions(step_seconds=0.01), grace_seconds=0.2) as s:
            running = asyncio.create_task(status(s.stub.Generate(greedy(max_tokens=4000))))
            await until(lambda: bool(s.received(Submit)), "the request is in")
            await s.server.drain()
            error = await running
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert "grace period is over" in error.details()
            await until(lambda: bool(s.received(Abort)), "the engine need not finish it")
            assert not s.server._failed

    run(test())


def test_a_second_signal_ends_the_grace_period():
    async def test():
        async with serving(FakeOptions(step_seconds=0.01), grace_seconds=1000) as s:
            running = asyncio.create_task(status(s.stub.Generate(greedy(max_tokens=4000))))
            await until(lambda: bool(s.received(Submit)), "the request is in")
            drain = asyncio.create_task(s.server.drain())
            await until(lambda: s.record.drains == [1], "the drain begins")
            s.server._stop_requests.put_nowait(None)
            await drain
            assert (await running).code() == grpc.StatusCode.UNAVAILABLE

    run(test())


@pytest.mark.longer
def test_drain_of_a_hung_engine_ends_too():
    async def test():
        async with serving(FakeOptions(hang_at_step=2), grace_seconds=0.2) as s:
            running = asyncio.create_task(status(s.stub.Generate(greedy(max_tokens=100))))
            await until(lambda: bool(s.received(Submit)), "the request is in")
            await s.server.drain()
            assert (await running).code() == grpc.StatusCode.UNAVAILABLE

    run(test())


def test_an_engine_crash_ends_every_stream_with_its_reason():
    async def test():
        async with serving(FakeOptions(step_seconds=0.01, crash_at_step=20)) as s:
            errors = await asyncio.gather(*(status(s.stub.Generate(greedy(max_tokens=100))) for _ in range(6)))
            assert {error.code() for error in errors} == {grpc.StatusCode.INTERNAL}
            assert all("the fake engine crashes, as it was told to" in error.details() for error in errors)
            end = await s.server.frontend.ended
            assert end.code == EXIT_CRASHED
            assert "Traceback" in end.traceback
            error = await status(s.stub.Generate(greedy()))
            assert error.code() == grpc.StatusCode.UNAVAILABLE

    run(test())


def test_a_crash_while_draining_is_a_failure():
    async def test():
        async with serving(FakeOptions(step_seconds=0.01, crash_at_step=20)) as s:
            running = asyncio.create_task(status(s.stub.Generate(greedy(max_tokens=100))))
            await until(lambda: bool(s.received(Submit)), "the request is in")
            await s.server.drain()
            assert (await running).code() == grpc.StatusCode.INTERNAL
            assert s.server._failed

    run(test())


@pytest.mark.parametrize(
    ("options", "code"),
    [(FakeOptions(step_seconds=0.01), 0), (FakeOptions(step_seconds=0.01, crash_at_step=30), EXIT_CRASHED)],
)
def test_exit_code_of_a_whole_life_with_a_drain(options, code):
    """An engine that fails while it finishes the last requests is a failure, drain or not."""

    async def test():
        server, links, record = make_server(options)
        life = asyncio.create_task(server.run())
        await until(lambda: record.addresses != [], "the server is ready")
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = asyncio.create_task(_outcome(pb_grpc.InferenceStub(channel).Generate(greedy(max_tokens=60))))
            await until(lambda: server.frontend.open_requests == 1, "the request is in")
            server._stop_requests.put_nowait(None)
            assert await life == code
            assert await call == (grpc.StatusCode.OK if code == 0 else grpc.StatusCode.INTERNAL)
        assert len(record.ends) == code
        assert await links[0].wait(5) == code

    run(test())


async def _outcome(call: Any) -> grpc.StatusCode:
    try:
        await collect(call)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return await call.code()


def test_a_hung_engine_counts_as_failed_after_a_while():
    async def test():
        async with serving(FakeOptions(hang_at_step=3), stall_seconds=0.3) as s:
            error = await status(s.stub.Generate(greedy(max_tokens=100)))
            assert error.code() == grpc.StatusCode.INTERNAL
            assert "said nothing for 0.3 s" in error.details()

    run(test())


def test_an_idle_engine_is_not_taken_for_a_hung_one():
    async def test():
        async with serving(stall_seconds=0.1) as s:
            await asyncio.sleep(0.4)
            assert (await collect(s.stub.Generate(greedy()))).text() == "abcdefgh"

    run(test())
