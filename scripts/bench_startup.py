"""Seconds from the command to the ready line of `jaxinfer serve`, with an empty and with a warm compilation cache.

    python scripts/bench_startup.py [MODEL] [--runs 3]

Runs the `jaxinfer` beside this Python, one server at a time, and prints each run and the bars.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARS = {"empty cache": 15.0, "warm cache": 6.0}  # seconds, two cores, the demo model


def seconds_to_ready(model: list[str], cache: str) -> float:
    command = [sys.executable, "-m", "jaxinfer", "serve", "--port", "0", "--compilation-cache-dir", cache, *model]
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
    took = time.perf_counter() - begin
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", help="default: the shipped demo")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    figures: dict[str, list[float]] = {name: [] for name in BARS}
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as cache:
            for name in BARS:
                figures[name].append(seconds_to_ready(args.model, str(Path(cache) / "xla")))
    for name, values in figures.items():
        runs = " ".join(f"{value:.1f}" for value in values)
        print(f"{name:12}  median {sorted(values)[len(values) // 2]:.1f} s  (runs: {runs}; bar {BARS[name]:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
