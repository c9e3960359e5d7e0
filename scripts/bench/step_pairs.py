"""What a decode step costs with one setting and with another, in turns in one run: is an optimisation worth its code?

    python scripts/bench/step_pairs.py MODEL --base layers=unrolled --new layers=loop [--rows 8] [--pairs 20]

A setting is a list with commas of
  layers=loop|unrolled   one compiled loop over the layers that are alike, or every layer compiled
  kernels=auto|xla|...   `--cpu-kernels`
  weights=auto|int8|...  `--dtype` or `--quantization`
  malloc=told|arenas|as-is
                         what the allocator is told: what an engine tells it; all but the one arena; nothing
  tree=DIR               a checkout to take the code from: for two versions of it
What a setting leaves out is the default. Each side is a process with its own engine; both wait for their turn, so a
pair is read within a second. Prints medians of each side, and of the ratio new / base with its 95 % interval
(bootstrap): of the processor time of the whole process, of the engine's own thread, and of wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = {"layers": "loop", "kernels": "auto", "weights": "auto", "malloc": "told", "tree": str(ROOT)}
ALLOWED = {"layers": ("loop", "unrolled"), "malloc": ("told", "arenas", "as-is")}
FIGURES = {"process": "processor time of the process", "thread": "of the engine's thread", "wall": "wall time"}
_WARM = 12  # steps before the clock runs: admission, and the first of each shape
_PROMPT = 20  # tokens
_RESAMPLES = 2000
_DTYPES = ("auto", "float32", "bfloat16")


def read_setting(text: str) -> dict[str, str]:
    """A setting with its defaults. Raises ValueError that names the part which is none."""
    setting = dict(DEFAULTS)
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in DEFAULTS or not value:
            raise ValueError(f"{part!r} is no part of a setting; those are {', '.join(f'{n}=' for n in DEFAULTS)}")
        if value not in ALLOWED.get(name, (value,)):
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(ALLOWED[name])}")
        setting[name] = value
    return setting


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Median of the ratios and the 95 % interval of it, by drawing the pairs anew."""
    rng = random.Random(0)
    drawn = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    return statistics.median(ratios), drawn[_RESAMPLES // 40], drawn[-_RESAMPLES // 40]


def apply(setting: Mapping[str, str]) -> None:
    """Bends this process to what no option of the engine says."""
    from jaxinfer.runtime import allocator
    from jaxinfer.runtime.step import StepSpec

    if setting["layers"] == "unrolled":
        StepSpec.looped = property(lambda _spec: False)  # type: ignore[assignment,method-assign]
    if setting["malloc"] == "arenas":
        allocator._ARENA_MAX = allocator._TRIM_THRESHOLD  # the same call twice, and none for arenas
    if setting["malloc"] == "as-is":
        allocator.keep_large_blocks = lambda: False


def side(model: str, setting: Mapping[str, str], rows: int, steps: int) -> None:
    """One engine, which runs `steps` steps of `rows` rows for each line on standard input and prints their cost."""
    apply(setting)
    from jaxinfer.config import RuntimeConfig
    from jaxinfer.llm import build_engine
    from jaxinfer.messages import Submit
    from jaxinfer.sampling_params import SamplingParams

    length = _PROMPT + steps + 4 * _WARM
    how: dict[str, Any] = {"dtype" if setting["weights"] in _DTYPES else "quantization": setting["weights"]}
    runtime = RuntimeConfig(
        max_num_seqs=rows,
        max_model_len=length,
        max_num_batched_tokens=max(256, rows),
        device="cpu",
        cpu_kernels=setting["kernels"],
        **how,
    )
    engine = build_engine(model, runtime)
    rng, serial = random.Random(0), 0
    for _line in sys.stdin:
        for _ in range(rows):
            prompt = tuple(rng.randrange(5, 250) for _ in range(_PROMPT))
            params = SamplingParams(max_tokens=steps + 2 * _WARM, temperature=0, ignore_eos=True)
            engine.scheduler.add(Submit(f"r{serial}", prompt, params, serial, 0, time.monotonic()))
            serial += 1
        for _ in range(_WARM):
            engine.step()
        before = time.process_time(), time.thread_time(), time.perf_counter()
        for _ in range(steps):
            engine.step()
        after = time.process_time(), time.thread_time(), time.perf_counter()
        spent = [(end - begin) / steps for begin, end in zip(before, after, strict=True)]
        while engine.scheduler.has_unfinished or not engine.idle:
            engine.step()
        print(json.dumps(dict(zip(("process", "thread", "wall"), spent, strict=True))), flush=True)


def measure(sides: list[subprocess.Popen[str]], pairs: int) -> list[list[dict[str, Any]]]:
    def once(process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"one side ended with {process.wait()}; its message stands above")
        return json.loads(line)

    for process in sides:
        once(process)  # warms up
    found: list[list[dict[str, Any]]] = [[], []]
    for number in range(pairs):
        for which in (0, 1) if number % 2 else (1, 0):  # nobody is always the first
            found[which].append(once(sides[which]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--base", default="", type=read_setting)
    parser.add_argument("--new", default="", type=read_setting)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40, help="of each reading")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--side", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side(args.model, args.side, args.rows, args.steps)
        return
    started = []
    for setting in (args.base, args.new):
        command = [sys.executable, __file__, args.model, "--side", json.dumps(setting)]
        command += ["--rows", str(args.rows), "--steps", str(args.steps)]
        environment = {**os.environ, "PYTHONPATH": setting["tree"]}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True))
    base, new = measure(started, args.pairs)
    for process in started:
        process.communicate()
    print(f"{args.rows} rows, {args.pairs} pairs of {args.steps} steps")
    for name, what in FIGURES.items():
        one, other = [found[name] for found in base], [found[name] for found in new]
        middle, low, high = interval([b / a for a, b in zip(one, other, strict=True)])
        times = f"base {1e3 * statistics.median(one):.3f} ms, new {1e3 * statistics.median(other):.3f} ms"
        print(f"{what:30} {times}, new / base {middle:.3f} (95 %: {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
