"""A server that answers while programs are still compiled: what it says of itself until they are."""

from __future__ import annotations

from protos.jaxinfer.v1 import inference_pb2 as pb
from tests.fakes import FakeOptions
from tests.serving.frontend.test_watchdog import truth
from tests.serving.harness import collect, greedy, run, until
from tests.serving.http.harness import http_serving
from tests.serving.observing.test_metrics import scrape


def test_a_warming_server_serves_and_says_so_everywhere():
    async def test():
        async with http_serving(FakeOptions(warm_at_step=6)) as s:
            stub = s.grpc.stub
            assert await truth(s) == (True, "warming")
            assert (await stub.GetStats(pb.GetStatsRequest())).warming
            assert (await scrape(s))("engine_warming") == 1
            assert len((await stub.GetModelInfo(pb.GetModelInfoRequest())).executables) == 2
            assert len((await collect(stub.Generate(greedy(max_tokens=3)))).token_ids()) == 3
            assert await truth(s) == (True, "warming")
            assert s.grpc.record.warmed_with == []
            await collect(stub.Generate(greedy(max_tokens=5)))  # the sixth step is among its own
            await until(lambda: bool(s.grpc.record.warmed_with), "the observer is told")
            assert await truth(s) == (True, "ready")
            assert not (await stub.GetStats(pb.GetStatsRequest())).warming
            assert (await scrape(s))("engine_warming") == 0
            info = await stub.GetModelInfo(pb.GetModelInfoRequest())
            assert [e.name for e in info.executables] == ["T8 S8", "T64 S8", "T256 S8"]
            assert list(info.notes) == ["max_model_len is 4096, the model's own"]  # they are kept

    run(test())


def test_a_server_may_stop_before_it_is_warm():
    async def test():
        async with http_serving(FakeOptions(warm_at_step=10**9)) as s:
            await collect(s.grpc.stub.Generate(greedy(max_tokens=2)))
        assert s.grpc.record.warmed_with == []

    run(test())
