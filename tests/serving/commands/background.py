"""A server over the fake engine beside a test that is not asynchronous, as a command line is not."""

from __future__ import annotations

import asyncio
import threading

from jaxinfer.messages import Submit
from tests.fakes import FakeOptions
from tests.serving import harness


class Background:
    """A server over the fake engine, in a thread with an event loop of its own."""

    def __init__(self, options: FakeOptions) -> None:
        self.running: harness.Running
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(options)))
        self._thread.start()
        assert self._ready.wait(10)

    async def _serve(self, options: FakeOptions) -> None:
        async with harness.serving(options, sampling_defaults={"temperature": 0.0}) as self.running:
            self._ready.set()
            await self._stop.wait()

    @property
    def address(self) -> str:
        return self.running.server.address

    @property
    def submitted(self) -> Submit:
        return self.running.received(Submit)[-1]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()
