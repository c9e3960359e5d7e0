"""Tokens per second through HTTP and through gRPC of one server, in turns, and their ratio.

    python scripts/bench_http.py [MODEL] [--streams 32] [--tokens 128] [--rounds 5]

Starts the `jaxinfer` beside this Python. Each round streams the same greedy requests through one server, then through
the other; every event is parsed. The client shares the machine with server and engine, so both servers pay for it: the
ratio is what counts, not the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time

import grpc
from served import Served

from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc

BAR = 0.9  # HTTP's throughput, of gRPC's
PROMPT = "Once upon a time"


async def over_grpc(stub: pb_grpc.InferenceStub, tokens: int) -> int:
    sampling = pb.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    count = 0
    async for reply in stub.Generate(pb.GenerateRequest(text=PROMPT, sampling=sampling)):
        count += len(reply.delta.token_ids)
    return count


async def over_http(address: str, tokens: int) -> int:
    """A client with as little of its own as grpc's, whose parser is compiled."""
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True}
    data = json.dumps(body).encode()
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
    writer.write(b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
    usage = None
    async for line in reader:
        if line.startswith(b"data: {"):
            usage = json.loads(line[6:])["usage"] or usage
    writer.close()
    if usage is None:
        raise SystemExit("the HTTP server sent no usage")
    return int(usage["completion_tokens"])


async def measure(protocol: str, grpc_address: str, http_address: str, streams: int, tokens: int) -> float:
    async with grpc.aio.insecure_channel(grpc_address) as channel:
        stub = pb_grpc.InferenceStub(channel)
        began = time.perf_counter()
        if protocol == "gRPC":
            counts = await asyncio.gather(*(over_grpc(stub, tokens) for _ in range(streams)))
        else:
            counts = await asyncio.gather(*(over_http(http_address, tokens) for _ in range(streams)))
        took = time.perf_counter() - began
    if set(counts) != {tokens}:
        raise SystemExit(f"{protocol}: streams of {sorted(set(counts))} tokens instead of {tokens}")
    return streams * tokens / took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", help="default: the shipped demo")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    command = [sys.executable, "-m", "jaxinfer", "serve", "--port", "0", "--max-num-seqs", str(args.streams)]
    server = Served([*command, *args.model])
    speeds: dict[str, list[float]] = {"gRPC": [], "HTTP": []}
    try:
        for number in range(args.rounds + 1):
            for protocol, values in speeds.items():
                speed = asyncio.run(measure(protocol, server.grpc, server.http, args.streams, args.tokens))
                if number:  # the first round warms up
                    values.append(speed)
    finally:
        server.stop()
    for protocol, values in speeds.items():
        runs = " ".join(f"{value:.0f}" for value in values)
        print(f"{protocol}  median {statistics.median(values):.0f} tokens/s  (rounds: {runs})")
    ratios = [http / rpc for http, rpc in zip(speeds["HTTP"], speeds["gRPC"], strict=True)]
    print(f"HTTP / gRPC, round by round: median {statistics.median(ratios):.2f}  (bar {BAR})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
