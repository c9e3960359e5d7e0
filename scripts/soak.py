"""Bad days for a real server, in one table: many streams of which some are cut off, streams that wait, and a long run.

    python scripts/soak.py [MODEL] [--streams 1000] [--cancelled 0.3] [--idle 1000] [--seconds 600] [--at-a-time 32]

Starts the `jaxinfer` beside this Python and uses both of its servers in equal parts.

streams  so many at once, from a seed some of them cancelled at a random event. Every other one must be what the same
         request gave alone; pages and file descriptors must be back.
idle     so many streams that wait for a place while others are being served: what one adds to the server's memory.
soak     requests of random shapes without pause, some of them cancelled: memory of both processes over time, the most
         that they had, and the compile counter.

0 leaves a part out. The exit code is 1 when one of the bars was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from served import Served

from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc

SLOTS = 32
PER_CHANNEL = 50  # gRPC streams of one connection
PROMPTS = ("Once upon a time", "What is 347 + 586?", "The quick brown fox", "Answer: ", "A", "In the year 1900")
WORDS = " ".join(PROMPTS).split()
IDLE_BAR = 50.0  # MB for 1,000 of them
SLOPE_BAR = 1.0  # MB a minute, from a quarter of a soak on
GROWTH_BAR = 3.0  # per cent of a process's memory, from the second quarter of a soak to the last


@dataclass(frozen=True)
class Ask:
    prompt: str
    seed: int
    tokens: int
    temperature: float
    logprobs: int | None = None  # of the answer
    prompt_logprobs: int | None = None  # over gRPC alone: a stream over HTTP has none


@dataclass
class Table:
    rows: list[tuple[str, str, str, bool | None]] = field(default_factory=list)

    def add(self, part: str, what: str, found: object, good: bool | None = None) -> None:
        self.rows.append((part, what, str(found), good))

    def show(self) -> int:
        verdicts = {True: "holds", False: "MISSED", None: ""}
        for part, what, found, good in self.rows:
            print(f"| {part:7} | {what:58} | {found:>32} | {verdicts[good]:6} |")
        return int(any(row[3] is False for row in self.rows))


class Serving(Served):
    """`jaxinfer serve` and what /proc and the servers say of it."""

    def __init__(self, model: list[str], waiting: int) -> None:
        command = [sys.executable, "-m", "jaxinfer", "serve", "--port", "0", *model, "--num-pages", "1024"]
        command += ["--max-num-seqs", str(SLOTS), "--max-waiting", str(waiting), "--log-level", "error"]
        super().__init__(command)
        self.pids = {"server": self.process.pid, "engine": self._engine_pid()}

    def _engine_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for path in children for pid in path.read_text().split()]
        return next(pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def megabytes(self, name: str) -> float:
        return self._status(name, "VmRSS")

    def peak(self, name: str) -> float:
        """The most that it ever had."""
        return self._status(name, "VmHWM")

    def _status(self, name: str, field: str) -> float:
        status = Path(f"/proc/{self.pids[name]}/status").read_text()
        return int(re.findall(rf"{field}:\s+(\d+)", status)[0]) / 1024

    def descriptors(self) -> dict[str, int]:
        return {name: len(list(Path(f"/proc/{pid}/fd").iterdir())) for name, pid in self.pids.items()}

    async def stats(self) -> pb.GetStatsResponse:
        async with grpc.aio.insecure_channel(self.grpc) as channel:
            reply: pb.GetStatsResponse = await pb_grpc.InferenceStub(channel).GetStats(pb.GetStatsRequest())
            return reply


async def over_grpc(stub: pb_grpc.InferenceStub, ask: Ask) -> AsyncIterator[str]:
    sampling = pb.SamplingParams(
        temperature=ask.temperature,
        max_tokens=ask.tokens,
        min_tokens=ask.tokens,
        seed=ask.seed,
        ignore_eos=True,
        logprobs=ask.logprobs,
        prompt_logprobs=ask.prompt_logprobs,
    )
    call = stub.Generate(pb.GenerateRequest(text=ask.prompt, sampling=sampling))
    try:
        async for reply in call:
            yield reply.delta.text
    finally:
        call.cancel()


async def over_http(address: str, ask: Ask) -> AsyncIterator[str]:
    body = {"prompt": ask.prompt, "temperature": ask.temperature, "max_tokens": ask.tokens, "seed": ask.seed}
    body |= {"logprobs": ask.logprobs, "min_tokens": ask.tokens, "ignore_eos": True, "stream": True}
    data = json.dumps(body).encode()
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        writer.write(b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
        last = b""
        async for line in reader:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])["choices"][0]["text"]
            elif line.startswith(b"data: [DONE]"):
                return
            last = line.strip() or last
        raise ConnectionError(f"the stream ended without [DONE]: {last.decode(errors='replace')}")
    finally:
        writer.transport.abort()


class Clients:
    """Both servers, one after the other; gRPC's streams are spread over several connections."""

    def __init__(self, serving: Serving, streams: int) -> None:
        self._serving = serving
        options = [("grpc.use_local_subchannel_pool", 1)]
        count = 1 + streams // 2 // PER_CHANNEL
        self._channels = [grpc.aio.insecure_channel(serving.grpc, options=options) for _ in range(count)]
        self._stubs = [pb_grpc.InferenceStub(channel) for channel in self._channels]

    def stream(self, number: int, ask: Ask) -> AsyncIterator[str]:
        if number % 2:
            return over_http(self._serving.http, ask)
        return over_grpc(self._stubs[number // 2 % len(self._stubs)], ask)

    async def text(self, number: int, ask: Ask, events: int | None = None) -> str | None:
        """A stream's text; None when it was cut off after `events` events."""
        text, stream = "", self.stream(number, ask)
        try:
            if events == 0:
                return None
            async for piece in stream:
                text += piece
                if events is not None and (events := events - 1) == 0:
                    return None
            return text
        finally:
            await stream.aclose()  # type: ignore[attr-defined]  # a generator

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        self._channels, self._stubs = [], []
        gc.collect()  # a closed channel keeps its connection while anything refers to it


def some_asks(rng: random.Random, count: int, tokens: int) -> list[Ask]:
    return [
        Ask(rng.choice(PROMPTS), rng.getrandbits(31), rng.randint(tokens // 2, tokens), rng.choice((0.0, 0.7, 1.0)))
        for _ in range(count)
    ]


def any_ask(rng: random.Random) -> Ask:
    """A prompt of one to some 500 tokens, short ones as often as long ones, and what else is computed with it."""
    prompt = " ".join(rng.choices(WORDS, k=int(2 ** rng.uniform(0, 8))))
    tokens = int(2 ** rng.uniform(0, 7))
    known = [rng.choice((None, None, None, 0, 3)) for _ in range(2)]
    return Ask(prompt, rng.getrandbits(31), tokens, rng.choice((0.0, 0.7, 1.0)), *known)


async def settled(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return condition()


async def back(serving: Serving) -> pb.GetStatsResponse:
    """The engine's state once nothing is open any more, or as it is after 30 s."""
    deadline = time.monotonic() + 30
    while (stats := await serving.stats()).open_requests and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    for _ in range(50):
        if (stats := await serving.stats()).free_pages == stats.total_pages:
            break
        await asyncio.sleep(0.1)
    return stats


async def many_streams(serving: Serving, table: Table, count: int, share: float, rng: random.Random) -> None:
    asks = some_asks(rng, max(1, count // 20), 32)
    alone = Clients(serving, 1)
    solo = [await alone.text(number, ask) for number, ask in enumerate(asks)]
    await alone.close()
    await back(serving)
    await asyncio.sleep(1)  # the last connections close
    before = serving.descriptors()
    clients = Clients(serving, count)
    cuts = [rng.randrange(16) if rng.random() < share else None for _ in range(count)]
    began = time.perf_counter()
    tasks = [clients.text(number, asks[number % len(asks)], cut) for number, cut in enumerate(cuts)]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    took = time.perf_counter() - began
    await clients.close()
    stats = await back(serving)
    failed = [text for text in found if isinstance(text, BaseException)]
    whole = [number for number, cut in enumerate(cuts) if cut is None]
    same = sum(found[number] == solo[number % len(asks)] for number in whole)
    table.add("streams", f"{count} at once in {took:.0f} s: failed", len(failed), not failed)
    table.add("streams", "complete and as alone, of those not cancelled", f"{same} of {len(whole)}", same == len(whole))
    table.add("streams", "cancelled", sum(cut is not None for cut in cuts))
    pages = f"{stats.free_pages} of {stats.total_pages}"
    table.add("streams", "pages that are back", pages, stats.free_pages == stats.total_pages)
    closed = await settled(lambda: all(serving.descriptors()[name] <= count for name, count in before.items()))
    shown = [", ".join(map(str, found.values())) for found in (before, serving.descriptors())]
    table.add("streams", "file descriptors of server, engine; and after", "; ".join(shown), closed)
    for error in failed[:3]:
        print(f"a stream failed: {error!r}", file=sys.stderr)


async def idle_streams(serving: Serving, table: Table, count: int) -> None:
    """All places are taken by long answers, so that the others wait."""
    clients = Clients(serving, count + SLOTS)
    busy = [asyncio.create_task(clients.text(i, Ask("A", i, 400, 1.0))) for i in range(SLOTS)]
    while (await serving.stats()).running < SLOTS:
        await asyncio.sleep(0.05)
    before = serving.megabytes("server")
    waiting = [asyncio.create_task(clients.text(i, Ask("B", i, 400, 1.0))) for i in range(count)]
    deadline = time.monotonic() + 60
    while (await serving.stats()).open_requests < count and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    stats = await serving.stats()
    cost = serving.megabytes("server") - before
    for task in (*busy, *waiting):
        task.cancel()
    await asyncio.gather(*busy, *waiting, return_exceptions=True)
    await clients.close()
    await back(serving)
    table.add("idle", "streams open, of which waiting", f"{stats.open_requests}, {stats.waiting}")
    bar = IDLE_BAR * max(count, 100) / 1000
    table.add("idle", f"MB that they cost the server (bar {bar:.0f})", f"{cost:.1f}", cost < bar)


async def soak(serving: Serving, table: Table, seconds: float, at_a_time: int, rng: random.Random) -> None:
    clients = Clients(serving, at_a_time)
    memory: dict[str, list[float]] = {name: [] for name in serving.pids}
    minutes: list[float] = []
    end, first = time.monotonic() + seconds, await serving.stats()
    done = 0

    async def client(number: int) -> None:
        nonlocal done
        own = random.Random(rng.getrandbits(32))
        while time.monotonic() < end:
            cut = own.randrange(16) if own.random() < 0.1 else None
            await clients.text(number, any_ask(own), cut)
            done += 1

    async def watch() -> None:
        while time.monotonic() < end:
            minutes.append(time.monotonic() / 60)
            for name, values in memory.items():
                values.append(serving.megabytes(name))
            await asyncio.sleep(seconds / 200)

    await asyncio.gather(watch(), *(client(number) for number in range(at_a_time)))
    await clients.close()
    last = await back(serving)
    tokens = last.generated_tokens - first.generated_tokens
    table.add("soak", f"{seconds:.0f} s: requests, tokens, steps", f"{done}, {tokens}, {last.steps - first.steps}")
    for name, values in memory.items():
        size = max(1, len(values) // 4)
        quarters = [statistics.median(values[i * size : (i + 1) * size]) for i in range(4)]
        growth = 100 * (quarters[3] - quarters[1]) / quarters[1]
        what = f"MB of the {name} by quarters (2nd to 4th below {GROWTH_BAR:.0f} %)"
        shown = " ".join(f"{value:.1f}" for value in quarters)
        table.add("soak", what, f"{shown} {growth:+.1f} %", growth < GROWTH_BAR)
        slope = statistics.linear_regression(minutes[size:], values[size:]).slope
        what = f"MB a minute of the {name} (below {SLOPE_BAR:g})"
        table.add("soak", what, f"{slope:+.2f}, at most {serving.peak(name):.0f} MB", slope < SLOPE_BAR)
    compiled = last.compilations_after_ready
    table.add("soak", "compilations after ready", compiled, compiled == 0)
    pages = f"{last.free_pages} of {last.total_pages}"
    table.add("soak", "pages that are back", pages, last.free_pages == last.total_pages)


async def run(serving: Serving, args: argparse.Namespace, table: Table) -> None:
    rng = random.Random(args.seed)
    if args.streams:
        await many_streams(serving, table, args.streams, args.cancelled, rng)
    if args.idle:
        await idle_streams(serving, table, args.idle)
    if args.seconds:
        await soak(serving, table, args.seconds, args.at_a_time, rng)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", help="default: the shipped demo")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--cancelled", type=float, default=0.3, help="share of them")
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600.0, help="of the soak")
    parser.add_argument("--at-a-time", type=int, default=SLOTS, help="requests of the soak")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    table = Table()
    serving = Serving(args.model, args.streams + args.idle + SLOTS)
    try:
        asyncio.run(run(serving, args, table))
    finally:
        code = serving.stop()
    table.add("end", "exit code after SIGTERM", code, code == 0)
    return table.show()


if __name__ == "__main__":
    sys.exit(main())
