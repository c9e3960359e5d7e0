"""Which services a server has, what it says of them while it loads and ends, and what is remembered of requests."""

from __future__ import annotations

import json
import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from smg_grpc_proto import vllm_engine_pb2 as vllm_pb
from smg_grpc_proto import vllm_engine_pb2_grpc as vllm_grpc

from protos.open_inference import grpc_service_pb2 as infer_pb
from protos.open_inference import grpc_service_pb2_grpc as infer_grpc
from serving.commands.serve import make_parser
from serving.gateways.services import GatewayConfig
from serving.grpc_server.names import SERVICES
from serving.observing.setup import ObservingConfig
from tests.fakes import FakeOptions
from tests.serving.gateways.harness import BOTH, generate, infer
from tests.serving.harness import run, serving, status, until

NAMES = tuple(SERVICES)


async def services(s) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(s.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    return {service.name for service in (await call.read()).list_services_response.service}


def test_the_names_are_those_of_the_protocols():
    found = {
        vllm_pb.DESCRIPTOR.services_by_name["VllmEngine"].full_name,
        infer_pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
    }
    assert set(SERVICES.values()) == found


@pytest.mark.parametrize("names", [(), ("vllm",), ("kserve",), NAMES])
def test_those_that_were_asked_for(names):
    async def test():
        async with serving(gateways=GatewayConfig(names)) as s:
            wanted = {service for name, service in SERVICES.items() if name in names}
            assert await services(s) & set(SERVICES.values()) == wanted
            health = health_pb2_grpc.HealthStub(s.channel)
            for service in wanted:
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            for name, call in (
                ("vllm", vllm_grpc.VllmEngineStub(s.channel).HealthCheck(vllm_pb.HealthCheckRequest())),
                ("kserve", infer_grpc.GRPCInferenceServiceStub(s.channel).ServerLive(infer_pb.ServerLiveRequest())),
            ):
                if name in names:
                    await call
                else:
                    assert (await status(call)).code() == grpc.StatusCode.UNIMPLEMENTED

    run(test())


def test_loading_and_draining():
    async def test():
        async with serving(FakeOptions(load_seconds=0.2, step_seconds=0.005), ready=False, gateways=BOTH) as s:
            vllm, kserve = vllm_grpc.VllmEngineStub(s.channel), infer_grpc.GRPCInferenceServiceStub(s.channel)

            async def states() -> tuple[bool, str, bool, bool, bool]:
                check = await vllm.HealthCheck(vllm_pb.HealthCheckRequest())
                live = await kserve.ServerLive(infer_pb.ServerLiveRequest())
                ready = await kserve.ServerReady(infer_pb.ServerReadyRequest())
                model = await kserve.ModelReady(infer_pb.ModelReadyRequest(name="fake"))
                return check.healthy, check.message, live.live, ready.ready, model.ready

            assert await states() == (False, "the model is still loading", True, False, False)
            for call in (
                vllm.GetModelInfo(vllm_pb.GetModelInfoRequest()),
                vllm.GetLoads(vllm_pb.GetLoadsRequest()),
                kserve.ModelMetadata(infer_pb.ModelMetadataRequest(name="fake")),
                kserve.RepositoryIndex(infer_pb.RepositoryIndexRequest()),
            ):
                error = await status(call)
                assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the model is still loading")
            await s.server.wait_ready()
            assert await states() == (True, "ready", True, True, True)
            running = vllm.Generate(generate(max_tokens=4000))
            await running.read()
            s.server.frontend.drain()
            assert await states() == (False, "the server is shutting down", True, False, False)
            (answer,) = [m async for m in kserve.ModelStreamInfer(iter([infer()]))]
            assert "shutting down" in answer.error_message
            index = await kserve.RepositoryIndex(infer_pb.RepositoryIndexRequest())
            assert (index.models[0].state, index.models[0].reason) == ("UNAVAILABLE", "the server is shutting down")
            assert not (await kserve.RepositoryIndex(infer_pb.RepositoryIndexRequest(ready=True))).models
            running.cancel()

    run(test())


def test_an_engine_that_fails_ends_their_calls():
    async def test():
        async with serving(FakeOptions(crash_at_step=5, step_seconds=0.05), gateways=BOTH) as s:
            kserve = infer_grpc.GRPCInferenceServiceStub(s.channel)
            calls = [
                vllm_grpc.VllmEngineStub(s.channel).Generate(generate(max_tokens=100)),
                vllm_grpc.VllmEngineStub(s.channel).Generate(generate(max_tokens=100, stream=False)),
                kserve.ModelInfer(infer(sampling={"max_tokens": 100})),  # no half an answer
            ]
            for call in calls:
                error = await status(call)
                assert (error.code(), "told to" in error.details()) == (grpc.StatusCode.INTERNAL, True)
            assert not (await kserve.ServerLive(infer_pb.ServerLiveRequest())).live

    run(test())


def test_their_requests_are_remembered_like_any_other(tmp_path):
    async def test():
        ledger = tmp_path / "ledger"
        async with serving(gateways=BOTH, observing=ObservingConfig(ledger=ledger)) as s:
            request = generate()
            request.request_id = "mine"
            trace = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            async for _ in vllm_grpc.VllmEngineStub(s.channel).Generate(request, metadata=[trace]):
                pass
            kserve = infer_grpc.GRPCInferenceServiceStub(s.channel)
            await kserve.ModelInfer(infer(id="theirs"))
            async for _ in kserve.ModelStreamInfer(iter([infer(id="streamed", stream=True)])):
                pass
            await status(kserve.ModelInfer(infer(model_name="x")))
            client = s.server.frontend
            await until(lambda: not client.open_requests, "the end of all")
            assert client.recorder.explain("mine")["door"] == "vllm"
            assert sum(client.recorder.metrics.finished.values()) == 3
            assert client.recorder.metrics.refused["kserve", "NOT_FOUND"] == 1
            origins = [record.origin.endpoint for record in client.recorder._recent.values()]
            assert origins == ["Generate", "ModelInfer", "ModelStreamInfer"]
            (mine,) = [r for r in client.recorder._recent.values() if r.request_id == "mine"]
            assert mine.origin.trace == (trace,)
        lines = [json.loads(line) for line in ledger.read_text().splitlines()]
        assert [line["door"] for line in lines] == ["vllm", "kserve", "kserve"]
        assert [line["request_id"].split("-")[0] for line in lines] == ["mine", "theirs", "streamed"]
        assert {(line["prompt_tokens"], line["completion_tokens"]) for line in lines} == {(3, 8)}

    run(test())


def test_the_option():
    parse = make_parser("jaxinfer").parse_args
    assert parse([]).gateways == NAMES
    assert parse(["--gateways", "none"]).gateways == ()
    assert parse(["--gateways", "kserve"]).gateways == ("kserve",)
    with pytest.raises(SystemExit):
        parse(["--gateways", "triton"])


def test_what_is_off_is_not_imported():
    program = (
        "import sys, serving.commands.serve; assert not {'smg_grpc_proto', 'protos.open_inference'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
