"""Nobody's request holds up the others: sizes are looked at first, long work is beside the event loop or in pieces."""

from __future__ import annotations

import asyncio
import collections
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2

from jaxinfer.errors import ChatMessageError
from jaxinfer.messages import EngineStats, PromptScored, SequenceOutput, StepOutputs, TokenLogprobs
from jaxinfer.text.chat import _plain
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.filters import redactor
from serving.filters.contract import ALLOW, Subject
from serving.filters.inputs import filtered
from serving.frames import Unpacker, _in_pieces, pack
from serving.grpc_server.wire import has_too_many_parts
from serving.pace import Pace
from serving.request import ChatPrompt
from serving.text_worker import PART_BYTES, TextWorker
from tests.fakes import FakeOptions
from tests.serving.harness import collect, greedy, run, serving, status
from tests.serving.http.harness import http_serving

CONTEXT = 64
OPTIONS = FakeOptions(max_model_len=CONTEXT)
TOO_LONG = "a" * 200_000


class Untouchable:
    """A tokenizer's backend that must not be asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the tokenizer was asked for {name}")


@pytest.fixture
def untouchable(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.serving.harness import tokenizer

    monkeypatch.setattr(tokenizer(), "_backend", Untouchable())


# -- characters before tokens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{"prompt": TOO_LONG}, {"prompt": ["a", TOO_LONG]}, {"prompt": "a" * 190}])
def test_a_text_that_cannot_fit_is_refused_by_its_characters(body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with http_serving(OPTIONS) as s:
            bound = s.grpc.server.frontend.ready_model().tokenizer.length_bound  # type: ignore[union-attr]
            assert bound is not None
            limit = bound.characters(CONTEXT - 1)
            error = await s.refused("/v1/completions", **body)
            if len(body["prompt"]) > limit or isinstance(body["prompt"], list):
                assert error["message"] == (
                    f"prompt is '200000 characters'; the context of {CONTEXT} tokens stands for at most {limit}, "
                    "with room for one more token"
                )
            else:
                assert "tokens'; with room for one more token" in error["message"]
            assert error["param"] == "prompt"

    run(test())


def test_no_server_asks_the_tokenizer(untouchable: None) -> None:
    async def test() -> None:
        async with http_serving(OPTIONS) as s:
            await s.refused("/v1/completions", prompt=TOO_LONG)
            chat = [{"role": "user", "content": TOO_LONG}]
            assert "characters" in (await s.refused("/v1/chat/completions", messages=chat))["message"]
            assert "characters" in (await s.refused("/v1/responses", input=TOO_LONG))["message"]
            error = await status(s.grpc.stub.Generate(greedy(TOO_LONG)))
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert "200000 characters" in (error.details() or "")

    run(test())


def test_token_ids_are_counted_before_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with http_serving(OPTIONS) as s:
            error = await s.refused("/v1/completions", prompt=[-1] * 100_000)
            assert error["message"].startswith("prompt is '100000 tokens'")
            refused = await status(s.grpc.stub.Generate(pb.GenerateRequest(token_ids=pb.TokenIds(ids=[999] * 100_000))))
            assert "100000 tokens" in (refused.details() or "")
            many = pb.SamplingParams(stop_token_ids=[1] * 100_000)
            refused = await status(s.grpc.stub.Generate(pb.GenerateRequest(text="a", sampling=many)))
            assert "stop_token_ids is '100000 entries'" in (refused.details() or "")

    run(test())


def test_what_is_cut_may_be_as_long_as_it_likes() -> None:
    async def test() -> None:
        async with http_serving(OPTIONS) as s:
            answer = await s.complete(prompt="b" * 5000, truncate_prompt_tokens=5)
            assert answer["usage"]["prompt_tokens"] == 5
            counted = (await s.post("/tokenize", prompt="b" * 5000)).json()
            assert counted["count"] == 5001

    run(test())


# -- bodies and messages -----------------------------------------------------------------------------------------------


def test_a_long_key_does_not_make_the_names_of_values_long() -> None:
    """They are made for every value: of a megabyte each, that never ends."""
    with pytest.raises(ChatMessageError) as caught:
        _plain("documents[0]", {"k" * 1_000_000: [{"k" * 1000: [0] * 5 + ["\ud800"]}] * 3})
    assert len(str(caught.value)) < 1000
    assert str(caught.value).startswith("documents[0].kkk")
    parts: list[str] = []

    def judge(text: str, subject: Subject) -> Any:
        parts.append(subject.part)
        return ALLOW

    chat = ChatPrompt([{"k" * 1_000_000: {"k" * 1000: ["a"] * 9}}])
    filtered(chat, judge, "", None)
    assert max(map(len, parts)) < 1000


def test_parts_are_counted_on_the_wire() -> None:
    message = pb.GenerateRequest(
        chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="x" * 1000)] * 20),
        sampling=pb.SamplingParams(stop=["a", "b"], logit_bias={3: 1.0}),
    )
    data, kind = message.SerializeToString(), pb.GenerateRequest.DESCRIPTOR
    parts = 2 + 20 * 3 + 2 + 1 + 2  # chat, sampling; messages and their fields; stops; an entry and its fields
    assert not has_too_many_parts(data, kind, parts)
    assert has_too_many_parts(data, kind, parts - 1)
    numbers = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1] * 1280)).SerializeToString()
    assert not has_too_many_parts(numbers, kind, 12)
    assert has_too_many_parts(numbers, kind, 11)
    unknown = b"\xf8\x7f\x01" * 10
    assert has_too_many_parts(unknown, kind, 39)
    assert not has_too_many_parts(unknown, kind, 40)
    rng = random.Random(1)
    for _ in range(2000):  # whatever it is, it ends
        broken = bytearray(data)
        for _ in range(3):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        has_too_many_parts(bytes(broken[: rng.randrange(len(broken))]), kind, 50)
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    assert not has_too_many_parts(file.SerializeToString(), descriptor_pb2.FileDescriptorProto.DESCRIPTOR)


def test_large_messages_are_measured_and_parsed_like_small_ones() -> None:
    async def test() -> None:
        async with serving(FakeOptions()) as s:
            chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="")] * 60_000)
            refused = await status(s.stub.Generate(pb.GenerateRequest(chat=chat)))
            assert refused.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert "more than 100000 fields" in (refused.details() or "")
            call = s.channel.unary_stream("/jaxinfer.v1.Inference/Generate")
            refused = await status(call(b"\x12\xff" * 50_000))
            assert "no valid message" in (refused.details() or "")
            found = await s.stub.Tokenize(pb.TokenizeRequest(text="a" * 100_000))
            assert len(found.token_ids) == 100_001

    run(test())


def test_the_example_of_a_filter_looks_at_a_long_text_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(2)
    parts = [
        "ann@example.com",
        "4111 1111 1111 1111",
        "jx-0123456789ab-" + "k" * 43,
        " ",
        "a",
        "1",
        "-",
        ".",
        "@b.cd",
        "1 ",
    ]
    found = 0
    for size in (1, 2, 3, 7, 50):
        monkeypatch.setattr(redactor, "_SLICE", size)
        for _ in range(60):
            text = "".join(rng.choices(parts, k=rng.randrange(30)))
            for pattern in redactor._PATTERNS.values():
                whole = [match.span() for match in pattern.finditer(text)]
                assert [match.span() for match in redactor._finds(pattern, text)] == whole
                found += len(whole)
    assert found > 500


# -- the engine's news -------------------------------------------------------------------------------------------------


def test_scores_of_a_long_prompt_come_in_pieces() -> None:
    rng = random.Random(3)

    def scored(request: str, start: int, count: int) -> PromptScored:
        top = tuple((i, -float(i)) for i in range(20))
        return PromptScored(request, start, tuple(TokenLogprobs(rng.randrange(9), -1.0, 1, top) for _ in range(count)))

    prompts = [scored("a", 0, 3000), scored("b", 0, 5), scored("a", 3000, 900), scored("c", 7, 0)]
    tokens = [SequenceOutput("a", 0, (5,), None, None, None, 0)]
    whole = StepOutputs(tokens, prompts, EngineStats(steps=7))
    parts = list(_in_pieces(whole))
    assert max(len(pack(part)) for part in parts) < 1 << 18
    assert [part.sequences for part in parts] == [[]] * (len(parts) - 1) + [tokens]
    assert all(part.stats == whole.stats for part in parts)
    for request in "abc":
        entries: dict[int, TokenLogprobs] = {}
        expected: dict[int, TokenLogprobs] = {}
        for found, messages in ((entries, parts), (expected, [whole])):
            for message in messages:
                for each in message.prompts:
                    if each.request_id == request:
                        found |= {each.start + i: entry for i, entry in enumerate(each.entries)}
        assert entries == expected
    short = StepOutputs(tokens, prompts[1:2])
    assert list(_in_pieces(short)) == [short]
    assert list(Unpacker().feed(b"".join(map(pack, parts)))) == parts


# -- many prompts of one request ---------------------------------------------------------------------------------------


def test_many_prompts_are_submitted_in_pieces_and_keep_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    paused = 0

    class Always(Pace):
        async def spend(self, steps: int) -> None:
            nonlocal paused
            paused += 1
            await self.rest()

    monkeypatch.setattr("serving.frontend.frontend.Pace", Always)

    async def test() -> None:
        async with http_serving(FakeOptions(step_seconds=0.005), max_waiting=16) as s:
            client = s.grpc.server.frontend
            limit = client.max_sequences
            many = asyncio.create_task(s.post("/v1/completions", prompt=["a"] * limit, max_tokens=2, temperature=0))
            while not paused:
                await asyncio.sleep(0)
            other = await s.post("/v1/completions", prompt="a", max_tokens=2)  # the places are all taken
            assert other.status_code == 429, other.text
            answer = await many
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["choices"]) == limit
            assert paused >= limit
            assert client.open_sequences == 0
            assert (await s.post("/v1/completions", prompt="a", max_tokens=2)).status_code == 200

    run(test())


def test_many_prompts_are_begun_and_ended_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """No turn of the event loop begins or ends many streams, and the engine's socket is written to once a turn."""
    turn = 0
    begun, ended, written = (collections.Counter[int]() for _ in range(3))

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def test() -> None:
        async with http_serving(FakeOptions(max_num_seqs=300), max_waiting=100) as s:
            frontend = s.grpc.server.frontend
            (link,) = frontend.links
            begin, close, write = link.begin, link.close, link._write

            def noted(turns: collections.Counter[int], work: Callable[..., None]) -> Callable[..., None]:
                def do(*arguments: Any) -> None:
                    turns[turn] += 1
                    work(*arguments)

                return do

            monkeypatch.setattr(link, "begin", noted(begun, begin))
            monkeypatch.setattr(link, "close", noted(ended, close))
            monkeypatch.setattr(link, "_write", noted(written, write))
            counting = asyncio.create_task(count())
            answer = await s.complete(prompt=["a"] * 300, max_tokens=1)
            counting.cancel()
            assert [choice["index"] for choice in answer["choices"]] == list(range(300))
            assert answer["usage"]["completion_tokens"] == 300
            assert frontend.open_sequences == 0

    run(test())
    assert begun.total() == ended.total() == 300
    assert max(begun.values()) <= 16
    assert max(ended.values()) <= 64
    assert max(written.values()) == 1
    assert written.total() < 100


