"""Numbers that one process counts and another reads, in a mapped file: reading them costs the first nothing."""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path

# CPU seconds of the engine's thread by part. All since the start of their process.
PARTS = ("messages", "schedule", "admission", "pack", "dispatch", "result", "update", "post")
# waited: seconds that the engine's thread could have run and had no core. The rest are counts.
COUNTS = ("waited", "steps", "rows", "last_rows", "tokens", "replies")
NAMES = PARTS + COUNTS
_VALUE = struct.Struct("d")


class Counters:
    """`NAMES` as float64, zero at first. One writer for each name."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_VALUE.size * len(NAMES)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._places = {name: i * _VALUE.size for i, name in enumerate(NAMES)}

    def add(self, name: str, value: float) -> None:
        place = self._places[name]
        _VALUE.pack_into(self._map, place, _VALUE.unpack_from(self._map, place)[0] + value)

    def set(self, name: str, value: float) -> None:
        _VALUE.pack_into(self._map, self._places[name], value)

    def __getitem__(self, name: str) -> float:
        return float(_VALUE.unpack_from(self._map, self._places[name])[0])

    def read(self) -> dict[str, float]:
        """All of them, and `time`: seconds of time.monotonic()."""
        return {name: self[name] for name in NAMES} | {"time": time.monotonic()}
