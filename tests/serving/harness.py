"""A server over the fake engine, in this process: real sockets and a real channel, the engine in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import grpc

from jaxinfer.messages import EngineInfo, Progress
from jaxinfer.text import Tokenizer, load_tokenizer
from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from serving.engine_process import Build, Engine, run_engine
from serving.frontend.engine_link import EngineEnd
from serving.server import Server, ServerConfig
from tests.fakes import FakeEngine, FakeOptions, write_tokenizer

TIME_LIMIT = 30.0  # seconds; a test that takes longer hangs


@cache
def tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(write_tokenizer(Path(folder)))


class ThreadEngine:
    """What `EngineProcess` is, in a thread. `engine` is there once it was built."""

    def __init__(self, build: Build) -> None:
        self.sock, self._other = socket.socketpair()
        self.engine: FakeEngine | None = None
        self._build = build
        self._code: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        code = run_engine(self._other, self._keep)
        self._code = code
        self._other.close()

    def _keep(self, progress: Callable[[Progress], None]) -> Engine:
        engine = self._build(progress)
        assert isinstance(engine, FakeEngine)
        self.engine = engine
        return engine

    async def wait(self, timeout: float) -> int | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while self._thread.is_alive() and loop.time() < deadline:
            await asyncio.sleep(0.005)
        return self._code

    async def describe(self, timeout: float) -> dict[str, Any] | None:
        return None if self.engine is None else self.engine.describe()

    def kill(self) -> None:
        if self.engine is not None:
            self.engine.released.set()


@dataclass
class Record:
    """An observer that remembers."""

    progressed: list[Progress] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    warmed_with: list[EngineInfo] = field(default_factory=list)
    drains: list[int] = field(default_factory=list)
    ends: list[EngineEnd] = field(default_factory=list)

    def progress(self, progress: Progress) -> None:
        self.progressed.append(progress)

    def ready(self, info: EngineInfo, name: str, address: str, http_address: str | None, seconds: float) -> None:
        self.addresses.append(address)

    def warmed(self, info: EngineInfo, seconds: float) -> None:
        self.warmed_with.append(info)

    def draining(self, open_requests: int, grace_seconds: float) -> None:
        self.drains.append(open_requests)

    def ended(self, end: EngineEnd) -> None:
        self.ends.append(end)


@dataclass
class Running:
    server: Server
    link: ThreadEngine
    record: Record
    channel: grpc.aio.Channel
    stub: pb_grpc.InferenceStub

    @property
    def engine(self) -> FakeEngine:
        assert self.link.engine is not None
        return self.link.engine

    def received(self, kind: type) -> list[Any]:
        """The messages of a kind that reached the engine."""
        return [message for message in self.engine.received if isinstance(message, kind)]


def make_server(
    options: FakeOptions, *, with_tokenizer: bool = True, **config: Any
) -> tuple[Server, list[ThreadEngine], Record]:
    links: list[ThreadEngine] = []
    record = Record()

    def start() -> ThreadEngine:
        links.append(ThreadEngine(options.build))
        return links[-1]

    load = tokenizer if with_tokenizer else lambda: None
    return Server(ServerConfig(**{"port": 0, **config}), start, load, record), links, record


@contextlib.asynccontextmanager
async def serving(
    options: FakeOptions | None = None, *, ready: bool = True, with_tokenizer: bool = True, **config: Any
) -> AsyncIterator[Running]:
    """A server that is ready (or only started) and a channel to it. Keywords are ServerConfig's."""
    server, links, record = make_server(options or FakeOptions(), with_tokenizer=with_tokenizer, **config)
    await server.start()
    try:
        if ready:
            await server.wait_ready()
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield Running(server, links[0], record, channel, pb_grpc.InferenceStub(channel))
    finally:
        await server.stop()


def run(test: Coroutine[Any, Any, None]) -> None:
    """Runs an asynchronous test with a time limit."""
    asyncio.run(asyncio.wait_for(test, TIME_LIMIT))


def greedy(text: str = "hi", max_tokens: int = 8, **sampling: Any) -> pb.GenerateRequest:
    """A request that the fake answers with its script."""
    given = {"temperature": 0.0, "max_tokens": max_tokens, **sampling}
    return pb.GenerateRequest(text=text, sampling=pb.SamplingParams(**given))


@dataclass
class Collected:
    """A stream's events in order, and per sequence what they add up to."""

    events: list[pb.GenerateResponse] = field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        return [str(event.WhichOneof("event")) for event in self.events]

    @property
    def deltas(self) -> list[pb.GenerateResponse.Delta]:
        return [event.delta for event in self.events if event.HasField("delta")]

    def text(self, index: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas if delta.index == index)

    def token_ids(self, index: int = 0) -> list[int]:
        return [token for delta in self.deltas if delta.index == index for token in delta.token_ids]

    def end(self, index: int = 0) -> pb.GenerateResponse.Delta:
        """The delta with the sequence's finish reason, which must be its last."""
        own = [delta for delta in self.deltas if delta.index == index]
        assert [bool(delta.finish_reason) for delta in own] == [False] * (len(own) - 1) + [True]
        return own[-1]

    @property
    def usage(self) -> pb.Usage:
        assert self.kinds[-1] == "finished"
        return self.events[-1].finished.usage


async def collect(call: Any) -> Collected:
    """What is left of a stream, to its end. Raises the status that is not OK."""
    collected = Collected()
    while (event := await call.read()) is not grpc.aio.EOF:
        collected.events.append(event)
    return collected


async def status(call: Any) -> grpc.aio.AioRpcError:
    """The error that a call (unary or stream) must end with."""
    try:
        if hasattr(call, "read"):
            await collect(call)
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call ended with OK")


async def until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Waits for a condition that another task or thread brings about."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        assert loop.time() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)


def full_pipe() -> tuple[int, int]:
    """The reading end of a pipe that is full, and its writing end, whose writers wait."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x")
    os.set_blocking(writing, True)
    return reading, writing
