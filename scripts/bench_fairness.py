"""What a flood by one tenant does to another on a live server, and what two greedy tenants get of it.

    python scripts/bench_fairness.py [--rate 1.0] [--flood 64] [--seconds 20] [--rounds 3] [MODEL, options of serve]

Starts the `jaxinfer` beside this Python with a file of keys. In each round the victim sends requests at a steady mean
rate (Poisson), first beside a neighbour that does the same, then beside one that keeps `--flood` requests under way;
printed are its times to the first token and their ratio. Then both tenants are greedy, and Jain's index of the tokens
that they got is printed. Times are real ones: a step beside a flood is larger than one without, and that is in them.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

import grpc
from served import Served

from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from serving.access.keys import KeyLimits, add_key

BAR_TTFT, BAR_JAIN = 1.3, 0.95
WORDS = ["once", "upon", "a", "time", "there", "was", "a", "small", "grey", "bird", "that", "could", "not", "sing"]


class Client:
    """A tenant's requests. tokens: what it got; waits: seconds to each first token."""

    def __init__(self, stub: pb_grpc.InferenceStub, key: str, seed: int) -> None:
        self._stub, self._metadata = stub, (("authorization", f"Bearer {key}"),)
        self._rng = random.Random(seed)
        self.tokens, self.waits = 0, list[float]()

    async def ask(self) -> None:
        prompt = " ".join(self._rng.choices(WORDS, k=self._rng.randint(10, 80)))
        sampling = pb.SamplingParams(temperature=0, max_tokens=self._rng.randint(8, 48), ignore_eos=True)
        began, first = time.monotonic(), 0.0
        async for event in self._stub.Generate(
            pb.GenerateRequest(text=prompt, sampling=sampling), metadata=self._metadata
        ):
            if event.HasField("delta"):
                first = first or time.monotonic()
                self.tokens += len(event.delta.token_ids)
        self.waits.append(first - began)

    async def steadily(self, rate: float, seconds: float) -> None:
        end, tasks = time.monotonic() + seconds, []
        while time.monotonic() < end:
            tasks.append(asyncio.create_task(self.ask()))
            await asyncio.sleep(self._rng.expovariate(rate))
        await asyncio.gather(*tasks)

    async def greedily(self, streams: int, seconds: float) -> None:
        async def again() -> None:
            while True:
                await self.ask()

        tasks = [asyncio.create_task(again()) for _ in range(streams)]
        await asyncio.wait(tasks, timeout=seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


async def measure(address: str, keys: list[str], arguments: argparse.Namespace) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.InferenceStub(channel)
        calm, flooded = list[float](), list[float]()
        seconds, rate = arguments.seconds, arguments.rate
        for round_ in range(arguments.rounds):
            for beside_flood, waits in ((False, calm), (True, flooded)):
                neighbour, victim = Client(stub, keys[0], 2 * round_), Client(stub, keys[1], 2 * round_ + 1)
                other = (
                    neighbour.greedily(arguments.flood, seconds) if beside_flood else neighbour.steadily(rate, seconds)
                )
                await asyncio.gather(other, victim.steadily(rate, seconds))
                waits += victim.waits
        for share in (0.5, 0.99):
            before, after = percentile(calm, share), percentile(flooded, share)
            print(f"time to first token, p{100 * share:g}: {1000 * before:.1f} ms beside a neighbour of its kind,")
            print(f"  {1000 * after:.1f} ms beside a flood: x {after / before:.2f} (p99 may be x {BAR_TTFT})")
        pair = [Client(stub, key, 100 + i) for i, key in enumerate(keys)]
        await asyncio.gather(*(client.greedily(arguments.flood, seconds) for client in pair))
        got = [client.tokens for client in pair]
        index = sum(got) ** 2 / (2 * sum(tokens**2 for tokens in got))
        print(f"two greedy tenants got {got[0]} and {got[1]} tokens: Jain's index {index:.3f} (at least {BAR_JAIN})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Everything else goes to `jaxinfer serve`."
    )
    parser.add_argument("--rate", type=float, default=1.0, help="the steady tenants' requests a second")
    parser.add_argument("--flood", type=int, default=64, help="requests that a greedy tenant keeps under way")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each part of a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.toml"
        keys = [add_key(path, tenant, ["infer"], KeyLimits())[0] for tenant in ("neighbour", "victim")]
        command = [sys.executable, "-m", "jaxinfer", "serve", "--port", "0", "--http-port", "none", *more]
        server = Served([*command, "--api-keys", str(path)])
        try:
            asyncio.run(measure(server.grpc, keys, arguments))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
