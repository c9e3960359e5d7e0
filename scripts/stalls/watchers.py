"""The others, in a process of their own: clients that stream, and one that asks for /health all the time."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

_PROBE_SECONDS = 0.01
_TOKENS = 4000


class Watchers:
    """The handle. `window` gives what was seen since the last call, in seconds: `probes` and `gaps` between tokens."""

    def __init__(self, address: str, streams: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs, address, streams), daemon=True)
        self._process.start()
        theirs.close()

    def window(self) -> dict[str, list[float]]:
        self._ours.send("window")
        if not self._ours.poll(120):
            raise SystemExit("the watching clients say nothing")
        found: dict[str, list[float]] = self._ours.recv()
        return found

    def stop(self) -> None:
        self._process.terminate()
        self._process.join()


def _main(pipe: Connection, address: str, streams: int) -> None:
    asyncio.run(_watch(pipe, address, streams))


async def _watch(pipe: Connection, address: str, streams: int) -> None:
    seen: dict[str, list[float]] = {"probes": [], "gaps": []}

    def answer() -> None:
        pipe.recv()
        pipe.send({name: list(values) for name, values in seen.items()})
        for values in seen.values():
            values.clear()

    asyncio.get_running_loop().add_reader(pipe.fileno(), answer)
    host, port = address.rsplit(":", 1)
    clients = [_stream(host, int(port), seen["gaps"]) for _ in range(streams)]
    await asyncio.gather(_probe(host, int(port), seen["probes"]), *clients)


async def _probe(host: str, port: int, seen: list[float]) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    while True:
        began = time.monotonic()
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        seen.append(time.monotonic() - began)
        await asyncio.sleep(_PROBE_SECONDS)


async def _stream(host: str, port: int, seen: list[float]) -> None:
    """One request after the other."""
    body: dict[str, Any] = {"prompt": "hi", "temperature": 0, "max_tokens": _TOKENS, "ignore_eos": True, "stream": True}
    data = json.dumps(body).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    while True:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(head + b"content-length: %d\r\n\r\n" % len(data) + data)
        last = 0.0
        async for line in reader:
            if line.startswith(b"data: {"):
                now = time.monotonic()
                if last:
                    seen.append(now - last)
                last = now
        writer.close()
