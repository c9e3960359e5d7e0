"""What a model's experts have computed: counted on the device by every step, fetched rarely, added up on the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxinfer.expert_load import ExpertLoad

SECONDS = 1.0  # between two reports of a busy engine


def count_shape(expert_layers: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(layers with experts, most experts of one): of the array that steps add to."""
    return len(expert_layers), max(count for _, count in expert_layers)


class ExpertCounts:
    """The array that steps add to, and what was fetched of it.

    Fetching takes the array away and gives the next step zeros in its place, which are sent as a step's inputs are:
    nothing is compiled for it, and no step waits. What was taken is read when the step that wrote it is done.

    The array is uint32. An expert gets at most as many tokens of a step as the step has, and the array is taken when a
    second is over and the one before was read, so that 2**32 is never near: it would take a quarter of a million steps
    of 16,384 tokens. Sums on the host are int64.

    Attributes:
        array: (layers with experts, most experts of one) uint32, on the device; None before `restart`. Who runs a
            step's program donates it, and puts the program's result here.
    """

    def __init__(
        self,
        expert_layers: Sequence[tuple[int, int]],
        put: Callable[[np.ndarray], jax.Array],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.array: jax.Array | None = None
        self._layers = tuple(layer for layer, _ in expert_layers)
        self._experts = [count for _, count in expert_layers]
        self._put, self._clock = put, clock
        self._totals = np.zeros(count_shape(expert_layers), np.int64)
        self._steps = 0  # that were dispatched
        self._clean = True  # no step has added to the array
        self._taken: tuple[Any, int] | None = None  # an array on its way to the host, and the steps that it ends with
        self._covered = 0  # steps in the totals
        self._due = 0.0

    def restart(self) -> None:
        """Makes the array, on which nothing is counted."""
        self.array = self._put(np.zeros(self._totals.shape, np.uint32))
        self._clean = True

    def stepped(self) -> None:
        """A step was dispatched, and the array is its."""
        self._clean = False
        self._steps += 1

    def report(self, *, idle: bool) -> ExpertLoad | None:
        """What is known, when that is news: about once a second, and always when the engine is idle.

        idle: no step is in flight, so that everything can be read at once. Else nothing waits: what a step in flight
        has counted is read by a later call.
        """
        if idle:
            return None if self._clean and self._taken is None else self.now()
        found = self._read(wait=False)
        if self._taken is None and not self._clean and self._clock() >= self._due:
            self._take()
        return self._load() if found else None

    def now(self) -> ExpertLoad:
        """Everything up to the last step that was dispatched. Waits for it."""
        self._read(wait=True)
        if not self._clean:
            self._take()
            self._read(wait=True)
        return self._load()

    def _take(self) -> None:
        array: Any = self.array
        self._taken = array, self._steps
        self.restart()
        array.copy_to_host_async()
        self._due = self._clock() + SECONDS

    def _read(self, *, wait: bool) -> bool:
        if self._taken is None:
            return False
        array, steps = self._taken
        if not wait and not array.is_ready():
            return False
        self._totals += np.asarray(array)
        self._covered, self._taken = steps, None
        return True

    def _load(self) -> ExpertLoad:
        rows = zip(self._totals.tolist(), self._experts, strict=True)
        return ExpertLoad(self._layers, tuple(tuple(row[:count]) for row, count in rows), self._covered)
