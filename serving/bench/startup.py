"""Seconds from the command to the ready line of `jaxinfer serve`, a process of its own each time."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.bench.offline import LATENCY_PERCENTILES
from serving.bench.records import ServerTrouble

_END_SECONDS = 30.0  # that a server gets to leave
_LAST_LINES = 5


def seconds_to_ready(options: Sequence[str], cache: Path) -> float:
    """Starts a server with `options` and this compilation cache, waits for its ready line and ends it.

    Raises ServerTrouble, with the server's last lines, where it ends before.
    """
    command = [sys.executable, "-m", "jaxinfer", "serve", "--port", "0", *options]
    command += ["--compilation-cache-dir", str(cache)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith("ready"):
                return time.perf_counter() - begin
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    raise ServerTrouble(f"the server ended before it was ready: {' / '.join(lines[-_LAST_LINES:])}")


def measure_startup(
    options: Sequence[str],
    cold: int,
    warmups: int,
    warm: int,
    done: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """`cold` starts with an empty compilation cache each, then `warmups` that fill one and `warm` that find it full.

    Names are those of `vllm bench startup --output-json`.
    """
    figures: dict[str, Any] = {}
    times = []
    for i in range(cold):
        done(f"cold start {i + 1} of {cold}")
        with tempfile.TemporaryDirectory(prefix="jaxinfer-startup-") as folder:
            times.append(seconds_to_ready(options, Path(folder) / "xla"))
    figures |= _figures("cold_startup", times)
    with tempfile.TemporaryDirectory(prefix="jaxinfer-startup-") as folder:
        times = []
        for i in range(warmups + warm if warm else 0):
            done(f"warm start {i + 1 - warmups} of {warm}" if i >= warmups else "filling the cache")
            times.append(seconds_to_ready(options, Path(folder) / "xla"))
    return figures | _figures("warm_startup", times[warmups:])


def _figures(name: str, times: Sequence[float]) -> dict[str, Any]:
    if not times:
        return {}
    found = np.percentile(times, LATENCY_PERCENTILES).tolist()
    return {
        f"avg_{name}_time": float(np.mean(times)),
        f"{name}_times": list(times),
        f"{name}_percentiles": dict(zip(map(str, LATENCY_PERCENTILES), found, strict=True)),
    }
