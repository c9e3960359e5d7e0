"""Clients in a process of their own: some read their answers as they come, the others wait for the whole.

    python -m scripts.host.clients PROTOCOL ADDRESS STREAMS WHOLE TOKENS COUNTERS

Every event is parsed, by compiled code, so that the clients take little from the machine that they share.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import grpc
import msgspec

from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc

from .counters import Counters

PROMPT = "once"
_PER_CHANNEL = 64  # gRPC streams of one connection


class _Choice(msgspec.Struct):
    text: str


class _Event(msgspec.Struct):
    choices: list[_Choice]


_decode = msgspec.json.Decoder(_Event).decode


class Counting:
    """Tokens and replies that streaming clients got; written once in a while."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.tokens = self.replies = 0

    async def write(self) -> None:
        while True:
            self._counters.set("tokens", self.tokens)
            self._counters.set("replies", self.replies)
            await asyncio.sleep(0.02)


async def over_grpc(stub: pb_grpc.InferenceStub, tokens: int, counting: Counting | None) -> None:
    sampling = pb.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    request = pb.GenerateRequest(text=PROMPT, sampling=sampling, final_only=counting is None)
    async for reply in stub.Generate(request):
        if counting is not None and reply.HasField("delta"):
            counting.tokens += len(reply.delta.token_ids)
            counting.replies += 1


class _Events(asyncio.Protocol):
    """One HTTP answer."""

    def __init__(self, request: bytes, counting: Counting | None) -> None:
        self._request, self._counting = request, counting
        self._rest = b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._counting is None:
            return
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data: {"):
                choices = _decode(line[6:]).choices
                self._counting.tokens += sum(len(choice.text) for choice in choices)
                self._counting.replies += 1

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def over_http(address: str, tokens: int, counting: Counting | None) -> None:
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    data = json.dumps({**body, "stream": counting is not None}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    request = head + b"content-length: %d\r\n\r\n" % len(data) + data
    host, port = address.rsplit(":", 1)
    loop = asyncio.get_running_loop()
    _, events = await loop.create_connection(lambda: _Events(request, counting), host, int(port))
    await events.ended


async def run(protocol: str, address: str, streams: int, whole: int, tokens: int, counters: Counters) -> None:
    counting = Counting(counters)
    readers = [counting] * streams + [None] * whole
    writing = asyncio.create_task(counting.write())
    if protocol == "HTTP":
        await asyncio.gather(*(over_http(address, tokens, reader) for reader in readers))
    else:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            grpc.aio.insecure_channel(address, options=options) for _ in range(-(-len(readers) // _PER_CHANNEL))
        ]
        stubs = [pb_grpc.InferenceStub(channel) for channel in channels]
        await asyncio.gather(*(over_grpc(stubs[i // _PER_CHANNEL], tokens, reader) for i, reader in enumerate(readers)))
        for channel in channels:
            await channel.close()
    writing.cancel()


def main(argv: list[str]) -> int:
    protocol, address, streams, whole, tokens, path = argv
    asyncio.run(run(protocol, address, int(streams), int(whole), int(tokens), Counters(Path(path))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
