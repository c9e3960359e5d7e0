"""Where the engine's thread spends its time, for a few hundred nanoseconds a step."""

from __future__ import annotations

import time

from jaxinfer.messages import StepTimes

SCHEDULE, DISPATCH, DEVICE, UPDATE, MESSAGES, MASKS = range(6)


class StepClock:
    """A stopwatch that is always in one part. `pause` it while the engine waits for work."""

    __slots__ = ("_done", "_launched", "_mark", "_parts", "_starved_seconds", "_starved_steps")

    def __init__(self) -> None:
        self._parts = [0.0] * 6
        self._mark: float | None = None  # None: paused
        self._done = 0.0  # when the last results were on the host
        self._launched = 0.0  # when the last step was with the device
        self._starved_steps = 0
        self._starved_seconds = 0.0

    def pause(self) -> None:
        """What passes until the next `lap` is nobody's."""
        self.lap(MESSAGES)
        self._mark = None

    def lap(self, part: int) -> float:
        """What passed since the last lap was `part`'s; returns the time (seconds of time.perf_counter())."""
        now = time.perf_counter()
        if self._mark is not None:
            self._parts[part] += now - self._mark
        self._mark = now
        return now

    def launch(self, *, starved: bool) -> float:
        """Ends a dispatch; returns when it began. starved: the device had already finished what it had."""
        began = self._mark
        now = self.lap(DISPATCH)
        if starved:
            self._starved_steps += 1
            self._starved_seconds += now - max(self._done, self._launched)
        self._launched = now
        return now if began is None else began

    def finish(self, launched: float) -> float:
        """Results are here: seconds since their step was handed to the device, or since the step before was done."""
        now = self.lap(DEVICE)
        seconds = now - max(launched, self._done)
        self._done = now
        return seconds

    @property
    def times(self) -> StepTimes:
        schedule, dispatch, device, update, messages, masks = self._parts
        starved = self._starved_steps, self._starved_seconds
        return StepTimes(schedule, dispatch, device, update, messages, *starved, masks)
