"""What only a message of our gRPC service can have wrong: the status names field, value and allowed range.

Rules of all servers are in tests/serving/test_refusals.py."""

from __future__ import annotations

import json

import grpc
import pytest

from jaxinfer.messages import Submit
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.errors import RETRY_METADATA
from serving.grpc_server import replies
from tests.fakes import FakeOptions
from tests.serving.harness import collect, greedy, run, serving, status

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def sampling(**fields):
    return pb.GenerateRequest(text="ab", sampling=pb.SamplingParams(**fields))


def chat(*messages, **fields):
    return pb.GenerateRequest(chat=pb.Chat(messages=messages, **fields), sampling=pb.SamplingParams(max_tokens=1))


USER = pb.ChatMessage(role="user", content="u")

# name -> (request, parts of the message)
CASES = {
    "empty prompt": (pb.GenerateRequest(text="", add_special_tokens=False), ["prompt is ''", "at least one token"]),
    "no prompt": (pb.GenerateRequest(), ["prompt", "text, token_ids and chat"]),
    "prompt_logprobs": (sampling(prompt_logprobs=-1), ["prompt_logprobs is -1", "from 0 to 20"]),
    "too long a list": (sampling(bad_token_ids=[1] * 1025), ["1025", "at most 1024"]),
    "special tokens elsewhere": (
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1]), add_special_tokens=True),
        ["add_special_tokens is True", "text prompt only"],
    ),
    "no messages": (chat(), ["messages", "at least one"]),
    "no role": (chat(pb.ChatMessage(content="x")), ["messages[0].role", "''"]),
    "content not text": (chat(USER, pb.ChatMessage(role="user", extra_json='{"content": 5}')), ["messages[1].content"]),
    **{
        f"{kind} part": (
            chat(USER, pb.ChatMessage(role="user", extra_json=json.dumps({"content": ["look:", {"type": kind}]}))),
            [f"messages[1].content[1].type must be \"text\", got '{kind}'", what, "--language-model-only"],
        )
        for kind, what in (
            ("image_url", "it is an image"),
            ("image", "it is an image"),
            ("input_audio", "it is audio"),
            ("video_url", "it is a video"),
            ("file", "it is a file"),
        )
    },
    "part that nobody knows": (
        chat(pb.ChatMessage(role="user", extra_json='{"content": [{"type": "smell"}]}')),
        ["messages[0].content[0].type must be \"text\", got 'smell': only text is supported"],
    ),
    "extra not json": (chat(pb.ChatMessage(role="user", content="x", extra_json="{")), ["messages[0].extra_json"]),
    "extra role": (
        chat(pb.ChatMessage(role="user", content="x", extra_json='{"role": "system"}')),
        ["messages[0].extra_json is 'role'", "of its own"],
    ),
    "tools not an object": (chat(USER, tools_json=["[]"]), ["tools_json[0] is '[]'", "JSON object"]),
    "tools nested": (chat(USER, tools_json=["[" * 100_000]), ["tools_json[0]", "nested"]),
    "variables": (chat(USER, template_variables_json="3"), ["template_variables_json is '3'", "JSON object"]),
    "variables nan": (chat(USER, template_variables_json='{"a": NaN}'), ["template_variables_json is 'NaN'"]),
    "variables digits": (chat(USER, template_variables_json='{"a": ' + "1" * 5000 + "}"), ["variables_json", "digits"]),
    "reserved variable": (chat(USER, template_variables_json='{"template": "x"}'), ["'template'", "may set"]),
    "template": (chat(USER, template="{{ 1 }}"), ["template is '{{ 1 }}'", "['default']"]),
}


def test_refused_by_name():
    async def test():
        async with serving(FakeOptions(max_model_len=96), max_waiting=2) as s:
            for name, (request, parts) in CASES.items():
                error = await status(s.stub.Generate(request))
                assert error.code() == INVALID, (name, error.code(), error.details())
                assert all(part in error.details() for part in parts), (name, error.details())
            assert s.received(Submit) == []
            stats = await s.stub.GetStats(pb.GetStatsRequest())
            assert (stats.accepted_requests, stats.refused_requests) == (0, len(CASES))
            assert (await collect(s.stub.Generate(greedy(max_tokens=93)))).usage.completion_tokens == 93  # the border

    run(test())


def test_unknown_fields_are_refused_at_any_depth():
    """What a newer client asks must not be dropped in silence. Field 99, a string, as it looks on the wire."""
    unknown = bytes([0x9A, 0x06, 0x01, 0x41])
    base = pb.GenerateRequest(text="a")
    nested = pb.GenerateRequest.FromString(
        base.SerializeToString() + pb.GenerateRequest(sampling=pb.SamplingParams(n=1)).SerializeToString()
    )
    nested.sampling.MergeFromString(unknown)
    deep = chat(USER)
    deep.chat.messages[0].MergeFromString(unknown)
    top = pb.GenerateRequest.FromString(base.SerializeToString() + unknown)

    async def test():
        async with serving() as s:
            for request, message in ((top, "GenerateRequest"), (nested, "SamplingParams"), (deep, "ChatMessage")):
                error = await status(s.stub.Generate(request))
                assert error.code() == INVALID
                assert f"field is 99; this server knows no such field of jaxinfer.v1.{message}" in error.details()
            for method, kind in (
                (s.stub.GetStats, pb.GetStatsRequest),
                (s.stub.GetModelInfo, pb.GetModelInfoRequest),
                (s.stub.Abort, pb.AbortRequest),
                (s.stub.Tokenize, pb.TokenizeRequest),
                (s.stub.Detokenize, pb.DetokenizeRequest),
            ):
                error = await status(method(kind.FromString(unknown)))
                assert (error.code(), "field is 99" in error.details()) == (INVALID, True), kind

    run(test())


