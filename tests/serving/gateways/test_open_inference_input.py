"""What KServe's clients may get wrong: every fault is named, in calls and in streams; sampling in both spellings."""

from __future__ import annotations

import grpc

from jaxinfer.messages import Submit
from protos.open_inference import grpc_service_pb2 as pb
from serving.gateways.infer_convert import FINAL
from tests.serving.gateways.harness import BOTH, add_input, infer, text_output
from tests.serving.gateways.test_open_inference import INVALID, stream, stub
from tests.serving.harness import run, serving, status

# Name -> (JSON as clients write it, what Submit.params then hold).
SAMPLING = {
    "n": ("2", 2),
    "top_k": ("9", 9),
    "seed": (5, ...),
    "max_tokens": ("4", 4),
    "min_tokens": (2, 2),
    "logprobs": (1, 1),
    "truncate_prompt_tokens": (2, 2),
    "temperature": ("0.5", 0.5),
    "top_p": ("0.95", 0.95),
    "min_p": (0.125, 0.125),
    "repetition_penalty": (1.5, 1.5),
    "presence_penalty": (0.5, 0.5),
    "frequency_penalty": ("0.25", 0.25),
    "include_stop_str_in_output": (True, True),
    "ignore_eos": ("true", True),
    "skip_special_tokens": ("False", False),
    "stop": ("y", ("y",)),
    "stop_token_ids": ([7], (7,)),
    "allowed_token_ids": ([97, 98], (97, 98)),
    "bad_token_ids": ([5], (5,)),
    "logit_bias": ({"5": "1.5", "6": 250, "7": "-inf"}, {5: 1.5, 6: 100.0, 7: -100.0}),
}


def test_all_faulty_sampling_parameters_are_told_and_neutral_ones_taken():
    neutral = {"use_beam_search": "false", "length_penalty": "1.0", "early_stopping": False, "best_of": 1}

    async def test():
        async with serving(gateways=BOTH) as s:
            plain = await stub(s).ModelInfer(infer("abc"))
            asked = {**neutral, "detokenize": True, "spaces_between_special_tokens": None}
            assert text_output(await stub(s).ModelInfer(infer("abc", sampling=asked))) == text_output(plain)
            bad = infer("abc", sampling={"guided": 1, "best_of": 2, "use_beam_search": True, "max_tokens": "x"})
            error = await status(stub(s).ModelInfer(bad))
        assert error.code() == INVALID
        said = error.details()
        for words in (
            *("4 faults: (", "sampling_parameters.max_tokens is 'x'", "sampling_parameters is 'guided'; the names are"),
            *("sampling_parameters.best_of is 2; only 1", "sampling_parameters.use_beam_search is True; only False"),
        ):
            assert words in said, words

    run(test())


def test_sampling_parameters_as_json_or_as_parameters():
    async def test():
        async with serving(gateways=BOTH) as s:
            for name, (value, wanted) in SAMPLING.items():
                await stub(s).ModelInfer(infer("abc", sampling={name: value}))
                submit = s.received(Submit)[-1]
                assert wanted is ... or getattr(submit.params, name) == wanted, name
            assert next(submit for submit in s.received(Submit) if submit.seed == 5)
            request = infer("abc")
            del request.inputs[1]
            request.parameters["max_tokens"].int64_param = 3
            request.parameters["temperature"].double_param = 0.0
            request.parameters["stop"].string_param = "b"
            request.parameters["priority"].uint64_param = 4
            request.parameters["triton_enable_empty_final_response"].bool_param = True
            assert text_output(await stub(s).ModelInfer(request)) == ["abca"]
            submit = s.received(Submit)[-1]
            assert (submit.params.max_tokens, submit.params.stop, submit.priority) == (3, ("b",), 4)
            del request.parameters["max_tokens"]
            await stub(s).ModelInfer(request)
            assert s.received(Submit)[-1].params.max_tokens == 16

    run(test())


def parameter(name: str, **value) -> pb.ModelInferRequest:
    request = infer()
    request.parameters[name].CopyFrom(pb.InferParameter(**value))
    return request


