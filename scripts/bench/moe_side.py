"""One engine of `bench_moe.py`, in a process of its own: runs what each line of standard input asks, prints its cost.

    python scripts/bench/moe_side.py MODEL [--touched]

A line is {"rows": 16, "prompt": 20, "steps": 40}: so many decode steps of so many requests; with "steps": 0 the time
from the first step of the prompts to their only token. The answer has seconds: `wall` and `process`, a step's (of a
prompt: all), and with --touched `touched`, how many experts a layer's real tokens went to, on average. Counting them
costs time, so that is a run of its own; prompts and greedy answers are the same, so the experts are, too.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.config import RuntimeConfig
from jaxinfer.engine import EngineLoop
from jaxinfer.llm import build_engine
from jaxinfer.messages import Submit
from jaxinfer.models.layers import moe
from jaxinfer.sampling_params import SamplingParams

WARM = 12  # steps before the clock runs: admission, and the first of each shape
LARGEST = 512  # tokens of a step
ROWS = 16
_LENGTH = 1024


def count_touched(counts: list[int]) -> None:
    """From here on every layer of experts that is run adds its number of experts that have tokens to `counts`."""
    original = moe._mixed

    def counted(expert: Any, count: int, x: jax.Array, chosen: jax.Array, *rest: Any) -> jax.Array:
        has = jnp.any(chosen.reshape(-1)[:, None] == jnp.arange(count), axis=0)
        jax.debug.callback(lambda number: counts.append(int(np.asarray(number))), jnp.sum(has))
        return original(expert, count, x, chosen, *rest)

    moe._mixed = counted  # type: ignore[assignment]


class Side:
    """An engine and where its stream of requests is."""

    def __init__(self, engine: EngineLoop) -> None:
        self.engine, self.rng, self.serial = engine, random.Random(0), 0

    def run(self, rows: int, prompt: int, steps: int) -> dict[str, float]:
        """See the module."""
        top = self.engine.info.vocab_size - 1
        for _ in range(rows):
            tokens = tuple(self.rng.randrange(5, top) for _ in range(prompt))
            params = SamplingParams(max_tokens=steps + 2 * WARM if steps else 1, temperature=0, ignore_eos=True)
            self.engine.scheduler.add(Submit(f"r{self.serial}", tokens, params, self.serial, 0, time.monotonic()))
            self.serial += 1
        for _ in range(WARM if steps else 0):
            self.engine.step()
        before = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self.engine.step()
        if not steps:
            self._finish()
        after = time.perf_counter(), time.process_time()
        self._finish()
        wall, process = ((end - begin) / max(steps, 1) for begin, end in zip(before, after, strict=True))
        return {"wall": wall, "process": process}

    def _finish(self) -> None:
        while self.engine.scheduler.has_unfinished or not self.engine.idle:
            self.engine.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--touched", action="store_true")
    args = parser.parse_args()
    counts: list[int] = []
    if args.touched:
        count_touched(counts)
    runtime = RuntimeConfig(
        max_num_seqs=ROWS,
        max_num_batched_tokens=LARGEST,
        max_model_len=_LENGTH,
        device="cpu",
        enable_prefix_caching=False,
    )
    side = Side(build_engine(args.model, runtime))
    for line in sys.stdin:
        counts.clear()
        found = side.run(**json.loads(line))
        jax.effects_barrier()
        if counts:
            found["touched"] = statistics.fmean(counts)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
