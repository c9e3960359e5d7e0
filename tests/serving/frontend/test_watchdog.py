"""A stuck engine: not ready, ready again when it goes on, and the server's end when it does not."""

from __future__ import annotations

import io
import json
import os
import signal
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.observing.logs import logging_to
from tests.fakes import FakeOptions, write_model
from tests.serving.harness import collect, greedy, run, until
from tests.serving.http.harness import HttpServer, http_serving
from tests.serving.observing.test_metrics import scrape
from tests.serving.test_processes import Stream, server

CANARY = "kanarienvogel"


async def truth(s: HttpServer) -> tuple[bool, str]:
    """Whether the server is ready; all who say so must agree."""
    stub = health_pb2_grpc.HealthStub(s.grpc.channel)
    found = [
        (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in ("", "jaxinfer.v1.Inference")
    ]
    ready = await s.http.get("/ready")
    answers = {status == health_pb2.HealthCheckResponse.SERVING for status in found} | {ready.status_code == 200}
    assert len(answers) == 1, (found, ready.status_code)
    state = ready.json()["status"]
    health = await s.http.get("/health")
    assert health.json()["status"] == state
    assert (health.status_code == 200) == (state in ("ready", "warming", "stuck", "draining"))
    return answers.pop(), state


def test_all_servers_tell_the_same_truth_from_start_to_end():
    async def test():
        options = FakeOptions(load_seconds=0.2, hang_at_step=3)
        async with http_serving(options, ready=False, unready_seconds=0.1, stall_seconds=60) as s:
            assert await truth(s) == (False, "loading")
            await s.grpc.server.wait_ready()
            assert await truth(s) == (True, "ready")
            call = s.grpc.stub.Generate(greedy(CANARY, max_tokens=5))
            await until(lambda: s.grpc.server.frontend.stuck, "the watchdog barks")
            assert await truth(s) == (False, "stuck")
            assert (await scrape(s))("engine_stuck") == 1
            s.grpc.engine.released.set()
            assert len((await collect(call)).token_ids()) == 5  # nothing was lost
            await until(lambda: not s.grpc.server.frontend.stuck, "it calms down")
            assert await truth(s) == (True, "ready")
            assert (await scrape(s))("engine_stuck") == 0
            call = s.grpc.stub.Generate(greedy(max_tokens=4000))
            await call.read()
            await s.grpc.server._health.enter_graceful_shutdown()
            s.grpc.server.frontend.drain()
            assert await truth(s) == (False, "draining")
            call.cancel()

    stream = io.StringIO()
    with logging_to(stream, form="json"):
        run(test())
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    (barked,) = [e for e in events if "silent for" in e["message"]]
    (row,) = barked["last_plan"]["rows"]
    (request,) = barked["open_requests"]
    assert row["request_id"] == request["engine_id"]
    assert request["prompt_tokens"] == 1 + len(CANARY)
    assert request["completion_tokens"] == 2
    assert barked["stats"]["running"] == 1
    assert CANARY not in stream.getvalue()


def test_an_idle_engine_is_never_stuck():
    async def test():
        async with http_serving(unready_seconds=0.05, stall_seconds=0.1) as s:
            begin = time.monotonic()
            while time.monotonic() - begin < 0.3:
                assert await truth(s) == (True, "ready")

    run(test())


def test_a_stuck_step_ends_the_server_and_leaves_its_plan(tmp_path):
    """The engine's thread waits for ever, as for a device that never answers."""
    model = write_model(tmp_path / "tiny")
    limits = ("--unready-seconds", "0.2", "--stall-seconds", "0.6")
    with server(model, *limits, hang_at_step=3) as s:
        error = Stream(s.address(), greedy(CANARY, max_tokens=50)).ended().error
        assert error is not None
        assert error.code() == grpc.StatusCode.INTERNAL
        assert s.exit_code() == 1
    events = [json.loads(line) for line in s.lines if line.startswith("{")]
    barked = [e for e in events if "silent for" in e["message"]]
    assert len(barked) == 2  # at each limit
    for event in barked:
        (row,) = event["last_plan"]["rows"]
        assert row["request_id"] == event["open_requests"][0]["engine_id"]
    (end,) = [e for e in events if e["message"] == "request"]
    assert end["finish_reason"] == "error"
    assert s.lines[-1].startswith("jaxinfer serve: error: the engine failed: it said nothing for 0.6 s")
    assert CANARY not in s.output


@pytest.mark.longer
def test_a_process_that_cannot_answer_is_ended_all_the_same(tmp_path):
    model = write_model(tmp_path / "tiny")
    with server(model, "--unready-seconds", "0", "--stall-seconds", "0.3", step_seconds=0.01) as s:
        stream = Stream(s.address(), greedy(max_tokens=4000)).begun()
        os.kill(s.engine_pid(), signal.SIGSTOP)
        assert stream.ended().error is not None
        assert s.exit_code() == 1
    (barked,) = [json.loads(line) for line in s.lines if "silent for" in line]
    assert barked["last_plan"] == "the engine does not answer"
