"""What is kept of the inputs of one matrix: means and largest magnitudes of its channels, and a bounded sample of
rows."""

from __future__ import annotations

import numpy as np

SAMPLED_ROWS = 512  # tokens that errors of outputs are measured on
SEED = 0


def sampled_tokens(lengths: list[int]) -> list[np.ndarray]:
    """Which tokens of each sample are kept whole: at most `SAMPLED_ROWS` in all, drawn evenly, the same every time."""
    total = sum(lengths)
    drawn = np.random.default_rng(SEED).permutation(total)[:SAMPLED_ROWS]
    ends = np.cumsum(lengths)
    return [
        np.sort(drawn[(drawn >= end - length) & (drawn < end)]) - (end - length)
        for length, end in zip(lengths, ends, strict=True)
    ]


class InputStatistics:
    """Of a matrix of I inputs; `add` is called with the rows of one sample after the other."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: np.ndarray | None = None
        self._largest: np.ndarray | None = None
        self._rows: list[np.ndarray] = []

    def add(self, x: np.ndarray, sampled: np.ndarray) -> None:
        """x: (tokens, I) float32. sampled: which of them to keep."""
        magnitude = np.abs(x)
        total, largest = magnitude.sum(axis=0, dtype=np.float64), magnitude.max(axis=0)
        self._sum = total if self._sum is None else self._sum + total
        self._largest = largest if self._largest is None else np.maximum(self._largest, largest)
        self._count += len(x)
        self._rows.append(x[sampled])

    @property
    def mean(self) -> np.ndarray:
        """(I,) float32: mean magnitude of each input."""
        assert self._sum is not None
        return np.asarray(self._sum / self._count, np.float32)

    @property
    def largest(self) -> np.ndarray:
        """(I,) float32: largest magnitude of each input."""
        assert self._largest is not None
        return self._largest

    @property
    def rows(self) -> np.ndarray:
        """(rows, I) float32: the sample."""
        return np.concatenate(self._rows)
