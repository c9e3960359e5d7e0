"""What a client may make the server hold: sizes of inputs, compressed messages, and readers that take nothing."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from serving.grpc_server.options import MAX_METADATA_BYTES
from tests.fakes import FakeOptions
from tests.serving.harness import collect, greedy, run, serving, status, until
from tests.serving.http.harness import greedy_chat, http_serving


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


CASES: list[tuple[str, dict[str, Any], str]] = [
    ("chat/completions", {"messages": [{"role": "user", "content": "x"}] * 4097}, "messages"),
    ("chat/completions", {"tools": [tool()] * 129}, "tools"),
    ("chat/completions", {"tools": [tool(), tool(description="x" * 70_000)]}, "tools[1]"),
    ("chat/completions", {"tools": [tool(parameters=deep(40))]}, "tools[0]"),
    ("chat/completions", {"tools": [tool(parameters={"enum": list(range(40_000))})]}, "tools[0]"),
    ("chat/completions", {"chat_template_kwargs": {"style": "x" * 70_000}}, "chat_template_kwargs"),
    ("chat/completions", {"stop": ["x"] * 17}, "stop"),
    ("chat/completions", {"stop": "x" * 1025}, "stop"),
    ("chat/completions", {"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ("chat/completions", {"user": "x" * 513}, "user"),
    ("chat/completions", {"cache_salt": "x" * 257}, "cache_salt"),
    ("responses", {"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
    ("responses", {"metadata": {"x": "x" * 513}}, "metadata"),
    ("responses", {"metadata": {"x" * 65: "x"}}, "metadata"),
]


def test_every_input_has_its_size() -> None:
    async def test() -> None:
        async with http_serving(tool_call_parser="hermes") as s:
            for path, body, param in CASES:
                own = {"input": "hi"} if path == "responses" else greedy_chat()
                error = await s.refused(f"/v1/{path}", **{**own, **body})
                assert error["param"] == param, error
                assert len(error["message"]) < 400, "an error does not repeat what was too long"
            assert (await s.chat(tools=[tool(parameters=deep(25), description="x" * 3000)]))["choices"]

    run(test())


def test_grpc_chats_have_the_same_sizes() -> None:
    async def test() -> None:
        async with serving() as s:
            one = pb.ChatMessage(role="user", content="x")
            cases = {
                "messages": pb.Chat(messages=[one] * 4097),
                "tools": pb.Chat(messages=[one], tools_json=['{"a": 1}'] * 129),
                "tools[0]": pb.Chat(messages=[one], tools_json=[json.dumps(deep(40))]),
                "template_variables_json": pb.Chat(
                    messages=[one], template_variables_json=json.dumps({"x": "y" * 70_000})
                ),
            }
            for field, chat in cases.items():
                error = await status(s.stub.Generate(pb.GenerateRequest(chat=chat)))
                assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
                assert error.details().startswith(field), error.details()

    run(test())


def test_a_compressed_message_is_not_unpacked() -> None:
    """gRPC would inflate a few kilobytes to as much as a message may have, and hold it, before anybody can look."""

    async def test() -> None:
        async with serving() as s:
            bomb = greedy("x" * (8 << 20))
            error = await status(s.stub.Generate(bomb, compression=grpc.Compression.Gzip))
            assert error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL), error
            assert (await collect(s.stub.Generate(greedy()))).text() == "abcdefgh"

    run(test())


def test_metadata_has_a_size() -> None:
    async def test() -> None:
        async with serving() as s:
            options = [("grpc.max_metadata_size", 1 << 24), ("grpc.absolute_max_metadata_size", 1 << 24)]
            async with grpc.aio.insecure_channel(s.server.address, options=options) as channel:
                stub = pb_grpc.InferenceStub(channel)
                large = (("x", "y" * 30_000),)
                await stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=large)
                huge = tuple((f"x{i}", "y" * 10_000) for i in range(2 * MAX_METADATA_BYTES // 10_000))
                error = await status(stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=huge))
                assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                await stub.GetModelInfo(pb.GetModelInfoRequest())

    run(test())


def test_a_grpc_client_that_takes_nothing_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving(FakeOptions(max_model_len=8192)) as s:
            s.server.servicer.stall_seconds = 0.3
            options = [("grpc.http2.lookahead_bytes", 16_384), ("grpc.http2.bdp_probe", 0)]
            async with grpc.aio.insecure_channel(s.server.address, options=options) as channel:
                call = pb_grpc.InferenceStub(channel).Generate(greedy(max_tokens=6000, logprobs=20))
                await call.read()
                await until(lambda: s.server.frontend.open_requests == 0, "nothing is held for it any more")
                assert (await collect(s.stub.Generate(greedy()))).text() == "abcdefgh"
                call.cancel()

    run(test())
    assert "took nothing of its answer for 0.3 s" in caplog.text
