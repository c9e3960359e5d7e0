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

from jaxinfer.config import RuntimeConfig
from jaxinfer.engine import EngineLoop
from jaxinfer.llm import build_engine
from jaxinfer.messages import Submit
from jaxinfer.runtime.expert_counts import ExpertCounts
from jaxinfer.runtime.runner import Runner
from jaxinfer.sampling_params import SamplingParams

WARM = 12  # steps before the clock runs: admission, and the first of each shape
LARGEST = 512  # tokens of a step
ROWS = 16
_LENGTH = 1024


class Touched:
    """How many experts have tokens in each layer of each step. Asking waits for the step."""

    def __init__(self, counts: ExpertCounts) -> None:
        self.numbers: list[int] = []
        self._counts, self._before = counts, counts.now()

    def look(self) -> None:
        """After each step that was dispatched."""
        now = self._counts.now()
        self.numbers += [sum(n > 0 for n in row) for row in now.since(self._before).tokens if any(row)]
        self._before = now


class Side:
    """An engine and where its stream of requests is. touched: looks after each step."""

    def __init__(self, engine: EngineLoop, touched: Touched | None = None) -> None:
        self.engine, self.rng, self.serial = engine, random.Random(0), 0
        self._touched = touched

    def run(self, rows: int, prompt: int, steps: int) -> dict[str, float]:
        """See the module."""
        top = self.engine.info.vocab_size - 1
        for _ in range(rows):
            tokens = tuple(self.rng.randrange(5, top) for _ in range(prompt))
            params = SamplingParams(max_tokens=steps + 2 * WARM if steps else 1, temperature=0, ignore_eos=True)
            self.engine.scheduler.add(Submit(f"r{self.serial}", tokens, params, self.serial, 0, time.monotonic()))
            self.serial += 1
        for _ in range(WARM if steps else 0):
            self._step()
        before = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self._step()
        if not steps:
            self._finish()
        after = time.perf_counter(), time.process_time()
        self._finish()
        wall, process = ((end - begin) / max(steps, 1) for begin, end in zip(before, after, strict=True))
        return {"wall": wall, "process": process}

    def _step(self) -> None:
        self.engine.step()
        if self._touched is not None:
            self._touched.look()

    def _finish(self) -> None:
        while self.engine.scheduler.has_unfinished or not self.engine.idle:
            self._step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--touched", action="store_true")
    args = parser.parse_args()
    runtime = RuntimeConfig(
        max_num_seqs=ROWS,
        max_num_batched_tokens=LARGEST,
        max_model_len=_LENGTH,
        device="cpu",
        enable_prefix_caching=False,
    )
    engine = build_engine(args.model, runtime)
    assert isinstance(engine.runner, Runner)
    counts = engine.runner.expert_counts
    touched = Touched(counts) if args.touched and counts is not None else None
    side = Side(engine, touched)
    for line in sys.stdin:
        found = side.run(**json.loads(line))
        if touched is not None:
            found["touched"] = statistics.fmean(touched.numbers)
            touched.numbers.clear()
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
