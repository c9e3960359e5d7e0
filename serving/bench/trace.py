"""Which operations took the device's time, read from a trace that JAX recorded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NUMBER = re.compile(r"(\.\d+)+$")  # XLA's: fusion.12 and fusion.13 do the same for two layers
_OPERATION, _MODULE = "hlo_op", "hlo_module"
_DEVICE_LINES = ("XLA Ops", "Stream")  # of planes of accelerators


class NoTrace(Exception):
    """The trace cannot be read; the message says why."""


@dataclass(frozen=True)
class Event:
    """One run of an operation on one thread or stream: nanoseconds."""

    operation: str
    module: str
    line: str
    start: float
    end: float


@dataclass
class Operation:
    """All runs of operations of one name, without XLA's number. seconds: its own, without operations inside it."""

    name: str
    module: str
    count: int = 0
    seconds: float = 0.0


def read_events(folder: Path) -> list[Event]:
    """Events of the device in the newest trace below `folder`; of a CPU those of its threads. Raises NoTrace."""
    try:
        from jax.profiler import ProfileData
    except ImportError as error:
        raise NoTrace("this JAX has no jax.profiler.ProfileData, which reads traces") from error
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise NoTrace(f"JAX wrote no trace into {folder}")
    events = list(_events(ProfileData.from_file(str(files[-1]))))
    if not events:
        raise NoTrace(f"{files[-1]} has no operation of a device")
    return events


def _events(data: Any) -> Iterator[Event]:
    for plane in data.planes:
        on_device = plane.name.startswith("/device:")
        for number, line in enumerate(plane.lines):
            if on_device and not line.name.startswith(_DEVICE_LINES):
                continue
            where = f"{plane.name} {line.name} {number}"
            for event in line.events:
                stats = {name: value for name, value in event.stats if name in (_OPERATION, _MODULE)}
                if _OPERATION not in stats and not on_device:
                    continue
                name = str(stats.get(_OPERATION, event.name))
                start = float(event.start_ns)
                yield Event(name, str(stats.get(_MODULE, "")), where, start, start + float(event.duration_ns))


def busy_seconds(events: Iterable[Event]) -> float:
    """Seconds in which at least one operation ran."""
    total, reached = 0.0, -1.0
    for event in sorted(events, key=lambda e: e.start):
        if event.end > reached:
            total += event.end - max(event.start, reached)
            reached = event.end
    return total / 1e9


def operations(events: Iterable[Event]) -> list[Operation]:
    """By name and program, the longest first. What runs inside another on the same thread counts once, inside."""
    lines: dict[str, list[Event]] = {}
    for event in events:
        lines.setdefault(event.line, []).append(event)
    found: dict[tuple[str, str], Operation] = {}
    for line in lines.values():
        for event, own in _own_times(line):
            name = _NUMBER.sub("", event.operation)
            operation = found.setdefault((name, event.module), Operation(name, event.module))
            operation.count += 1
            operation.seconds += own / 1e9
    return sorted(found.values(), key=lambda each: -each.seconds)


def _own_times(line: list[Event]) -> Iterator[tuple[Event, float]]:
    """Each event of a thread with its nanoseconds less those of the events directly inside it."""
    open_events: list[tuple[Event, list[float]]] = []
    for event in sorted(line, key=lambda e: (e.start, -e.end)):
        while open_events and open_events[-1][0].end <= event.start:
            yield _closed(open_events.pop())
        if open_events:
            open_events[-1][1].append(event.end - event.start)
        open_events.append((event, []))
    while open_events:
        yield _closed(open_events.pop())


def _closed(entry: tuple[Event, list[float]]) -> tuple[Event, float]:
    event, inside = entry
    return event, max(0.0, event.end - event.start - sum(inside))
