"""KServe's open inference protocol: tensors in and out in both encodings, streams, and what is refused by name.

With our own stubs; NVIDIA's client, which registers the same names, has a process of its own in test_tritonclient.py.
"""

from __future__ import annotations

import json
import struct

import grpc
import pytest

from jaxinfer.messages import Abort, Submit
from protos.jaxinfer.v1 import inference_pb2 as own_pb
from protos.open_inference import grpc_service_pb2 as pb
from protos.open_inference import grpc_service_pb2_grpc as pb_grpc
from serving.gateways.infer_convert import FINAL, INPUTS, OUTPUTS
from serving.gateways.open_inference import UNSERVED
from tests.fakes import FakeOptions
from tests.serving.gateways.harness import BOTH, infer, text_output
from tests.serving.harness import Running, collect, greedy, run, serving, status, until

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def stub(s: Running) -> pb_grpc.GRPCInferenceServiceStub:
    return pb_grpc.GRPCInferenceServiceStub(s.channel)


async def stream(s: Running, *requests: pb.ModelInferRequest, **options) -> list[pb.ModelStreamInferResponse]:
    call = stub(s).ModelStreamInfer(iter(requests), **options)
    return [message async for message in call]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_same_text_as_our_own_service(temperature):
    async def test():
        async with serving(gateways=BOTH) as s:
            own = await collect(s.stub.Generate(greedy("hello", 12, temperature=temperature, seed=3, n=2)))
            wanted = [own.text(0), own.text(1)]
            asked = {"temperature": temperature, "seed": 3, "max_tokens": 12, "n": 2}
            whole = await stub(s).ModelInfer(infer("hello", sampling=asked, exclude_input_in_output=True))
            assert text_output(whole) == wanted
            assert (whole.model_name, whole.model_version, whole.id) == ("fake", "1", "")
            prefixed = await stub(s).ModelInfer(infer("hello", sampling=asked))
            assert text_output(prefixed) == ["hello" + text for text in wanted]
            messages = await stream(s, infer("hello", sampling=asked, stream=True, id="a"))
            responses = [message.infer_response for message in messages]
            texts = [text_output(response) for response in responses]
            assert ["".join(column) for column in zip(*texts, strict=True)] == wanted
            finals = [response.parameters[FINAL].bool_param for response in responses]
            assert finals == [False] * (len(finals) - 1) + [True]
            assert {response.id for response in responses} == {"a"}
            ids = list(s.received(Submit)[0].prompt_token_ids)
            of_ids = await stub(s).ModelInfer(infer(None, input_ids=ids, sampling=asked, exclude_input_in_output=True))
            assert text_output(of_ids) == wanted
            of_ids = await stub(s).ModelInfer(infer(None, input_ids=ids, sampling=asked))
            assert text_output(of_ids) == ["hello" + text for text in wanted]

    run(test())


def test_raw_and_typed_contents_are_the_same():
    async def test():
        async with serving(gateways=BOTH) as s:
            fields = {
                "sampling": {"n": 2, "logprobs": 1},
                **{name: True for name in INPUTS if name.startswith("return")},
            }
            typed = await stub(s).ModelInfer(infer("grüß", **fields))
            raw = await stub(s).ModelInfer(infer("grüß", raw=True, **fields))
            assert [o.name for o in raw.outputs] == [o.name for o in typed.outputs] == list(OUTPUTS)
            for spec, data, tensor in zip(OUTPUTS.values(), raw.raw_output_contents, typed.outputs, strict=True):
                if spec.datatypes[0] == "BYTES":
                    values = tensor.contents.bytes_contents
                    assert data == b"".join(struct.pack("<I", len(value)) + value for value in values)
                elif spec.datatypes[0] == "FP32":
                    assert data == struct.pack("<2f", *tensor.contents.fp32_contents)
                else:
                    values = tensor.contents.uint_contents
                    assert data == struct.pack(f"<{len(values)}I", *values)
            assert not typed.raw_output_contents
            assert text_output(typed)[0] == "grüßabcdefgh"

    run(test())


def test_additional_outputs():
    async def test():
        async with serving(gateways=BOTH) as s:
            asked = [pb.ModelInferRequest.InferRequestedOutputTensor(name="finish_reason")]
            response = await stub(s).ModelInfer(
                infer(outputs=asked, return_num_output_tokens=True, return_logprobs=True, return_num_input_tokens=True)
            )
            found = {output.name: output.contents for output in response.outputs}
            assert set(found) == {"finish_reason", "num_output_tokens", "logprobs", "num_input_tokens"}
            assert found["finish_reason"].bytes_contents == [b"length"]
            assert found["num_output_tokens"].uint_contents == [8]
            assert found["num_input_tokens"].uint_contents == [3]
            scored = json.loads(found["logprobs"].bytes_contents[0])
            assert scored[0] == {"97": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}}
            assert len(scored) == 8
            response = await stub(s).ModelInfer(
                infer(return_cumulative_logprob=True, return_logprobs=True, sampling={"logprobs": 2, "max_tokens": 2})
            )
            found = {output.name: output.contents for output in response.outputs}
            assert found["cumulative_logprob"].fp32_contents == [-1.0]
            assert list(json.loads(found["logprobs"].bytes_contents[0])[1]) == ["98", "99"]
            messages = await stream(s, infer(stream=True, return_finish_reason=True, return_num_output_tokens=True))
            reasons = [m.infer_response.outputs[1].contents.bytes_contents[0] for m in messages]
            assert reasons == [b"None"] * (len(reasons) - 1) + [b"length"]
            assert sum(m.infer_response.outputs[2].contents.uint_contents[0] for m in messages) == 8

    run(test())