def tensor(name: str, datatype: str, shape: list[int], **contents) -> pb.ModelInferRequest:
    request = infer(None if name == "text_input" else "hi")
    request.inputs.add(name=name, datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents))
    return request


def raw(data: bytes, **fields) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name="fake",
        inputs=[
            pb.ModelInferRequest.InferInputTensor(**{"name": "text_input", "datatype": "BYTES", "shape": [1], **fields})
        ],
        raw_input_contents=[data],
    )


def written(sampling: str) -> pb.ModelInferRequest:
    """sampling: as the client's JSON has it."""
    request = infer()
    request.inputs[1].contents.bytes_contents[0] = sampling.encode()
    return request


def twice() -> pb.ModelInferRequest:
    request = infer()
    add_input(request, "text_input", "again")
    return request


def shared_memory(where: str) -> pb.ModelInferRequest:
    request = infer(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="text_output")])
    getattr(request, where)[0].parameters["shared_memory_region"].string_param = "x"
    return request


BAD = {
    "long id": (infer("a", id="7" * 101), ["id is '777", "up to 100 printable"]),
    "input": (infer(image="x"), ["inputs[2].name is 'image'", "text_input"]),
    "twice": (twice(), ["inputs[2].name is 'text_input'", "twice"]),
    "no prompt": (infer(None), ["inputs is []", "exactly one of"]),
    "two prompts": (infer(input_ids=[1]), ["inputs is ['text_input', 'input_ids']"]),
    "datatype": (tensor("text_input", "FP32", [1]), ["text_input.datatype is 'FP32'", "BYTES"]),
    "ids datatype": (tensor("input_ids", "UINT32", [1]), ["input_ids.datatype is 'UINT32'", "INT32 or INT64"]),
    "shape": (tensor("text_input", "BYTES", [1, 1], bytes_contents=[b"a"]), ["text_input.shape is [1, 1]", "[1]"]),
    "batch": (tensor("text_input", "BYTES", [2], bytes_contents=[b"a"] * 2), ["text_input.shape is [2]"]),
    "negative": (tensor("input_ids", "INT32", [-1]), ["input_ids.shape is [-1]"]),
    "huge": (tensor("input_ids", "INT64", [2**62]), ["input_ids is '0 values'", str(2**62)]),
    "count": (tensor("stream", "BOOL", [1]), ["stream is '0 values'", "holds 1"]),
    "field": (tensor("stream", "BOOL", [1], int_contents=[1]), ["stream.contents is 'int_contents'", "bool_contents"]),
    "negative id": (infer(None, input_ids=[-1]), ["input_ids is -1", "from 0 to"]),
    "utf-8": (tensor("text_input", "BYTES", [1], bytes_contents=[b"\xff"]), ["text_input is", "UTF-8"]),
    "raw length": (raw(b"\x09\0\0\0abc"), ["raw_input_contents of text_input is '7 bytes'", "little-endian"]),
    "raw short": (raw(b"\x01"), ["raw_input_contents of text_input is '1 bytes'"]),
    "raw count": (raw(b"\0\0\0\0\0\0\0\0"), ["text_input is '2 values'", "holds 1"]),
    "raw ids": (raw(b"abc", name="input_ids", datatype="INT32"), ["is '3 bytes'", "INT32 takes 4 bytes"]),
    "raw and typed": (raw(b"", contents=pb.InferTensorContents()), ["text_input.contents is 'set'"]),
    "raw entries": (
        infer(raw_input_contents=[b""]),
        ["raw_input_contents is '1 entries'", "the 0 inputs without"],
    ),
    "json": (written("{"), ["sampling_parameters is '{'", "it must be JSON"]),
    "nested": (written("[" * 100_000), ["sampling_parameters is '[[[", "nested too deeply"]),
    "no object": (written("[]"), ["sampling_parameters is '[]'", "a JSON object"]),
    "nan": (written('{"top_p": NaN}'), ["sampling_parameters is 'NaN'", "not JSON"]),
    "unknown": (infer(sampling={"guided_json": {}}), ["sampling_parameters is 'guided_json'", "temperature"]),
    "prompt_logprobs": (infer(sampling={"prompt_logprobs": 1}), ["sampling_parameters is 'prompt_logprobs'"]),
    "type": (infer(sampling={"max_tokens": "many"}), ["sampling_parameters.max_tokens is 'many'", "an integer"]),
    "object": (infer(sampling={"min_tokens": {}}), ["sampling_parameters.min_tokens is {}", "an integer"]),
    "list": (infer(sampling={"stop_token_ids": 5}), ["sampling_parameters.stop_token_ids is 5", "a list of integers"]),
    "boolean": (infer(sampling={"ignore_eos": 1}), ["sampling_parameters.ignore_eos is 1", "a boolean"]),
    "bias": (infer(sampling={"logit_bias": {"x": 1}}), ["sampling_parameters.logit_bias is {'x': 1}"]),
    "digits": (infer(sampling={"seed": "9" * 5000}), ["sampling_parameters.seed is '999"]),
    "fraction": (infer(sampling={"max_tokens": 16.5}), ["sampling_parameters.max_tokens is 16.5", "an integer"]),
    "streamed": (infer(stream=True), ["stream is True", "ModelStreamInfer streams"]),
    "sequence": (parameter("sequence_id", int64_param=1), ["parameters[sequence_id] is 1"]),
    "mixed": (parameter("top_k", int64_param=1), ["parameters[top_k] is 1", "sampling_parameters"]),
    "no value": (parameter("top_k"), ["parameters[top_k] is None"]),
    "timeout": (parameter("timeout", int64_param=-1), ["parameters[timeout] is -1"]),
    "timeout type": (parameter("timeout", string_param="x"), ["parameters[timeout] is 'x'", "integer"]),
    "priority": (parameter("priority", uint64_param=2**63), ["parameters[priority] is", "32-bit"]),
    "empty final": (parameter("triton_enable_empty_final_response", int64_param=1), ["is 1", "a boolean"]),
    "output": (
        infer(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="x")]),
        ["outputs[0].name is 'x'", "text_output"],
    ),
    "memory in": (shared_memory("inputs"), ["text_input.parameters is 'shared_memory_region'", "no shared memory"]),
    "memory out": (shared_memory("outputs"), ["text_output.parameters is 'shared_memory_region'"]),
}


