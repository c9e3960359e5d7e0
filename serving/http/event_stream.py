"""A streamed answer on its way: its events, and a sign of life where nothing happens for seconds.

A long prompt, or a full engine, is silent for longer than proxies and clients wait. Signs of life stand between events,
never within one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from serving.http.body import Send

SILENT_SECONDS = 5.0  # after which there is one


class EventStream:
    """headers: of the answer, asked for when it begins. sign: what says that the answer is under way."""

    def __init__(
        self, send: Send, headers: Callable[[], Sequence[tuple[bytes, bytes]]], sign: Callable[[], bytes]
    ) -> None:
        self.begun = False
        self._send, self._headers, self._sign = send, headers, sign
        self._sending = asyncio.Lock()
        self._between = True  # two events
        self._last = time.monotonic()
        self._watch = asyncio.create_task(self._keep_alive())

    async def push(self, data: bytes) -> None:
        """Sends an event, or a part of one."""
        async with self._sending:
            await self._push(data)

    async def _push(self, data: bytes) -> None:
        if not self.begun:
            self.begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": list(self._headers())})
        self._between = data.endswith(b"\n\n")  # JSON has no line breaks
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._last = time.monotonic()

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(max(SILENT_SECONDS / 10, self._last + SILENT_SECONDS - time.monotonic()))
            async with self._sending:
                if self._between and time.monotonic() - self._last >= SILENT_SECONDS:
                    await self._push(self._sign())

    async def end(self) -> None:
        """Sends the end."""
        async with self._sending:
            self.close()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def close(self) -> None:
        """No sign of life comes any more. Idempotent."""
        self._watch.cancel()