def test_none_of_them_when_one_is_refused() -> None:
    async def test() -> None:
        async with http_serving(FakeOptions(step_seconds=0.005)) as s:
            client = s.grpc.server.frontend
            call = s.grpc.stub.Generate(pb.GenerateRequest(text="a", request_id="mine-1", sampling={"max_tokens": 50}))
            await call.read()
            answer = await s.post("/v1/completions", prompt=["a", "b", "c"], request_id="mine", max_tokens=2)
            assert answer.status_code == 409, answer.text
            assert client.open_sequences == 1
            await collect(call)
            assert client.open_sequences == 0

    run(test())


# -- the worker --------------------------------------------------------------------------------------------------------


def test_a_long_text_does_not_stand_before_others() -> None:
    async def test() -> None:
        worker = TextWorker(16 << 20)
        stop = threading.Event()
        try:
            long = [asyncio.create_task(worker.run(1 << 20, stop.wait)) for _ in range(4)]
            await asyncio.sleep(0)
            assert await worker.run(100_000, threading.get_ident) != threading.get_ident()
            assert not any(task.done() for task in long)
        finally:
            stop.set()
            await asyncio.gather(*long)
            worker.close()

    run(test())


def test_the_interpreter_changes_hands_soon_while_a_worker_lives() -> None:
    before = sys.getswitchinterval()
    worker = TextWorker(1000)
    assert sys.getswitchinterval() <= 0.0005
    worker.close()
    assert sys.getswitchinterval() == before


def test_a_short_body_of_many_prompts_is_no_short_work(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    whole = TextWorker.run

    async def noted(self: TextWorker, size: int, work: Any) -> Any:
        sizes.append(size)
        return await whole(self, size, work)

    monkeypatch.setattr(TextWorker, "run", noted)

    async def test() -> None:
        async with http_serving(FakeOptions(max_num_seqs=64)) as s:
            await s.post("/v1/completions", prompt=["a"] * 900, max_tokens=1)
            assert sizes.pop() > 4096 + 900 * PART_BYTES - 900
            await s.complete()
            assert sizes.pop() < 4096
            chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="")] * 400)
            await collect(s.grpc.stub.Generate(pb.GenerateRequest(chat=chat, sampling={"max_tokens": 1})))
            assert sizes.pop() > 4096

    run(test())
