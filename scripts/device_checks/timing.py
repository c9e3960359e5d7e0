"""What both ways of timing share. Standard library only."""

from __future__ import annotations

import statistics
from typing import NamedTuple

REPEATS = 5


class Timing(NamedTuple):
    """Seconds an op: the median of the repeats, and (largest - smallest) / median."""

    seconds: float
    spread: float

    def fields(self) -> dict[str, float]:
        return {"op_seconds": self.seconds, "spread": self.spread}


def summarise(seconds: list[float]) -> Timing:
    median = statistics.median(seconds)
    return Timing(median, (max(seconds) - min(seconds)) / median)
