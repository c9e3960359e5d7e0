"""Long work on the event loop, cut so that other tasks run in between."""

from __future__ import annotations

import asyncio

# Small steps of work between two rests, each of about a microsecond (an alternative of a token's log-probabilities as
# JSON): a few milliseconds together, far below the 50 ms that others may be kept waiting.
STEPS = 512


class Pace:
    """Counts work and rests in time. One for each piece of long work."""

    def __init__(self) -> None:
        self._done = 0

    async def spend(self, steps: int) -> None:
        """Tells of work that is done; lets other tasks run when there was enough of it."""
        self._done += steps
        if self._done >= STEPS:
            await self.rest()

    async def rest(self) -> None:
        self._done = 0
        await asyncio.sleep(0)
