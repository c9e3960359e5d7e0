"""Times an op in torch without its launch gaps: many launches captured in a CUDA graph, its replays timed by events.

On a CPU, where a rehearsal runs, and where an op cannot be captured, the launches are timed one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from device_checks.timing import REPEATS, Timing, summarise


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def time_launches(op: Callable[[int], Any], launches: int) -> tuple[Timing, str]:
    """Seconds of `op(i)`, for i below `launches` in turn, and how they were taken."""
    op(0)  # compiles, and chooses algorithms
    if device() == "cpu":
        return _by_host_clock(op, launches), "host clock"
    torch.cuda.synchronize()
    try:
        graph = _captured(op, launches)
    except Exception as error:
        torch.cuda.synchronize()
        print(f"not captured in a graph: {error}", flush=True)
        return _by_events(lambda: [op(i) for i in range(launches)], launches), "events round launches"
    return _by_events(graph.replay, launches), "events round a graph's replay"


def _captured(op: Callable[[int], Any], launches: int) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a first pass outside the capture, as CUDA wants it
        for i in range(min(launches, 3)):
            op(i)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            op(i)
    return graph


def _by_events(run: Callable[[], Any], launches: int) -> Timing:
    run()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3 / launches)
    return summarise(seconds)


def _by_host_clock(op: Callable[[int], Any], launches: int) -> Timing:
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        for i in range(launches):
            op(i)
        seconds.append((time.perf_counter() - begin) / launches)
    return summarise(seconds)
