"""What a refused request was made of is freed at once, and not by a garbage collection that everybody waits for."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from types import FrameType

import grpc
import pytest

from jaxinfer.errors import Gathering, InvalidRequest
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving import garbage
from serving.errors import Refusal
from serving.text_worker import TextWorker
from tests.fakes import FakeOptions
from tests.serving.harness import collect, greedy, run, serving
from tests.serving.http.harness import http_serving


class Text:
    """Stands for megabytes."""


@pytest.fixture
def kept() -> Iterator[list[weakref.ref[Text]]]:
    """References to what `refuses` has made; collections are off."""
    gc.collect()
    gc.disable()
    yield []
    gc.enable()


def refuses(kept: list[weakref.ref[Text]]) -> None:
    """As a check does that keeps the fault it found: the exception leads to this frame, and the frame to it."""
    text = Text()
    kept.append(weakref.ref(text))
    fault = InvalidRequest("prompt", "x", "it is too long")
    faults = [fault]
    raise faults[0]


def test_without_help_it_stays(kept):
    with pytest.raises(InvalidRequest):
        refuses(kept)
    assert kept[0]() is not None


@pytest.mark.parametrize("size", [10, 10_000, 1 << 20], ids=["inline", "thread", "long"])
def test_what_a_worker_made_is_freed(kept, size):
    async def test():
        worker = TextWorker(1 << 22)
        with pytest.raises(InvalidRequest):
            await worker.run(size, lambda: refuses(kept))
        worker.close()

    run(test())
    assert kept[0]() is None


def test_a_gathering_keeps_no_frame(kept):
    gathering = Gathering()
    with gathering:
        refuses(kept)
    assert len(gathering.faults) == 1
    assert gathering.faults[0].__traceback__ is None


def test_exceptions_in_a_ring_end(kept):
    with pytest.raises(InvalidRequest) as caught:
        refuses(kept)
    other = ValueError()
    caught.value.__cause__, other.__context__ = other, caught.value
    garbage.let_go(caught.value)
    assert kept[0]() is None


def test_a_refused_call_is_freed(kept, monkeypatch):
    monkeypatch.setattr("serving.frontend.frontend.prepare", lambda *_: refuses(kept))

    async def test():
        async with serving(FakeOptions()) as s:
            with pytest.raises(grpc.aio.AioRpcError):
                await collect(s.stub.Generate(pb.GenerateRequest(text="a" * 5000)))

    run(test())
    assert kept[0]() is None


def test_a_refused_http_request_is_freed(kept, monkeypatch):
    monkeypatch.setattr("serving.frontend.frontend.prepare", lambda *_: refuses(kept))

    async def test():
        async with http_serving(FakeOptions()) as s:
            for prompt in ("a", "a" * 5000):
                assert (await s.post("/v1/completions", prompt=prompt)).status_code == 400

    run(test())
    assert [each() for each in kept] == [None, None]


def test_the_body_of_a_refused_http_request_is_freed(kept):
    async def test():
        async with http_serving(FakeOptions()) as s:
            assert (await s.post("/v1/completions", prompt="a" * 50_000, nope=1)).status_code == 400

    run(test())
    frames = [each for each in gc.get_objects() if isinstance(each, FrameType) and "serving" in each.f_code.co_filename]
    holding = {
        (frame.f_code.co_qualname, name)
        for frame in frames
        for name, value in frame.f_locals.items()
        if isinstance(value, bytes | bytearray) and len(value) > 50_000
    }
    assert holding == set()


def test_streams_that_end_together_have_an_exception_each():
    async def test():
        async with serving(FakeOptions(step_seconds=0.05, crash_at_step=8)) as s:
            calls = [collect(s.stub.Generate(greedy(max_tokens=50))) for _ in range(4)]
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(each) for each in ends] == [grpc.aio.AioRpcError] * 4
            assert {each.code() for each in ends} == {grpc.StatusCode.INTERNAL}

    run(test())
    refusal = Refusal(grpc.StatusCode.ABORTED, "m", (("a", "b"),), "r")
    other = refusal.again()
    assert other is not refusal
    assert (other.code, other.message, other.metadata, other.reason) == (refusal.code, "m", (("a", "b"),), "r")


@pytest.fixture
def circles() -> Iterator[list[object]]:
    """Filled by `found`; collections are off but for it."""
    gc.collect()
    gc.disable()
    yield []
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def found() -> list[object]:
    """What a collection would have to free."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    garbage_found = list(gc.garbage)
    gc.garbage.clear()
    gc.set_debug(0)
    return garbage_found


def test_refused_requests_leave_no_frames(circles):
    """Their exceptions would hold all that was going on, gRPC's messages included."""

    async def test():
        async with http_serving(FakeOptions()) as s:
            for size in (1, 300_000):
                with pytest.raises(grpc.aio.AioRpcError):
                    await collect(s.grpc.stub.Generate(pb.GenerateRequest(text="a" * size, sampling={"n": 100})))
                assert (await s.post("/v1/completions", prompt="a" * 300_000)).status_code == 400
            await asyncio.sleep(0.05)  # gRPC ends calls after their answers
            circles.extend(found())

    run(test())
    left = {each.f_code.co_qualname for each in circles if isinstance(each, FrameType)}
    assert not {
        name
        for name in left
        if name.startswith(("_finish_handler", "_handle", "Api.", "InferenceServicer.", "Frontend.", "CallHandler."))
    }
    assert not [each for each in circles if isinstance(each, pb.GenerateRequest)]


def test_detokenizing_leaves_no_circles(circles):
    async def test():
        async with http_serving(FakeOptions()) as s:
            assert (await s.post("/v1/completions", prompt="hi", n=4)).status_code == 200
            circles.extend(found())

    run(test())
    assert not [each for each in circles if type(each).__module__.startswith("jaxinfer.text")]


def test_what_a_collection_goes_through_is_bounded(monkeypatch):
    """All but the old objects."""
    thresholds = []
    monkeypatch.setattr(gc, "set_threshold", lambda *values: thresholds.extend(values))
    for name in ("collect", "freeze"):
        monkeypatch.setattr(gc, name, lambda: None)
    garbage.settle()
    young, middle, old = thresholds
    assert young * middle <= 50_000
    assert young * middle * old >= 10_000_000  # the old ones are gone through no sooner


def test_old_objects_wait_for_a_quiet_moment(monkeypatch):
    collected = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append(True))
    for count, times in ((0, 0), (1, 0), (2, 1), (50, 2)):
        monkeypatch.setattr(gc, "get_count", lambda count=count: (0, 0, count))
        garbage.tidy()
        assert len(collected) == times
