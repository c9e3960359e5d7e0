"""The gateways' services behind API keys: each method has its role, requests belong to their tenant."""

from __future__ import annotations

from pathlib import Path

import grpc
from smg_grpc_proto import vllm_engine_pb2 as vllm_pb
from smg_grpc_proto import vllm_engine_pb2_grpc as vllm_grpc

from jaxinfer.messages import Abort, Submit
from protos.open_inference import grpc_service_pb2 as infer_pb
from protos.open_inference import grpc_service_pb2_grpc as infer_grpc
from serving.grpc_server.gate import needed
from tests.fakes import FakeOptions
from tests.serving.access.harness import Keys, bearer, guarded
from tests.serving.gateways.harness import BOTH, generate, infer
from tests.serving.harness import run, status, until

REFUSED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
# Calls that this server answers with UNIMPLEMENTED fall under the rule for what is not known.
UNSERVED = {"Embed", "FlushCache", "StartProfile", "StopProfile", "SubscribeKvEvents"}


def test_every_served_method_has_a_rule() -> None:
    for file, service in ((vllm_pb, "VllmEngine"), (infer_pb, "GRPCInferenceService")):
        descriptor = file.DESCRIPTOR.services_by_name[service]
        for method in descriptor.methods:
            rule, _ = needed(f"/{descriptor.full_name}/{method.name}")
            assert (rule == "other") == (method.name in UNSERVED), method.name


def test_roles_and_tenants(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    acme, other = keys.new("acme"), keys.new("other")
    admin = keys.new("ops", roles=["admin"])

    async def code(call) -> grpc.StatusCode:
        try:
            if hasattr(call, "read"):
                while await call.read() is not grpc.aio.EOF:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def test() -> None:
        options = FakeOptions(step_seconds=0.002)
        async with (
            guarded(keys, options=options, gateways=BOTH, name="fake") as s,
            grpc.aio.insecure_channel(s.server.address) as channel,
        ):
            vllm, kserve = vllm_grpc.VllmEngineStub(channel), infer_grpc.GRPCInferenceServiceStub(channel)
            calls = {  # -> whether no key, infer and admin get in
                "open": (lambda **o: vllm.HealthCheck(vllm_pb.HealthCheckRequest(), **o), (True, True, True)),
                "live": (lambda **o: kserve.ServerLive(infer_pb.ServerLiveRequest(), **o), (True, True, True)),
                "info": (lambda **o: vllm.GetModelInfo(vllm_pb.GetModelInfoRequest(), **o), (False, True, True)),
                "loads": (lambda **o: vllm.GetLoads(vllm_pb.GetLoadsRequest(), **o), (False, False, True)),
                "generate": (lambda **o: vllm.Generate(generate(), **o), (False, True, False)),
                "infer": (lambda **o: kserve.ModelInfer(infer(), **o), (False, True, False)),
                "stream": (lambda **o: kserve.ModelStreamInfer(iter([infer()]), **o), (False, True, False)),
            }
            for name, (call, wanted) in calls.items():
                for key, allowed in zip((None, acme, admin), wanted, strict=True):
                    found = await code(call(metadata=() if key is None else bearer(key)))
                    assert (found not in REFUSED) == allowed, (name, key, found)
            assert {submit.tenant for submit in s.link.engine.received if isinstance(submit, Submit)} == {"acme"}
            request = generate(max_tokens=4000)
            request.request_id = "mine"
            running = vllm.Generate(request, metadata=bearer(acme))
            await running.read()
            abort = vllm_pb.AbortRequest(request_ids=["mine"])
            await vllm.Abort(abort, metadata=bearer(other))
            assert not [m for m in s.link.engine.received if isinstance(m, Abort)]
            await vllm.Abort(abort, metadata=bearer(acme))
            await until(lambda: any(isinstance(m, Abort) for m in s.link.engine.received), "the abort")
            error = await status(kserve.ModelInfer(infer()))
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED

    run(test())
