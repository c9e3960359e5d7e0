"""Hundreds of messages that no client would send, from a seed: each gets its status, and the server goes on."""

from __future__ import annotations

import logging
import random
from collections import Counter
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from smg_grpc_proto import vllm_engine_pb2 as vllm_pb

from jaxinfer.messages import Submit
from protos.open_inference import grpc_service_pb2 as infer_pb
from tests.fakes import FakeOptions
from tests.serving.gateways.harness import BOTH, generate, infer
from tests.serving.harness import Running, collect, greedy, run, serving

EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
}
INTEGERS = (0, 1, 2, 7, 63, 2**31 - 1)
TEXTS = ("", "a", "\0", "é" * 50, "{}", "[" * 2000, '{"n": 1e999}', '{"stop": {"a": []}}', "BYTES", "INT32", "fake")
FLOATS = (0.0, -1.0, 0.5, float("nan"), float("inf"), 1e30)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, inserted, doubled or cut."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(4):
            case 0:
                out[at : at + 1] = rng.randbytes(1)
            case 1:
                out[at:at] = rng.randbytes(rng.randint(1, 6))
            case 2:
                out[at:at] = out[at : at + rng.randint(1, 12)]
            case _:
                del out[at : at + rng.randint(1, 3)]
    return bytes(out)


def value(field: FieldDescriptor, rng: random.Random, depth: int) -> Any:
    if field.message_type is not None:
        return scrambled(field.message_type._concrete_class(), rng, depth + 1)
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        text = rng.choice(TEXTS)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(FLOATS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    return rng.choice(INTEGERS)


def scrambled(message: Message, rng: random.Random, depth: int = 0) -> Message:
    """The message with some of its fields set to well-formed nonsense."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() > 0.25 or depth > 4:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entries = getattr(message, field.name)
            key = value(field.message_type.fields_by_name["key"], rng, depth)
            inner = value(field.message_type.fields_by_name["value"], rng, depth)
            if isinstance(inner, Message):
                entries[key].CopyFrom(inner)
            else:
                entries[key] = inner
        elif field.is_repeated:
            getattr(message, field.name).extend(value(field, rng, depth) for _ in range(rng.randint(1, 3)))
        elif field.message_type is not None:
            getattr(message, field.name).MergeFrom(value(field, rng, depth))
        else:
            setattr(message, field.name, value(field, rng, depth))
    return message


def messages(valid: list[Message], rng: random.Random, count: int) -> list[bytes]:
    found = []
    for i in range(count):
        start = type(valid[0])()
        start.CopyFrom(rng.choice(valid))
        if i % 2:
            found.append(mutated(start.SerializeToString(), rng))
        else:
            found.append(scrambled(start, rng).SerializeToString())
    return found


async def code_of(call: Any) -> grpc.StatusCode:
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        assert error.details()
        return error.code()
    return grpc.StatusCode.OK


def parses(body: bytes) -> bool:
    try:
        infer_pb.ModelInferRequest.FromString(body)
    except DecodeError:
        return False
    return True


async def send(s: Running, method: str, bodies: list[bytes]) -> Counter[grpc.StatusCode]:
    call = s.channel.unary_stream(method)
    return Counter([await code_of(call(body)) for body in bodies])


def test_the_server_outlives_nonsense(caplog):
    """No status is INTERNAL or UNKNOWN, and nothing is logged as unforeseen."""

    async def test():
        rng = random.Random(20)
        async with serving(FakeOptions(max_model_len=64), gateways=BOTH) as s:
            asked = [generate(), generate(stream=False, n=2, stop=["d"], logit_bias={1: 1.0}, logprobs=1)]
            ids = vllm_pb.GenerateRequest(tokenized=vllm_pb.TokenizedInput(input_ids=[1, 2]))
            bodies = messages([*asked, ids], rng, 200)
            found = await send(s, "/vllm.grpc.engine.VllmEngine/Generate", bodies)
            assert set(found) <= EXPECTED
            assert found[grpc.StatusCode.OK] > 5  # some are still requests
            assert found[grpc.StatusCode.INVALID_ARGUMENT] > 100
            aborts = messages([vllm_pb.AbortRequest(request_ids=["a"])], rng, 50)
            assert set(await send(s, "/vllm.grpc.engine.VllmEngine/Abort", aborts)) <= EXPECTED
            bodies = messages([infer(), infer(raw=True), infer(None, input_ids=[1, 2])], rng, 200)
            found = await send(s, "/inference.GRPCInferenceService/ModelInfer", bodies)
            assert set(found) <= EXPECTED
            assert found[grpc.StatusCode.OK] > 10
            assert found[grpc.StatusCode.INVALID_ARGUMENT] > 80
            stream = s.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
            parsed = [body for body in bodies if parses(body)]
            for i in range(0, len(parsed), 5):
                assert await code_of(stream(iter(parsed[i : i + 5]))) == grpc.StatusCode.OK
            broken = [body for body in bodies if not parses(body)]
            assert min(len(parsed), len(broken)) > 30
            for body in broken:  # ends its stream, so that it comes last
                assert await code_of(stream(iter([rng.choice(parsed), body]))) == grpc.StatusCode.INVALID_ARGUMENT
            assert len(s.received(Submit)) > 30
            assert not s.server.frontend.open_requests
            assert (await collect(s.stub.Generate(greedy()))).text() == "abcdefgh"

    with caplog.at_level(logging.WARNING):
        run(test())
    assert not [record for record in caplog.records if record.name.startswith("serving")]


def test_the_walk_reaches_every_kind_of_field():
    rng = random.Random(1)
    texts = [str(scrambled(infer_pb.ModelInferRequest(), rng)) for _ in range(200)]
    for name in ("int64_param", "raw_input_contents", "bytes_contents", "fp64_contents"):
        assert any(name in text for text in texts)
