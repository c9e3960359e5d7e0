"""The start of `jaxinfer serve`, from the command to the ready line: cold, with a warm cache, and with a bundle.

    python scripts/bench_startup.py [MODEL ...] [--runs 3] [--no-parts]

For each model it prints seconds and the CPU seconds of all processes of the server, their ratios to a cold start, and
for one start of each kind what the engine's process did in it. cold: an empty compilation cache; warm: the one that the
cold start left; bundle: executables of `jaxinfer compile`, beside an empty cache. Runs are interleaved, one server at a
time, with the `jaxinfer` beside this Python. CPU seconds are what to compare on a machine that is not quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

KINDS = ("cold", "warm", "bundle")
PARTS = Path(__file__).resolve().parent / "startup_parts.py"


class Start(NamedTuple):
    """seconds: from the command to the ready line. cpu: of the server and its processes together by then."""

    seconds: float
    cpu: float


def cpu_seconds(pid: int) -> float:
    """User and system time of a process that runs, its threads and, down to the last, its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    found = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # its own, and that of children it has waited for
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += sum(cpu_seconds(int(child)) for child in (thread / "children").read_text().split())
    return found


def start(model: list[str], cache: Path, bundle: Path | None) -> Start:
    options = ["--port", "0", "--compilation-cache-dir", str(cache)]
    options += [] if bundle is None else ["--bundle", str(bundle)]
    command = [sys.executable, "-m", "jaxinfer", "serve", *options, *model]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("ready"):
            break
    else:
        raise SystemExit("".join(lines))
    found = Start(time.perf_counter() - begin, cpu_seconds(process.pid))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    if bundle is not None and any("compiled instead" in line or "is not used" in line for line in lines):
        raise SystemExit("".join(lines))
    return found


def compile_bundle(model: list[str], out: Path) -> float:
    begin = time.perf_counter()
    command = [sys.executable, "-m", "jaxinfer", "compile", "--out", str(out), "--compilation-cache-dir", "none"]
    subprocess.run([*command, *model], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def parts(model: list[str], cache: Path, bundle: Path | None) -> dict[str, list[float]]:
    """What the engine does in a start, in order: {part: [seconds, CPU seconds]}."""
    command = [sys.executable, str(PARTS), str(cache), "" if bundle is None else str(bundle), *model]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def measure(model: list[str], runs: int, *, with_parts: bool) -> None:
    figures: dict[str, list[Start]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        took = compile_bundle(model, bundle)
        print(f"\n{model[0] if model else 'demo'} (bundle compiled in {took:.1f} s)")
        for run in range(runs):
            cache = Path(folder) / f"cache-{run}"
            figures["cold"].append(start(model, cache, None))
            figures["warm"].append(start(model, cache, None))
            figures["bundle"].append(start(model, Path(folder) / f"empty-{run}", bundle))
        print_figures(figures)
        if with_parts:
            cache, empty = Path(folder) / "cache-parts", Path(folder) / "empty-parts"
            kinds = {"cold": (cache, None), "warm": (cache, None), "bundle": (empty, bundle)}
            print_parts({kind: parts(model, *where) for kind, where in kinds.items()})


def print_figures(figures: dict[str, list[Start]]) -> None:
    print(f"{'':8}{'median s':>10}{'CPU s':>8}{'of cold':>9}{'CPU':>7}   runs, s")
    cold = [statistics.median(values) for values in zip(*figures["cold"], strict=True)]
    for kind, starts in figures.items():
        seconds, cpu = (statistics.median(values) for values in zip(*starts, strict=True))
        runs = " ".join(f"{one.seconds:.1f}" for one in starts)
        print(f"{kind:8}{seconds:10.1f}{cpu:8.1f}{seconds / cold[0]:9.2f}{cpu / cold[1]:7.2f}   {runs}")


def print_parts(found: dict[str, dict[str, list[float]]]) -> None:
    """Seconds and CPU seconds; those of programs are of threads, beside the others."""
    names = list(dict.fromkeys(name for one in found.values() for name in one))
    width = max(map(len, names)) + 2
    print(f"{'engine':{width}}" + "".join(f"{kind:>16}" for kind in found))
    for name in names:
        cells = [one.get(name) for one in found.values()]
        print(f"{name:{width}}" + "".join(f"{'-' if c is None else f'{c[0]:.2f} ({c[1]:.2f})':>16}" for c in cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="folders or hub ids (default: the shipped demo); demo is the demo")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-parts", action="store_true", help="without the engine's parts of a start")
    args = parser.parse_args()
    for model in args.models or ["demo"]:
        measure([] if model == "demo" else [model], args.runs, with_parts=not args.no_parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
