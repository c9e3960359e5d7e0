"""vLLM's gRPC service through the published stubs: the same answers as our own service, nothing ignored."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import math
import re
import zipfile

import grpc
import pytest
from smg_grpc_proto import vllm_engine_pb2 as pb
from smg_grpc_proto import vllm_engine_pb2_grpc as pb_grpc
from smg_grpc_proto.generated import common_pb2

from jaxinfer.messages import Abort, Submit
from jaxinfer.model_path import demo_path
from protos.jaxinfer.v1 import inference_pb2 as own_pb
from serving.gateways.services import GatewayConfig
from serving.gateways.vllm_engine import CHUNK_BYTES, Throughput, VllmEngineServicer
from tests.fakes import EOS, VOCAB_SIZE, FakeOptions
from tests.serving.gateways.harness import BOTH, generate
from tests.serving.harness import Running, collect, greedy, run, serving, status, until

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def stub(s: Running) -> pb_grpc.VllmEngineStub:
    return pb_grpc.VllmEngineStub(s.channel)


async def answer(call) -> tuple[list[pb.GenerateStreamChunk], list[pb.GenerateComplete]]:
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
    chunks = [message.chunk for message in messages if message.HasField("chunk")]
    return chunks, [message.complete for message in messages if message.HasField("complete")]


def ids(chunks: list[pb.GenerateStreamChunk], index: int = 0) -> list[int]:
    return [token for chunk in chunks if chunk.index == index for token in chunk.token_ids]


@pytest.mark.parametrize("temperature", [0.0, 0.75])
def test_the_same_tokens_as_our_own_service(temperature):
    async def test():
        async with serving(gateways=BOTH) as s:
            own = greedy("hello", 12, temperature=temperature, seed=7, n=2)
            wanted = await collect(s.stub.Generate(own))
            request = generate("hello", max_tokens=12, temperature=temperature, seed=7, n=2)
            chunks, ends = await answer(stub(s).Generate(request))
            request.stream = False
            none, whole = await answer(stub(s).Generate(request))
            ids_in = pb.TokenizedInput(original_text="hello", input_ids=s.received(Submit)[0].prompt_token_ids)
            request.tokenized.CopyFrom(ids_in)
            _, tokenized = await answer(stub(s).Generate(request))
            assert none == []
            for index in (0, 1):
                tokens = wanted.token_ids(index)
                assert ids(chunks, index) == tokens
                for found in (ends, whole, tokenized):
                    (end,) = (end for end in found if end.index == index)
                    assert list(end.output_ids) == tokens
                    assert (end.finish_reason, end.prompt_tokens, end.completion_tokens) == ("length", 6, 12)
                    assert end.cached_tokens == wanted.usage.cached_tokens
            assert len({submit.prompt_token_ids for submit in s.received(Submit)}) == 1

    run(test())


def test_stops_and_the_end_of_a_sequence():
    async def test():
        async with serving(FakeOptions(eos_after=5), gateways=BOTH) as s:
            for fields, wanted in (
                ({"stop": ["d"]}, ("stop", "matched_stop_str", "d", b"abcd")),
                ({"stop_token_ids": [ord("c")]}, ("stop", "matched_token_id", ord("c"), b"abc")),
                ({}, ("stop", None, None, b"abcde")),
                ({"ignore_eos": True}, ("length", None, None, b"abcdefgh")),
                ({"max_tokens": 2}, ("length", None, None, b"ab")),
            ):
                chunks, (end,) = await answer(stub(s).Generate(generate(**fields)))
                matched = end.WhichOneof("matched_stop")
                found = (end.finish_reason, matched, getattr(end, matched) if matched else None)
                assert found == wanted[:3], fields
                tokens = [token for token in end.output_ids if token != EOS]
                assert bytes(tokens) == wanted[3], fields
                assert ids(chunks) == list(end.output_ids)

    run(test())


def test_logprobs():
    async def test():
        async with serving(gateways=BOTH) as s:
            request = generate("hi", n=2, max_tokens=3, logprobs=2, prompt_logprobs=1)
            chunks, ends = await answer(stub(s).Generate(request))
            for index in (0, 1):
                own = [chunk for chunk in chunks if chunk.index == index]
                assert [chunk.HasField("input_logprobs") for chunk in own] == [True] + [False] * (len(own) - 1)
                (end,) = (end for end in ends if end.index == index)
                scored = end.output_logprobs
                assert list(scored.token_ids) == list(end.output_ids) == [97, 98, 99]
                assert list(scored.token_logprobs) == [-0.5] * 3
                assert [list(top.token_ids) for top in scored.top_logprobs] == [[97, 98], [98, 99], [99, 100]]
                assert [v for chunk in own for v in chunk.output_logprobs.token_logprobs] == [-0.5] * 3
                for prompt in (end.input_logprobs, own[0].input_logprobs):
                    assert list(prompt.token_ids) == [256, *b"hi"]
                    assert [v.HasField("value") for v in prompt.token_logprobs] == [False, True, True]
                    assert [list(top.token_ids) for top in prompt.top_logprobs] == [[], [104], [105]]
            _, (end,) = await answer(stub(s).Generate(generate(max_tokens=1, logprobs=0)))
            assert list(end.output_logprobs.token_logprobs) == [-0.5]
            assert not end.output_logprobs.top_logprobs
            _, (end,) = await answer(stub(s).Generate(generate(max_tokens=1)))
            assert not end.HasField("output_logprobs")
            assert not end.HasField("input_logprobs")

    run(test())


# Field -> (a value, what Submit.params then hold); None where it is refused.
SAMPLING = {
    "temperature": (0.5, 0.5),
    "top_p": (0.5, 0.5),
    "top_k": (9, 9),
    "min_p": (0.125, 0.125),
    "frequency_penalty": (0.25, 0.25),
    "presence_penalty": (0.5, 0.5),
    "repetition_penalty": (1.5, 1.5),
    "max_tokens": (5, 5),
    "min_tokens": (2, 2),
    "stop": (["y"], ("y",)),
    "stop_token_ids": ([7], (7,)),
    "skip_special_tokens": (True, True),
    "spaces_between_special_tokens": (True, ...),  # of text, which this service does not send
    "ignore_eos": (True, True),
    "n": (2, 2),
    "logprobs": (3, 3),
    "prompt_logprobs": (1, 1),
    "seed": (2, ...),  # in Submit.seed
    "include_stop_str_in_output": (True, True),
    "logit_bias": ({5: 1.5, 6: 101.0, 7: -math.inf}, {5: 1.5, 6: 100.0, 7: -100.0}),
    "truncate_prompt_tokens": (2, 2),
    "grammar_from_first_token": (True, ...),  # it is where every grammar starts here
    # Bad ones are refused under these names; good ones are in Submit.constraint.
    "json_schema": ('{"not": {}}', None),
    "regex": ("(", None),
    "grammar": ("root", None),
    "structural_tag": ("{}", None),
    "json_object": (True, ...),
    "choice": (pb.ChoiceConstraint(choices=[""]), None),
}
CONSTRAINTS = {
    "json_schema": '{"pattern": "a-z"}',
    "regex": "a-z",
    "grammar": 'root ::= "a-z"',
    "structural_tag": '{"structures": [{"begin": "a", "schema": {"pattern": "a-z"}, "end": ""}], "triggers": ["a"]}',
    "choice": pb.ChoiceConstraint(choices=["a-z"]),
}
REFUSED = {
    "kv_transfer_params": pb.KvTransferParams(remote_host="h"),
    "kv_transfer_params_json": "{}",
    "mm_inputs": pb.MultimodalInputs(),
    "extra_mm_inputs": [pb.MultimodalInputs()],
    "media_refs": pb.MediaRefs(),
    "data_parallel_rank": 1,
}


def test_every_field_takes_effect_or_is_refused():
    """The walk is over the descriptors of the installed package: a field that a newer one brings fails here."""
    assert set(SAMPLING) == {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}
    taken = {"request_id", "tokenized", "text", "sampling_params", "stream"}  # by the other tests
    assert taken | set(REFUSED) == {field.name for field in pb.GenerateRequest.DESCRIPTOR.fields}

    async def test():
        async with serving(gateways=BOTH) as s:
            for name, (value, wanted) in SAMPLING.items():
                params = pb.SamplingParams(**{"max_tokens": 8, name: value})
                request = pb.GenerateRequest(text="abc", sampling_params=params)
                if wanted is None:
                    error = await status(stub(s).Generate(request))
                    assert error.code() == INVALID, name
                    assert re.match(rf"{name}(\[0\]|\.structures|#/not)? is ", error.details()), error.details()
                    continue
                await answer(stub(s).Generate(request))
                submit = s.received(Submit)[-1]
                if wanted is not ...:
                    assert getattr(submit.params, name) == wanted
            assert next(m for m in s.received(Submit) if m.seed == 2)
            assert [m.constraint for m in s.received(Submit) if m.constraint]
            for name, value in CONSTRAINTS.items():
                params = pb.SamplingParams(**{"max_tokens": 8, name: value})
                await answer(stub(s).Generate(pb.GenerateRequest(text="abc", sampling_params=params)))
                assert "a-z" in s.received(Submit)[-1].constraint, name
            assert [m for m in s.received(Submit) if len(m.prompt_token_ids) == 2]  # truncated
            for name, value in REFUSED.items():
                error = await status(stub(s).Generate(pb.GenerateRequest(text="a", **{name: value})))
                assert error.code() == INVALID, name
                assert error.details().startswith(f"{name} is "), error.details()

    run(test())


def test_what_is_unset_has_the_protocols_default():
    """Zero means unset there; the model's own defaults are the gateway's to send."""

    async def test():
        defaults = {"temperature": 0.3, "top_k": 5, "top_p": 0.7, "max_tokens": 3}
        async with serving(FakeOptions(max_model_len=64), gateways=BOTH, sampling_defaults=defaults) as s:
            await answer(stub(s).Generate(pb.GenerateRequest(text="abc")))
            params = s.received(Submit)[-1].params
            assert (params.temperature, params.top_k, params.top_p, params.repetition_penalty) == (1.0, 0, 1.0, 1.0)
            assert (params.n, params.max_tokens, params.skip_special_tokens) == (1, 60, False)
            info = await stub(s).GetModelInfo(pb.GetModelInfoRequest())
            assert json.loads(info.default_sampling_params_json) == {"temperature": 0.3, "top_k": 5, "top_p": 0.7}
            request = generate("x" * 100, max_tokens=4, truncate_prompt_tokens=-1)
            await answer(stub(s).Generate(request))
            assert len(s.received(Submit)[-1].prompt_token_ids) == 60

    run(test())


BAD = {
    "no input": (pb.GenerateRequest(), ["input is None", "tokenized and text"]),
    "bias": (generate(logit_bias={-1: 1.0}), ["logit_bias is -1", "token ids"]),
    "bias that is no number": (generate(logit_bias={1: math.nan}), ["logit_bias is nan", "-100 to 100"]),
}


def test_bad_input_is_refused_by_name():
    async def test():
        async with serving(gateways=BOTH) as s:
            for name, (request, parts) in BAD.items():
                error = await status(stub(s).Generate(request))
                assert error.code() == INVALID, (name, error.details())
                assert all(part in error.details() for part in parts), (name, error.details())
            unknown = pb.GenerateRequest.FromString(generate().SerializeToString() + b"\x98\x06\x01")
            error = await status(stub(s).Generate(unknown))
            assert "field is 99" in error.details()
            for request, part in (
                (pb.GetLoadsRequest(dp_rank=1), "dp_rank is 1"),
                (pb.GetLoadsRequest(include=["weather"]), "include is 'weather'"),
            ):
                assert part in (await status(stub(s).GetLoads(request))).details()
            assert "request_ids is []" in (await status(stub(s).Abort(pb.AbortRequest()))).details()
            assert s.received(Submit) == []
            metrics = s.server.frontend.recorder.metrics
            assert metrics.refused["vllm", "INVALID_ARGUMENT"] == len(BAD) + 1

    run(test())


def test_abort_by_id_and_by_leaving():
    async def test():
        async with serving(FakeOptions(step_seconds=0.005), gateways=BOTH) as s:
            long = generate(max_tokens=4000)
            long.request_id = "first"
            call = stub(s).Generate(long)
            assert (await call.read()).HasField("chunk")
            error = await status(stub(s).Generate(long))
            assert error.code() == grpc.StatusCode.ALREADY_EXISTS
            await stub(s).Abort(pb.AbortRequest(request_ids=["unheard-of", "first"]))
            _, (end,) = await answer(call)
            assert end.finish_reason == "abort"
            left = stub(s).Generate(long)
            await left.read()
            aborts = len(s.received(Abort))
            left.cancel()
            await until(lambda: len(s.received(Abort)) > aborts and not s.server.frontend.open_requests, "an abort")
            late = stub(s).Generate(long, timeout=0.2)
            assert (await status(late)).code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: not s.server.frontend.open_requests, "the end of what is too late")

    run(test())


def test_information():
    async def test():
        async with serving(FakeOptions(step_seconds=0.01), gateways=GatewayConfig(("vllm",), demo_path())) as s:
            health = await stub(s).HealthCheck(pb.HealthCheckRequest())
            assert (health.healthy, health.message) == (True, "ready")
            info = await stub(s).GetModelInfo(pb.GetModelInfoRequest())
            assert (info.served_model_name, info.model_path, info.tokenizer_path) == ("fake", *[str(demo_path())] * 2)
            assert (info.max_context_length, info.max_req_input_len, info.vocab_size) == (4096, 4095, VOCAB_SIZE)
            assert (list(info.architectures), info.model_type) == (["FakeForCausalLM"], "llama")
            assert (list(info.eos_token_ids), info.bos_token_id, info.is_generation) == ([EOS], 256, True)
            calls = [stub(s).Generate(generate(max_tokens=400)) for _ in range(5)]
            for call in calls[:4]:
                await call.read()
            server = await stub(s).GetServerInfo(pb.GetServerInfoRequest())
            assert (server.active_requests, server.max_num_seqs, server.block_size) == (5, 4, 16)
            assert (server.server_type, server.data_parallel_size, server.model_dtype) == ("jaxinfer", 1, "float32")
            assert 0 < server.uptime_seconds < 60
            await stub(s).GetLoads(pb.GetLoadsRequest(include=["core", "disagg", "queues", "memory"], dp_rank=0))
            await asyncio.sleep(0.1)
            response = await stub(s).GetLoads(pb.GetLoadsRequest())
            (load,) = response.loads
            assert response.dp_rank_count == 1
            assert (load.num_running_reqs, load.num_waiting_reqs, load.num_total_reqs) == (4, 1, 5)
            assert (load.max_running_requests, load.max_total_num_tokens, load.utilization) == (4, 16_000, 1.0)
            values = s.server.frontend.recorder.metrics.values()
            assert load.token_usage == values["kv_cache_usage_perc"] > 0
            assert load.num_used_tokens == round(load.token_usage * 16_000)
            assert load.num_waiting_uncached_tokens == 3  # of the fifth's prompt
            assert load.gen_throughput > 0

    run(test())


def test_throughput_is_of_the_last_seconds():
    rate = Throughput()
    assert rate.of(0, 100.0) == 0.0
    assert rate.of(50, 105.0) == 10.0
    assert rate.of(50, 120.0) == pytest.approx(0.0)  # since 105
    assert rate.of(150, 125.0) == 5.0  # since 105 still: 120 is not ten seconds ago


def test_the_tokenizer_comes_as_an_archive():
    async def test():
        async with serving(gateways=GatewayConfig(("vllm",), demo_path())) as s:
            archives = []
            for _ in range(2):
                chunks = [chunk async for chunk in stub(s).GetTokenizer(common_pb2.GetTokenizerRequest())]
                data = b"".join(chunk.data for chunk in chunks)
                assert [bool(chunk.sha256) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
                assert all(len(chunk.data) <= CHUNK_BYTES for chunk in chunks)
                assert chunks[-1].sha256 == hashlib.sha256(data).hexdigest()
                archives.append(data)
            assert archives[0] == archives[1]
            files = zipfile.ZipFile(io.BytesIO(data))
            assert {"tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja"} <= set(
                files.namelist()
            )
            assert files.read("tokenizer.json") == (demo_path() / "tokenizer.json").read_bytes()

    run(test())


def test_without_a_tokenizer_ids_are_served_and_no_archive():
    async def test():
        async with serving(gateways=BOTH, with_tokenizer=False) as s:
            request = pb.GenerateRequest(
                tokenized=pb.TokenizedInput(input_ids=[1]),
                sampling_params=pb.SamplingParams(temperature=0.0, max_tokens=2, skip_special_tokens=True),
            )
            _, (end,) = await answer(stub(s).Generate(request))
            assert bytes(end.output_ids) == b"ab"
            request.sampling_params.stop.append("a")
            assert "stop is" in (await status(stub(s).Generate(request))).details()
            error = await status(stub(s).GetTokenizer(common_pb2.GetTokenizerRequest()))
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION

    run(test())


UNSERVED = {
    "Embed": pb.EmbedRequest(),
    "FlushCache": common_pb2.FlushCacheRequest(),
    "StartProfile": common_pb2.StartProfileRequest(),
    "StopProfile": common_pb2.StopProfileRequest(),
    "SubscribeKvEvents": common_pb2.SubscribeKvEventsRequest(),
}


def test_every_method_of_the_published_service_is_ours():
    """One that the installed package adds would be answered by its base class, with a traceback in the log."""
    for method in pb.DESCRIPTOR.services_by_name["VllmEngine"].methods:
        assert method.name in vars(VllmEngineServicer), method.name


def test_what_is_not_served_says_so():
    async def test():
        async with serving(gateways=BOTH) as s:
            for name, request in UNSERVED.items():
                error = await status(getattr(stub(s), name)(request))
                assert error.code() == grpc.StatusCode.UNIMPLEMENTED
                assert error.details().startswith(f"{name} is not supported")

    run(test())


def test_our_own_messages_are_as_before():
    """The two services do not share ids by accident: an abort reaches requests of the other server, too."""

    async def test():
        async with serving(FakeOptions(step_seconds=0.005), gateways=BOTH) as s:
            call = s.stub.Generate(own_pb.GenerateRequest(text="a", request_id="x", sampling={"max_tokens": 4000}))
            await call.read()
            await stub(s).Abort(pb.AbortRequest(request_ids=["x"]))
            assert (await collect(call)).end().finish_reason == own_pb.FINISH_REASON_ABORT

    run(test())
