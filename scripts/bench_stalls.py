"""Whether one client can stall the others: what they see while it sends the worst request of each kind.

    python scripts/bench_stalls.py [--only WORD] [--tokenizer bpe|bytes] [--seconds 4] [--json FILE]

Starts a server whose engine is the tests' scripted one, 20 ms a step and asleep meanwhile, 16 clients that stream and
one that asks for /health all the time. Three figures are judged for each kind of request:

- the probe's 99th percentile, at most 100 ms;
- the time between two tokens of the others, its 99th percentile beside that of the same run's quiet beginning, at most
  1.5 of it;
- the longest stall of the server's event loop, at most 50 ms: see scripts/stalls/server.py for how other work on the
  machine is kept out of it.

Server, watching clients and the hostile one have a process each. The hostile one rests after each request for as long
as that took, since sending takes a core as answering does; with fewer than four cores to spare the first two figures
are still of the machine more than of the server. Exits with 1 when one is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the engine is the tests'

from stalls import kinds, model  # noqa: E402
from stalls.kinds import Kind, Sent  # noqa: E402
from stalls.started import StallServer  # noqa: E402
from stalls.watchers import Watchers  # noqa: E402

from tests.fakes import FakeOptions  # noqa: E402

STREAMS = 16
PROBE_BAR, RATIO_BAR, STALL_BAR = 0.1, 1.5, 0.05
_REQUEST_SECONDS = 300.0


@dataclass(frozen=True)
class Result:
    """Of one kind. Seconds, but for the ratio. answers: how many requests ended how."""

    kind: str
    probe_p50: float
    probe_p99: float
    probe_max: float
    gap_p99: float
    ratio: float
    stall: float
    answers: dict[str, int]

    @property
    def passed(self) -> bool:
        return self.probe_p99 <= PROBE_BAR and self.ratio <= RATIO_BAR and self.stall <= STALL_BAR

    def __str__(self) -> str:
        probe = " ".join(f"{1000 * value:7.1f}" for value in (self.probe_p50, self.probe_p99, self.probe_max))
        gap = f"{1000 * self.gap_p99:7.1f} {self.ratio:6.2f}"
        answers = ", ".join(f"{count} x {answer}" for answer, count in sorted(self.answers.items()))
        return f"{self.kind:22} {probe} {gap} {1000 * self.stall:7.1f}  {'pass' if self.passed else 'FAIL'}  {answers}"


HEADINGS = f"{'':22} {'probe, ms':>23} {'tokens, ms':>14} {'stall':>7}\n" + (
    f"{'kind':22} {'p50':>7} {'p99':>7} {'max':>7} {'p99':>7} {'ratio':>6} {'max, ms':>7}"
)


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


async def send(server: StallServer, sent: Sent) -> str:
    """What became of it: a status."""
    async with asyncio.timeout(_REQUEST_SECONDS):
        return await (_send_grpc if sent.over_grpc else _send_http)(server, sent)


async def _send_http(server: StallServer, sent: Sent) -> str:
    host, port = server.http.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {sent.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    try:
        writer.write(f"{head}content-length: {len(sent.data)}\r\n\r\n".encode())
        writer.write(sent.data)
        await writer.drain()
        status = (await reader.readline()).split()[1].decode()
        while await reader.read(1 << 20):
            pass
    finally:
        writer.close()
    return status


async def _send_grpc(server: StallServer, sent: Sent) -> str:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(server.grpc, options=options) as channel:
        try:
            call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(sent.path)
            async for _ in call(sent.data):
                pass
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
    return "OK"


async def measure(server: StallServer, watchers: Watchers, kind: Kind | None, seconds: float, quiet: float) -> Result:
    """kind: None measures quiet. quiet: the quiet 99th percentile between tokens; 0: not known yet."""
    sent = None if kind is None else kind.make()
    watchers.window()
    server.stalls()
    answers: dict[str, int] = {}
    until = time.monotonic() + seconds
    if kind is None or sent is None:
        await asyncio.sleep(seconds)
    else:
        while time.monotonic() < until:
            begun = time.monotonic()
            for answer in await asyncio.gather(*(send(server, sent) for _ in range(kind.times))):
                answers[answer] = answers.get(answer, 0) + 1
            await asyncio.sleep(time.monotonic() - begun)  # see above: sending takes a core, too
    seen, stalls = watchers.window(), server.stalls()
    gap = percentile(seen["gaps"], 99)
    return Result(
        "quiet" if kind is None else kind.name,
        percentile(seen["probes"], 50),
        percentile(seen["probes"], 99),
        max(seen["probes"]),
        gap,
        gap / quiet if quiet else 1.0,
        stalls["worst"][0],
        answers,
    )


async def measure_all(server: StallServer, watchers: Watchers, chosen: list[Kind], seconds: float) -> list[Result]:
    await asyncio.sleep(2)  # until all of the streams run
    results = [await measure(server, watchers, None, 2 * seconds, 0.0)]
    print(HEADINGS)
    print(results[0], flush=True)
    for kind in chosen:
        await asyncio.sleep(0.5)
        results.append(await measure(server, watchers, kind, seconds, results[0].gap_p99))
        print(results[-1], flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="WORD", help="kinds with this in their names")
    parser.add_argument("--tokenizer", choices=("bpe", "bytes"), default="bpe")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each kind, at least")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--explain", type=Path, metavar="FILE", help="write there where the stalls were")
    arguments = parser.parse_args()
    if arguments.explain is not None:
        os.environ["STALLS_EXPLAIN"] = "0.03"
    chosen = [k for k in kinds.kinds(bpe=arguments.tokenizer == "bpe") if (arguments.only or "") in k.name]
    if not chosen:
        parser.error(f"--only is {arguments.only!r}; no kind has that in its name")
    options = FakeOptions(
        step_seconds=0.02,
        max_num_seqs=256,
        max_model_len=model.MAX_MODEL_LEN,
        num_pages=1 << 24,
        vocab_size=model.vocab_size(arguments.tokenizer),
    )
    with tempfile.TemporaryDirectory() as folder:
        model.write(Path(folder), arguments.tokenizer)
        names = ("--served-model-name", "stalls", "--log-level", "error")
        server = StallServer(Path(folder), options, *names)
        watchers = Watchers(server.http, STREAMS)
        try:
            results = asyncio.run(measure_all(server, watchers, chosen, arguments.seconds))
        finally:
            watchers.stop()
            server.stop()
        if arguments.explain is not None:
            arguments.explain.write_text(server.said())
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([{**asdict(r), "passed": r.passed} for r in results], indent=2) + "\n")
    missed = [result.kind for result in results[1:] if not result.passed]
    print(f"{len(results) - 1 - len(missed)} of {len(results) - 1} kinds pass" + (f"; not {missed}" if missed else ""))
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
