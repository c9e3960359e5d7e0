"""Measures what one call of `Scheduler.schedule` takes on the host, without model or device, and prints one table.

    python scripts/bench_scheduler.py [--steps 1000] [--waiting 1000] [--pages 500000] [--json FILE]

256 sequences run and 1,000 prompts of 16,384 tokens wait, the first half of each in the prefix cache, no two alike.
What they wait for differs:
  slots     every slot is taken
  pages     slots are free, but the next prompt does not fit the pages that are left
  budget    slots and pages are free, but the running rows take every token of a step
  nothing   rows end all the time and prompts come in
with one tenant and with four, pages of 16 and of 64. Milliseconds are CPU time of the thread, so that a busy machine
counts less; the bar is 1.2 ms for the p99.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from jaxinfer.messages import Submit
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.scheduler import Scheduler, SchedulerLimits
from jaxinfer.scheduling.step_plan import StepPlan, StepResult

BAR_MS = 1.2  # p99 of schedule() at 256 running rows
RUNNING = 256
PROMPT = 16_384
SIZES = {"steps": 1000, "waiting": 1000, "num_pages": 500_000}
_TOKENS = list(range(30_000))  # one object for each id: a million ints would be 30 MB
WAITS_FOR = ("slots", "pages", "budget", "nothing")


@dataclass(frozen=True)
class Setting:
    """waits_for: one of WAITS_FOR. cached: tokens of each waiting prompt that are in the prefix cache."""

    waits_for: str
    tenants: int = 1
    page_size: int = 16
    num_pages: int = 500_000
    waiting: int = 1000
    prompt: int = PROMPT
    running: int = RUNNING
    seed: int = 0

    @property
    def cached(self) -> int:
        return self.prompt // 2


class Load:
    """A scheduler in a setting. `step` plans one step, pretends that the device ran it, and says how long planning
    took."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._rng = random.Random(setting.seed)
        slots = setting.running * (1 if setting.waits_for in ("slots", "nothing") else 2)
        budget = setting.running if setting.waits_for == "budget" else 8 * setting.running
        limits = SchedulerLimits(slots, budget, 3 * setting.prompt, eos_token_ids=(2,))
        self.scheduler = Scheduler(limits, PagePool(setting.num_pages, setting.page_size))
        self._before: StepPlan | None = None
        self._serial = 0
        for _ in range(setting.running):
            self._submit(tuple(self._rng.choices(_TOKENS, k=self._rng.randrange(64, 192))), self._output())
        while len(self.scheduler._running) < setting.running or self._prefilling():
            self.step()
        for _ in range(setting.waiting):
            self.submit_long()
        if setting.waits_for == "pages":
            pool = self.scheduler.pool
            pool.allocate(max(0, pool.available - setting.prompt // setting.page_size // 2))

    def _output(self) -> int:
        """Where rows end all the time, one of them does in about every step."""
        return self._rng.randrange(16, 2 * self.setting.running) if self.setting.waits_for == "nothing" else 8_000

    def _prefilling(self) -> bool:
        return any(s.num_tokens - s.num_computed > 1 for s in self.scheduler._running)

    def submit_long(self) -> None:
        """One more waiting prompt, its first half cached as far as the pool has room beside the running ones."""
        prompt = tuple(self._rng.choices(_TOKENS, k=self.setting.prompt))
        pool, size = self.scheduler.pool, self.setting.page_size
        count = self.setting.cached // size
        if len(pool._free) - count > 100 * self.setting.running:
            node, pages = pool.prefixes.root(("", 0)), pool.allocate(count)
            for i, page in enumerate(pages):
                node = pool.prefixes.child(node, prompt[i * size : (i + 1) * size])
                pool.publish(page, node)
            pool.release(reversed(pages))
        self._submit(prompt, self._output())

    def _submit(self, prompt: tuple[int, ...], max_tokens: int) -> None:
        self._serial += 1
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        tenant = f"t{self._serial % self.setting.tenants}"
        self.scheduler.add(Submit(f"r{self._serial}", prompt, params, 0, 0, float(self._serial), "", tenant))

    def step(self) -> float:
        """Seconds of CPU time that `schedule` took."""
        begin = time.thread_time()
        plan = self.scheduler.schedule()
        took = time.thread_time() - begin
        if self._before:
            self.scheduler.update(self._before, StepResult([[5]] * len(self._before.rows)))
        self._before = plan
        return took


def measure(setting: Setting, steps: int) -> dict[str, Any]:
    load = Load(setting)
    gc.collect()
    gc.freeze()  # as the engine's process does once it is ready
    arriving = 0
    spent = []
    for _ in range(steps):
        spent.append(1e3 * load.step())
        while load.scheduler.num_waiting < setting.waiting and arriving < steps:
            arriving += 1
            load.submit_long()
    p50, p99 = (float(value) for value in np.percentile(spent, [50, 99]))
    gc.unfreeze()
    return {
        "waits_for": setting.waits_for,
        "tenants": setting.tenants,
        "page_size": setting.page_size,
        "p50_ms": p50,
        "p99_ms": p99,
        "max_ms": max(spent),
        "of_bar": p99 / BAR_MS,
    }


def run(steps: int, waiting: int, num_pages: int) -> list[dict[str, Any]]:
    """Every setting; prints a table and returns its rows."""
    rows = [
        measure(Setting(waits_for, tenants, page_size, num_pages, waiting), steps)
        for waits_for in WAITS_FOR
        for tenants in (1, 4)
        for page_size in (16, 64)
    ]
    table = Table("waits for", "tenants", "page", "p50 ms", "p99 ms", "max ms", f"p99 / {BAR_MS} ms")
    for r in rows:
        figures = [f"{r[name]:.3f}" for name in ("p50_ms", "p99_ms", "max_ms")]
        table.add_row(r["waits_for"], str(r["tenants"]), str(r["page_size"]), *figures, f"{r['of_bar']:.2f}")
    Console(width=110).print(table)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=SIZES["steps"])
    parser.add_argument("--waiting", type=int, default=SIZES["waiting"])
    parser.add_argument("--pages", type=int, default=SIZES["num_pages"])
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    rows = run(args.steps, args.waiting, args.pages)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))
    return int(any(row["of_bar"] > 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
