"""A server beside a test that is not asynchronous, as a command line is not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from jaxinfer.messages import Submit


class Background:
    """A server in a thread with an event loop of its own."""

    def __init__(self, make: Callable[[], contextlib.AbstractAsyncContextManager[Any]]) -> None:
        self.running: Any = None
        self._make = make
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))
        self._thread.start()
        assert self._ready.wait(60)

    async def _serve(self) -> None:
        async with self._make() as self.running:
            self._ready.set()
            await self._stop.wait()

    @property
    def address(self) -> str:
        return self.running.server.address

    @property
    def submitted(self) -> Submit:
        """The last request that the engine got."""
        return self.running.received(Submit)[-1]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self._loop.close()
