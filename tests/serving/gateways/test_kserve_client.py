"""What KServe's own Python client and tritonclient send beside the protocol, and the statistics that they ask for."""

from __future__ import annotations

import json
import struct

import grpc
import pytest

from jaxinfer.messages import Submit
from protos.open_inference import grpc_service_pb2 as pb
from tests.fakes import FakeOptions
from tests.serving.gateways.harness import BOTH, add_input, infer, text_output
from tests.serving.gateways.test_open_inference import stub
from tests.serving.harness import collect, greedy, run, serving, status, until


def kserve(text: str = "hi", **sizes: int) -> pb.ModelInferRequest:
    """As KServe's Python client writes inputs of numpy arrays (set_data_from_numpy): raw, and their length told."""
    request = infer(text, raw=True)
    for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True):
        tensor.parameters["binary_data_size"].int64_param = sizes.get(tensor.name, len(data))
    return request


def test_inputs_of_kserves_client_are_taken():
    async def test():
        async with serving(gateways=BOTH) as s:
            response = await stub(s).ModelInfer(kserve("grüß"))
            assert response.raw_output_contents == [struct.pack("<I", 14) + "grüßabcdefgh".encode()]
            # One input of an array, the other of a list: only the former is raw.
            request = kserve()
            del request.inputs[1], request.raw_input_contents[1]
            add_input(request, "sampling_parameters", json.dumps({"temperature": 0, "max_tokens": 3}))
            assert (await stub(s).ModelInfer(request)).raw_output_contents == [struct.pack("<I", 5) + b"hiabc"]
            # What its HTTP messages have beside it.
            request = infer(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="text_output")])
            request.outputs[0].parameters["binary_data"].bool_param = True
            request.parameters["binary_data_output"].bool_param = True
            del request.inputs[1]
            request.parameters["max_tokens"].int64_param = 3
            request.parameters["temperature"].double_param = 0
            assert text_output(await stub(s).ModelInfer(request)) == ["hiabc"]

    run(test())


def test_a_size_that_is_not_that_of_the_input_is_refused():
    typed = infer()
    typed.inputs[0].parameters["binary_data_size"].int64_param = 2
    word = kserve()
    word.inputs[0].parameters["binary_data_size"].string_param = "6"
    shared = kserve()
    shared.inputs[0].parameters["shared_memory_region"].string_param = "x"
    output = infer(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="text_output")])
    output.outputs[0].parameters["classification"].int64_param = 3
    cases = {
        "text_input.parameters[binary_data_size] is 5; its raw form has 6 bytes": kserve(text_input=5),
        "text_input.parameters[binary_data_size] is 2; it belongs to an input in raw_input_contents": typed,
        "text_input.parameters[binary_data_size] is '6'; it must be an integer": word,
        "text_input.parameters is 'shared_memory_region'; only binary_data_size is one": shared,
        "text_output.parameters is 'classification'; only binary_data is one": output,
    }

    async def test():
        async with serving(gateways=BOTH) as s:
            for words, request in cases.items():
                error = await status(stub(s).ModelInfer(request))
                assert (error.code(), words in error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, True), words
                assert s.received(Submit) == []

    run(test())


def test_statistics_are_those_of_the_metrics():
    async def test():
        async with serving(FakeOptions(step_seconds=0.001), gateways=BOTH) as s:
            (before,) = (await stub(s).ModelStatistics(pb.ModelStatisticsRequest())).model_stats
            assert (before.name, before.version, before.inference_count, before.last_inference) == ("fake", "1", 0, 0)
            await stub(s).ModelInfer(infer())
            await collect(s.stub.Generate(greedy()))  # another server's count as well
            call = s.stub.Generate(greedy(max_tokens=2000))
            await call.read()
            call.cancel()
            metrics = s.server.frontend.recorder.metrics
            await until(lambda: sum(metrics.finished.values()) == 3, "all have ended")
            (found,) = (await stub(s).ModelStatistics(pb.ModelStatisticsRequest(name="fake", version="1"))).model_stats
            stats = found.inference_stats
            assert (found.inference_count, stats.success.count, stats.fail.count) == (2, 2, 1)
            assert found.execution_count == metrics.stats.steps > 8
            total = metrics.histograms["e2e_request_latency_seconds"].total
            assert (stats.success.ns + stats.fail.ns) / 1e9 == pytest.approx(total, rel=1e-6)
            assert stats.queue.count == 3
            assert stats.compute_infer.count in (2, 3)  # the one that was cancelled may have had no token yet
            assert 0 < stats.compute_infer.ns <= stats.success.ns + stats.fail.ns
            assert found.last_inference == round(1000 * metrics.last_arrival) > 0
            error = await status(stub(s).ModelStatistics(pb.ModelStatisticsRequest(name="other")))
            assert error.code() == grpc.StatusCode.NOT_FOUND

    run(test())