def test_bytes_that_are_no_message(caplog):
    """The client's mistake, and no traceback in the server's log."""
    not_utf8 = b"\x12\x02\xff\xfe"

    async def test():
        async with serving() as s:
            for name in ("Generate", "Tokenize"):
                make = s.channel.unary_stream if name == "Generate" else s.channel.unary_unary
                error = await status(make(f"/jaxinfer.v1.Inference/{name}")(not_utf8))
                assert error.code() == INVALID
                assert "no valid message" in error.details()
                assert f"jaxinfer.v1.{name}Request" in error.details()

    run(test())
    assert caplog.records == []


def test_a_fault_that_nobody_foresaw_is_internal_and_logged(caplog, monkeypatch):
    async def test():
        async with serving() as s:
            monkeypatch.setattr(replies, "stats", lambda *_, **__: 1 / 0)
            error = await status(s.stub.GetStats(pb.GetStatsRequest()))
            assert error.code() == grpc.StatusCode.INTERNAL
            assert error.details() == "ZeroDivisionError: division by zero"

    run(test())
    assert "nobody foresaw" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_the_tokenizers_queue_is_bounded():
    async def test():
        async with serving(max_message_bytes=100_000) as s:
            s.server.worker._queued_bytes = 8 * 100_000 - 10_000
            error = await status(s.stub.Tokenize(pb.TokenizeRequest(text="x" * 20_000)))
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert RETRY_METADATA in dict(error.trailing_metadata())
            await s.stub.Tokenize(pb.TokenizeRequest(text="x" * 9_000))
            assert s.server.worker._queued_bytes == 8 * 100_000 - 10_000

    run(test())


def test_without_a_tokenizer_only_tokens_are_taken():
    tokens = pb.TokenIds(ids=[1, 2])

    async def test():
        async with serving(with_tokenizer=False) as s:
            for request, part in (
                (pb.GenerateRequest(text="a"), "prompt is 'text'"),
                (pb.GenerateRequest(chat=pb.Chat(messages=[USER])), "prompt is 'chat'"),
                (pb.GenerateRequest(token_ids=tokens, sampling=pb.SamplingParams(stop=["x"])), "stop is ('x',)"),
                (
                    pb.GenerateRequest(token_ids=tokens, sampling=pb.SamplingParams(skip_special_tokens=False)),
                    "skip_special_tokens is False",
                ),
            ):
                error = await status(s.stub.Generate(request))
                assert error.code() == INVALID
                assert part in error.details()
                assert "without a tokenizer" in error.details()
            assert "without a tokenizer" in (await status(s.stub.Tokenize(pb.TokenizeRequest(text="a")))).details()
            error = await status(s.stub.Detokenize(pb.DetokenizeRequest(token_ids=[1])))
            assert "without a tokenizer" in error.details()
            request = pb.GenerateRequest(token_ids=tokens, sampling=pb.SamplingParams(max_tokens=3, temperature=0))
            result = await collect(s.stub.Generate(request))
            assert (result.token_ids(), result.text()) == (list(b"abc"), "")
            info = await s.stub.GetModelInfo(pb.GetModelInfoRequest())
            assert not info.has_tokenizer
            assert "stop" not in info.supported_parameters

    run(test())


def test_an_answer_is_cut_to_what_the_pool_holds():
    async def test():
        async with serving(FakeOptions(num_pages=3, page_size=16)) as s:  # 32 tokens
            result = await collect(s.stub.Generate(greedy(text="a" * 9, max_tokens=24)))  # one more than is left
            assert result.usage.completion_tokens == 23
            await collect(s.stub.Generate(greedy(text="a" * 9, max_tokens=23)))  # the border

    run(test())


def test_oversized_message():
    async def test():
        async with serving(max_message_bytes=10_000) as s:
            error = await status(s.stub.Tokenize(pb.TokenizeRequest(text="x" * 20_000)))
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "10000" in error.details()

    run(test())


@pytest.mark.parametrize("bad", [{"temperature": "hot"}, {"top_p": 3.0}])
def test_bad_defaults_of_the_model_stop_the_start(bad):
    from serving.server import ServerError

    async def test():
        with pytest.raises(ServerError, match=r"generation_config.json: .*" + next(iter(bad))) as raised:
            async with serving(sampling_defaults=bad):
                pass
        assert raised.value.code == 2

    run(test())