def test_bad_input_is_refused_by_name_in_calls_and_in_streams():
    async def test():
        async with serving(gateways=BOTH) as s:
            for name, (request, parts) in BAD.items():
                error = await status(stub(s).ModelInfer(request))
                assert error.code() == INVALID, (name, error.details())
                assert all(part in error.details() for part in parts), (name, error.details())
            requests = [request for name, (request, _) in BAD.items() if name != "streamed"]
            messages = await stream(s, *requests, infer(id="good"))
            assert sum(bool(message.error_message) for message in messages) == len(requests)
            (good,) = (message.infer_response for message in messages if not message.error_message)
            assert (good.id, text_output(good)) == ("good", ["hiabcdefgh"])
            (message,) = await stream(s, infer(stream=True, exclude_input_in_output=False, id="7"))
            assert message.error_message.startswith("exclude_input_in_output is False")
            assert (message.infer_response.id, message.infer_response.parameters[FINAL].bool_param) == ("7", True)
            assert len(s.received(Submit)) == 1
            refused = s.server.frontend.recorder.metrics.refused
            assert refused["kserve", "INVALID_ARGUMENT"] == len(BAD) + len(requests) + 1
            for fields, part in (
                ({"model_name": ""}, "model_name is ''"),
                ({"model_version": "2"}, "model_version is '2'; this server serves '1' only"),
            ):
                error = await status(stub(s).ModelInfer(infer(**fields)))
                assert (error.code(), part in error.details()) == (grpc.StatusCode.NOT_FOUND, True)

    run(test())
