"""An output filter reads text: what a gateway gets is the filtered text, and never the tokens that it stands for."""

from __future__ import annotations

import grpc
from smg_grpc_proto import vllm_engine_pb2_grpc as vllm_grpc

from protos.open_inference import grpc_service_pb2_grpc as infer_grpc
from tests.fakes import FakeOptions
from tests.serving.gateways.harness import BOTH, generate, infer, text_output
from tests.serving.harness import run, serving, status

MAIL = "ann@mail.example.org"
REDACTOR = "serving.filters.redactor:redact"


def test_an_output_filter_is_no_gap():
    async def test():
        options = FakeOptions(script=f"to {MAIL}!")
        async with serving(options, gateways=BOTH, output_filter=REDACTOR) as s:
            refused = await status(vllm_grpc.VllmEngineStub(s.channel).Generate(generate()))
            assert refused.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert "gives no tokens" in refused.details()
            sampling = {"max_tokens": len(options.script)}
            stub = infer_grpc.GRPCInferenceServiceStub(s.channel)
            found = await stub.ModelInfer(
                infer(sampling=sampling, return_num_output_tokens=True, exclude_input_in_output=True)
            )
            assert text_output(found) == ["to [e-mail]!"]
            (count,) = [o.contents.uint_contents[0] for o in found.outputs if o.name == "num_output_tokens"]
            assert count == len(options.script)

    run(test())
