"""Records compiled decode steps with JAX's profiler and says on the spot where their time went.

By kernel, the longest first; gaps in which no kernel ran, by the kernels before and after; how often the host
launched a CUDA graph or a kernel of its own. XLA's trace has a line for each stream of a GPU, and beside them lines
that it derives from those, which are left out here: they would count everything twice. The trace itself is kept
beside the results.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import jax

from device_checks.engine_sizes import EngineSizes
from device_checks.settings import Settings
from serving.bench.trace import Event, NoTrace, operations, read_events

MOST_KERNELS, MOST_GAPS = 15, 5
KEPT = "steps.xplane.pb.gz"
_GRAPH_LAUNCHES = ("cuGraphLaunch", "cudaGraphLaunch")
_KERNEL_LAUNCHES = ("cuLaunchKernel", "cudaLaunchKernel", "cuLaunchCooperativeKernel")


class Steps(Protocol):
    """What is needed of `device_checks.engine.EngineBench`."""

    sizes: EngineSizes

    def step_calls(self, rows: list[tuple[int, int]]) -> tuple[Any, Callable[[], Any]]: ...


def traced_steps(bench: Steps, rows: int, settings: Settings) -> dict[str, Any]:
    """`bench.sizes.steps` steps of `rows` rows in the middle of their generation. Raises NoTrace."""
    _, calls = bench.step_calls([(1, bench.sizes.depth)] * rows)
    jax.block_until_ready(calls())
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder)
        try:
            jax.block_until_ready(calls())
        finally:
            jax.profiler.stop_trace()
        found = summary(Path(folder), bench.sizes.steps, jax.devices()[0].platform)
        kept = max(Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        with kept.open("rb") as source, gzip.open(settings.out / KEPT, "wb") as target:
            shutil.copyfileobj(source, target)
    return {"rows": rows, "steps": bench.sizes.steps, "depth": bench.sizes.depth, **found}


def summary(folder: Path, steps: int, platform: str) -> dict[str, Any]:
    """Figures of a step, from the newest trace below `folder`. Milliseconds. Raises NoTrace."""
    events = on_device(read_events(folder), platform)
    host = host_calls(folder)
    begin, end = min(event.start for event in events), max(event.end for event in events)
    found = gaps(events)
    per_step = 1e-6 / steps  # nanoseconds to milliseconds
    launches = {
        "graph_launches_a_step": _matching(host, _GRAPH_LAUNCHES) / steps,
        "kernel_launches_a_step": _matching(host, _KERNEL_LAUNCHES) / steps,
    }
    return {
        "span_ms": (end - begin) * per_step,
        "gap_ms": sum(each for each, _ in found.values()) * per_step,
        "kernels_a_step": len(events) / steps,
        "kernels": [
            {"operation": each.name, "calls": each.count / steps, "milliseconds": each.seconds * 1e3 / steps}
            for each in operations(events)[:MOST_KERNELS]
        ],
        "gaps": [
            {"after": after, "before": before, "calls": count / steps, "milliseconds": time * per_step}
            for (after, before), (time, count) in sorted(found.items(), key=lambda item: -item[1][0])[:MOST_GAPS]
        ],
        # Without CUDA there is nobody who launches.
        **(launches if any(launches.values()) else dict.fromkeys(launches)),
    }


def on_device(events: list[Event], platform: str) -> list[Event]:
    """Those of the first device; on a GPU, of its streams: what else it has is derived from them. Raises NoTrace
    where an accelerator has none, as its host's threads name operations, too."""
    if platform == "cpu":
        return events
    own = [event for event in events if event.line.startswith("/device:")]
    own = [event for event in own if " Stream" in event.line] or own
    if not own:
        raise NoTrace("the trace has no operation of the device: its profiler (CUPTI on a GPU) recorded none")
    first = min(event.line.split()[0] for event in own)
    return [event for event in own if event.line.split()[0] == first]


def gaps(events: Iterable[Event]) -> dict[tuple[str, str], tuple[float, int]]:
    """{(the operation before, the one after): (nanoseconds without any, how often)}."""
    found: dict[tuple[str, str], tuple[float, int]] = {}
    last: Event | None = None
    for event in sorted(events, key=lambda e: (e.start, e.end)):
        if last is not None and event.start > last.end:
            key = last.operation, event.operation
            time, count = found.get(key, (0.0, 0))
            found[key] = time + event.start - last.end, count + 1
        if last is None or event.end > last.end:
            last = event
    return found


def host_calls(folder: Path) -> Counter[str]:
    """How often each event of the host's is in the newest trace below `folder`: CUDA's calls are among them."""
    from jax.profiler import ProfileData

    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise NoTrace(f"JAX wrote no trace into {folder}")
    planes = ProfileData.from_file(str(files[-1])).planes
    return Counter(
        event.name for plane in planes if plane.name.startswith("/host:") for line in plane.lines
        for event in line.events
    )  # fmt: skip


def _matching(calls: Counter[str], beginnings: tuple[str, ...]) -> int:
    """Calls have endings (_ptsz, Ex) that say how they were made."""
    return sum(count for name, count in calls.items() if name.startswith(beginnings))
