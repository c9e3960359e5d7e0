"""Measures the engine offline on one model and prints one table.

    python scripts/bench_engine.py [MODEL] [--settings float32,int8] [--out-tokens 64] [--json FILE]

MODEL is a folder (`scripts/make_random_model.py` makes one of a given shape). A setting is auto, float32, bfloat16 or a
quantization scheme; of several, each runs in turn, and a ratio compares it with the first.

Workloads, all greedy with end-of-sequence ignored, best of two runs after a warm one:
  single   1 request, 16 tokens in          batch16  16 requests at once, 128 tokens in
  batch64  64 requests at once, 128 in
For each: output tokens per second, milliseconds a step, padding waste (tokens computed for nothing), how much of the
memory-bound limit a decode step reaches (weight bytes over the measured read bandwidth of this machine), and backend
compilations after ready, which must be 0. Then the host's cost of schedule + pack + update at 64 and 256 running rows
on a pretended device, with stop ids, penalties and page growth in every row; and what schedule() takes while long
prompts wait (`bench_scheduler.py`, which alone needs no model).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bench_scheduler
from rich.console import Console
from rich.table import Table

from jaxinfer import LLM, SamplingParams
from jaxinfer.messages import Submit
from jaxinfer.quantization import SCHEMES
from jaxinfer.runtime.buckets import make_ladder, pick_bucket
from jaxinfer.runtime.inputs import SlotSizes
from jaxinfer.runtime.packing import Packer
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.scheduler import Scheduler, SchedulerLimits
from jaxinfer.scheduling.step_plan import StepPlan, StepResult
from serving.bench.bandwidth import host_read_bandwidth

WORKLOADS = {"single": (1, 16), "batch16": (16, 128), "batch64": (64, 128)}  # name: (requests, prompt tokens)
HOST_BARS_MS = {64: 0.4, 256: 1.2}  # p99 of schedule + pack + update


def run_workload(llm: LLM, name: str, out_tokens: int, weight_bytes: int, bandwidth: float) -> dict[str, Any]:
    count, length = WORKLOADS[name]
    rng = random.Random(0)
    params = SamplingParams(temperature=0, max_tokens=out_tokens, ignore_eos=True)
    top = min(llm.info.vocab_size, 15000)
    best: dict[str, Any] = {}
    for attempt in range(3):
        prompts = [[rng.randrange(min(300, top // 2), top) for _ in range(length)] for _ in range(count)]
        before = llm.stats()
        begin = time.perf_counter()
        outputs = llm.generate(prompts, params)
        seconds = time.perf_counter() - begin
        after = llm.stats()
        assert all(len(o.outputs[0].token_ids) == out_tokens for o in outputs)
        steps = after.steps - before.steps
        padded = after.padded_tokens - before.padded_tokens
        scheduled = after.scheduled_tokens - before.scheduled_tokens
        if attempt and (not best or seconds < best["seconds"]):
            best = {
                "workload": name,
                "seconds": seconds,
                "output_tok_s": count * out_tokens / seconds,
                "step_ms": 1e3 * seconds / steps,
                "padding": padded / (padded + scheduled),
                "of_memory_limit": weight_bytes / bandwidth * steps / seconds,
                "compilations": after.compilations_after_ready,
            }
    return best


def host_cost(rows: int, steps: int = 1200) -> dict[str, Any]:
    """Milliseconds a step of schedule + pack + update with `rows` running rows, no device; and the bytes that a step of
    decoding sends to it."""
    budget = max(512, rows)
    scheduler = Scheduler(SchedulerLimits(rows, budget, 4096, eos_token_ids=(2,)), PagePool(rows * 40 + 2, 64))
    packer = Packer(SlotSizes(rows, 64, 64), 32_000, 512)
    ladder = make_ladder(budget, rows, platform="gpu", batch_invariant=True)
    rng = random.Random(0)
    for i in range(rows):
        prompt = tuple(rng.randrange(3, 30_000) for _ in range(100 + i % 64))
        params = SamplingParams(
            max_tokens=2000, stop_token_ids=(5, 6), repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.1
        )
        scheduler.add(Submit(f"r{i}", prompt, params, i, 0, float(i)))
    spent: list[float] = []
    previous: StepPlan | None = None
    while len(spent) < steps:
        tokens = [[rng.randrange(10, 100)] for _ in range(rows)]
        begin = time.perf_counter()
        plan = scheduler.schedule()
        packed = packer.pack(plan, pick_bucket(ladder, plan.num_tokens))
        packer.pack_admissions(plan)
        if previous is not None:
            scheduler.update(previous, StepResult(tokens[: len(previous.rows)]))
        took = time.perf_counter() - begin
        previous = plan
        if plan.num_tokens == len(plan.rows) == rows:
            spent.append(1e3 * took)
    p50, p99 = np.percentile(spent, [50, 99])
    return {
        "rows": rows,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "bar_ms": HOST_BARS_MS[rows],
        "sent_bytes": packed.nbytes,
    }


def run_setting(args: argparse.Namespace, setting: str, names: list[str], bandwidth: float) -> dict[str, Any]:
    """All workloads with one engine, printed as a table."""
    scheme = setting if setting in SCHEMES else None
    begin = time.perf_counter()
    with LLM(
        args.model,
        dtype="auto" if scheme else setting,
        quantization=scheme,
        max_model_len=args.max_model_len,
        enable_prefix_caching=False,
    ) as llm:
        load = time.perf_counter() - begin
        weight_bytes = llm.info.extra["weight_bytes"]
        rows = [run_workload(llm, name, args.out_tokens, weight_bytes, bandwidth) for name in names]
        Console(width=110).print(
            f"{llm.model_path.name}, {setting}: activations {llm.info.dtype}, weights {weight_bytes / 1e6:.0f} MB, "
            f"{llm.info.device}, ready in {load:.1f} s, read bandwidth {bandwidth / 1e9:.0f} GB/s"
        )
    show(rows)
    return {"setting": setting, "load_seconds": load, "weight_bytes": weight_bytes, "workloads": rows}


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("workload", "output tok/s", "ms a step", "padding", "of memory limit", "compilations")
    for r in rows:
        table.add_row(
            r["workload"],
            f"{r['output_tok_s']:.1f}",
            f"{r['step_ms']:.1f}",
            f"{r['padding']:.0%}",
            f"{r['of_memory_limit']:.0%}",
            str(r["compilations"]),
        )
    Console(width=110).print(table)


def show_ratios(runs: list[dict[str, Any]]) -> None:
    """Output tokens per second of every setting over those of the first."""
    first = {r["workload"]: r["output_tok_s"] for r in runs[0]["workloads"]}
    for run in runs[1:]:
        ratios = ", ".join(f"{r['workload']} {r['output_tok_s'] / first[r['workload']]:.2f}" for r in run["workloads"])
        print(f"{run['setting']} over {runs[0]['setting']}: {ratios}")


def show_host(host: list[dict[str, Any]]) -> None:
    table = Table("host: running rows", "p50 ms", "p99 ms", "bar (p99)", "bytes sent")
    for h in host:
        table.add_row(
            str(h["rows"]), f"{h['p50_ms']:.3f}", f"{h['p99_ms']:.3f}", f"{h['bar_ms']:.1f}", str(h["sent_bytes"])
        )
    Console(width=110).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--settings", default="auto", help="auto, float32, bfloat16, or schemes, with commas")
    parser.add_argument("--out-tokens", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--only", choices=list(WORKLOADS))
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    host = [host_cost(rows) for rows in HOST_BARS_MS]
    bandwidth = host_read_bandwidth()
    names = [args.only] if args.only else list(WORKLOADS)
    runs = [run_setting(args, setting, names, bandwidth) for setting in args.settings.split(",")]
    show_ratios(runs)
    show_host(host)
    waiting = bench_scheduler.run(**bench_scheduler.SIZES)
    if args.json:
        figures = {"bandwidth": bandwidth, "runs": runs, "host": host, "waiting": waiting}
        Path(args.json).write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
