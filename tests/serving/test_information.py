"""Tokenize, Detokenize, GetModelInfo, GetStats, reflection and health, with the standard clients."""

from __future__ import annotations

import asyncio

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import jaxinfer
from jaxinfer.sampling_params import FIELD_NAMES
from protos.jaxinfer.v1 import inference_pb2 as pb
from tests.fakes import BOS, EOS, VOCAB_SIZE, FakeOptions
from tests.serving.harness import collect, greedy, run, serving, status, until


def test_tokenize_is_what_generate_sees():
    async def test():
        async with serving() as s:
            reply = await s.stub.Tokenize(pb.TokenizeRequest(text="hé"))
            assert list(reply.token_ids) == [BOS, *"hé".encode()]
            reply = await s.stub.Tokenize(pb.TokenizeRequest(text="hé", add_special_tokens=False))
            assert list(reply.token_ids) == [*"hé".encode()]
            chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="u")])
            reply = await s.stub.Tokenize(pb.TokenizeRequest(chat=chat))
            assert bytes(reply.token_ids) == b"<user>u;<assistant>"
            assert list((await s.stub.Tokenize(pb.TokenizeRequest(text=""))).token_ids) == [BOS]
            for request, part in (
                (pb.TokenizeRequest(), "prompt is None"),
                (pb.TokenizeRequest(chat=chat, add_special_tokens=True), "add_special_tokens is True"),
                (pb.TokenizeRequest(chat=pb.Chat()), "at least one message"),
            ):
                error = await status(s.stub.Tokenize(request))
                assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
                assert part in error.details()

    run(test())


def test_detokenize():
    async def test():
        async with serving() as s:
            ids = [BOS, *"hé".encode(), EOS]
            assert (await s.stub.Detokenize(pb.DetokenizeRequest(token_ids=ids))).text == "hé"
            request = pb.DetokenizeRequest(token_ids=ids, skip_special_tokens=False)
            assert (await s.stub.Detokenize(request)).text == "<s>hé</s>"
            assert (await s.stub.Detokenize(pb.DetokenizeRequest())).text == ""
            error = await status(s.stub.Detokenize(pb.DetokenizeRequest(token_ids=[VOCAB_SIZE])))
            assert f"token_ids is {VOCAB_SIZE}" in error.details()

    run(test())


def test_model_info():
    async def test():
        options = FakeOptions(max_num_seqs=3, max_model_len=100, num_pages=11, page_size=16)
        defaults = {"temperature": 0.5, "top_k": 7}
        more = {"sampling_defaults": defaults, "notes": ("a word",)}
        async with serving(options, name="mine", max_waiting=9, **more) as s:
            info = await s.stub.GetModelInfo(pb.GetModelInfoRequest())
            assert (info.model, info.architecture, info.vocab_size) == ("mine", "FakeForCausalLM", VOCAB_SIZE)
            limits = info.limits
            assert (limits.max_num_seqs, limits.max_model_len, limits.max_waiting) == (3, 100, 9)
            assert limits.kv_tokens == 160
            assert (limits.max_n, limits.max_logprobs, limits.max_stop_token_ids) == (64, 20, 64)
            assert (info.dtype, info.device, info.tensor_parallel_size) == ("float32", "1 x fake", 1)
            assert info.expert_parallel_size == 1
            assert dict(info.backends) == {"paged_attention": "fake"}
            assert list(info.eos_token_ids) == [EOS]
            assert set(info.supported_parameters) == set(FIELD_NAMES)
            assert (info.default_sampling.temperature, info.default_sampling.top_k) == (0.5, 7)
            assert not info.default_sampling.HasField("max_tokens")
            assert info.default_sampling.n == 1
            assert info.has_tokenizer
            assert list(info.chat_templates) == ["default"]
            assert [(e.name, e.compile_seconds) for e in info.executables] == [("T8 S8", 0.25), ("T64 S8", 0.5)]
            assert list(info.notes) == [*s.engine.info.notes, "a word"]
            assert info.server_version == jaxinfer.__version__

    run(test())


def test_default_sampling_is_accepted_as_a_request():
    async def test():
        async with serving(sampling_defaults={"top_k": 7}) as s:
            info = await s.stub.GetModelInfo(pb.GetModelInfoRequest())
            request = pb.GenerateRequest(text="x", sampling=info.default_sampling)
            request.sampling.max_tokens = 3
            assert (await collect(s.stub.Generate(request))).usage.completion_tokens == 3

    run(test())


def test_stats_follow_the_work():
    async def test():
        async with serving(FakeOptions(step_seconds=0.01, max_num_seqs=2)) as s:
            calls = [asyncio.create_task(collect(s.stub.Generate(greedy(max_tokens=30)))) for _ in range(3)]

            def two_run_and_one_waits() -> bool:
                stats = s.server.frontend.stats
                return (stats.running, stats.waiting) == (2, 1)

            await until(two_run_and_one_waits, "two run and one waits")
            stats = await s.stub.GetStats(pb.GetStatsRequest())
            assert (stats.running, stats.waiting, stats.open_requests, stats.accepted_requests) == (2, 1, 3, 3)
            await asyncio.gather(*calls)
            stats = await s.stub.GetStats(pb.GetStatsRequest())
            assert (stats.running, stats.waiting, stats.open_requests) == (0, 0, 0)
            assert (stats.prompt_tokens, stats.generated_tokens) == (9, 90)
            assert stats.uptime_seconds > 0
            assert not stats.draining

    run(test())


def test_reflection_lets_a_client_build_requests():
    async def test():
        async with serving() as s:
            address = s.server.address

            def read() -> tuple[list[str], list[str]]:
                with grpc.insecure_channel(address) as channel:
                    database = ProtoReflectionDescriptorDatabase(channel)
                    pool = DescriptorPool(database)
                    methods = pool.FindServiceByName("jaxinfer.v1.Inference").methods_by_name
                    return sorted(database.get_services()), sorted(methods)

            services, methods = await asyncio.to_thread(read)
            assert services == [
                "grpc.health.v1.Health",
                "grpc.reflection.v1alpha.ServerReflection",
                "jaxinfer.v1.Inference",
            ]
            assert methods == ["Abort", "Detokenize", "Generate", "GetModelInfo", "GetStats", "Tokenize"]

    run(test())