def test_a_stream_serves_many_requests_at_a_time():
    async def test():
        async with serving(FakeOptions(step_seconds=0.002), gateways=BOTH) as s:
            requests = [infer("a", id=str(i % 3), stream=True, sampling={"max_tokens": 40}) for i in range(4)]
            messages = [message.infer_response for message in await stream(s, *requests)]
            assert not any(message.parameters[FINAL].bool_param for message in messages[:4])  # none waited for another
            assert sum(message.parameters[FINAL].bool_param for message in messages) == 4
            ids = [submit.request_id for submit in s.received(Submit)]
            assert len(set(ids)) == 4
            assert {request_id.split("-")[0] for request_id in ids} == {"0", "1", "2"}

    run(test())


def test_a_client_may_ask_for_a_status_instead_of_a_message():
    async def test():
        async with serving(FakeOptions(step_seconds=0.005), gateways=BOTH) as s:
            long = infer(stream=True, sampling={"max_tokens": 4000})
            call = stub(s).ModelStreamInfer(
                iter([long, infer(model_version="3")]), metadata=[("triton_grpc_error", "true")]
            )
            error = await status(call)
            assert (error.code(), "model_version is '3'" in error.details()) == (grpc.StatusCode.NOT_FOUND, True)
            await until(lambda: not s.server.frontend.open_requests, "the end of the stream's requests")

    run(test())


def test_leaving_deadlines_and_timeouts_abort():
    async def test():
        async with serving(FakeOptions(step_seconds=0.005), gateways=BOTH) as s:
            long = {"sampling": {"max_tokens": 4000}}
            call = stub(s).ModelStreamInfer(iter([infer(stream=True, **long), infer(**long)]))
            await call.read()
            call.cancel()
            await until(lambda: len(s.received(Abort)) == 2 and not s.server.frontend.open_requests, "two aborts")
            for late in (
                stub(s).ModelInfer(infer(**long), timeout=0.1),
                stub(s).ModelStreamInfer(iter([infer(stream=True, **long)]), timeout=0.1),
            ):
                assert (await status(late)).code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: len(s.received(Abort)) == 4 and not s.server.frontend.open_requests, "two more")
            timed = infer(**long)
            timed.parameters["timeout"].int64_param = 50_000
            error = await status(stub(s).ModelInfer(timed))
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert error.details() == "the request's timeout of 0.05 s is over"
            (message,) = await stream(s, timed)
            assert message.error_message == error.details()
            assert not s.server.frontend.open_requests

    run(test())


def test_information():
    async def test():
        async with serving(gateways=BOTH) as s:
            assert (await stub(s).ServerLive(pb.ServerLiveRequest())).live
            assert (await stub(s).ServerReady(pb.ServerReadyRequest())).ready
            for name, version, ready in (
                ("fake", "", True),
                ("fake", "1", True),
                ("fake", "2", False),
                ("x", "", False),
            ):
                request = pb.ModelReadyRequest(name=name, version=version)
                assert (await stub(s).ModelReady(request)).ready == ready
            assert "name is ''" in (await status(stub(s).ModelReady(pb.ModelReadyRequest()))).details()
            metadata = await stub(s).ModelMetadata(pb.ModelMetadataRequest(name="fake"))
            config = (await stub(s).ModelConfig(pb.ModelConfigRequest(name="fake"))).config
            assert [t.name for t in metadata.inputs] == [t.name for t in config.input] == list(INPUTS)
            assert [t.name for t in metadata.outputs] == [t.name for t in config.output] == list(OUTPUTS)
            assert (list(metadata.inputs[1].shape), metadata.inputs[1].datatype) == ([-1], "INT32")
            assert config.model_transaction_policy.decoupled
            assert config.max_batch_size == 0
            for call in (
                stub(s).ModelMetadata(pb.ModelMetadataRequest(name="x")),
                stub(s).ModelConfig(pb.ModelConfigRequest(name="fake", version="7")),
            ):
                assert (await status(call)).code() == grpc.StatusCode.NOT_FOUND
            (model,) = (await stub(s).RepositoryIndex(pb.RepositoryIndexRequest(ready=True))).models
            assert (model.name, model.version, model.state) == ("fake", "1", "READY")
            for name in UNSERVED:
                call = s.channel.unary_unary(f"/inference.GRPCInferenceService/{name}")(b"")
                error = await status(call)
                assert error.code() == grpc.StatusCode.UNIMPLEMENTED
                assert error.details().startswith(f"{name} is not supported: ")

    run(test())


def test_without_a_tokenizer_there_is_no_text_to_send():
    async def test():
        async with serving(gateways=BOTH, with_tokenizer=False) as s:
            error = await status(stub(s).ModelInfer(infer(None, input_ids=[1])))
            assert (error.code(), "without a tokenizer" in error.details()) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                True,
            )

    run(test())


def test_a_full_server_refuses_in_the_stream():
    async def test():
        async with serving(FakeOptions(step_seconds=0.005), gateways=BOTH, max_waiting=0) as s:
            requests = [infer(id=str(i)) for i in range(6)]
            messages = await stream(s, *requests)
            assert sum("takes at most 4" in message.error_message for message in messages) == 2
            assert s.server.frontend.accepted == 4
            stats = await s.stub.GetStats(own_pb.GetStatsRequest())
            assert (stats.accepted_requests, stats.refused_requests) == (4, 2)

    run(test())
