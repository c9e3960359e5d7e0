"""Long work on the event loop, in pieces."""

from __future__ import annotations

import asyncio
import time

_SECONDS = 0.005  # of work at a time


class Turns:
    """`await turns.pause()` between two pieces of work lets others run when it has gone on for long enough."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    async def pause(self) -> None:
        if time.monotonic() - self._began > _SECONDS:
            await asyncio.sleep(0)
            self._began = time.monotonic()
