"""Tokenizer work beside the event loop, so that other streams go on while a long text is encoded."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving.status import overloaded

# Requests up to this size are done on the event loop: it takes less than handing them to another thread.
_INLINE_BYTES = 4096
_THREADS = 2
_MAX_QUEUED_MESSAGES = 8  # of the largest size, waiting for a thread

T = TypeVar("T")


class TextWorker:
    """Shared by all doors. max_message_bytes: of the largest request. `close` ends its threads."""

    def __init__(self, max_message_bytes: int) -> None:
        self._limit = _MAX_QUEUED_MESSAGES * max_message_bytes
        self._queued_bytes = 0
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenizer")

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """What `work` returns; in a thread when the request is long (`size` in bytes). Raises Refusal when there is
        too much to do already."""
        if size <= _INLINE_BYTES:
            return work()
        if self._queued_bytes + size > self._limit:
            raise overloaded(
                f"the tokenizer has {self._queued_bytes} bytes of text to do and takes at most {self._limit}"
            )
        self._queued_bytes += size
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, contextvars.copy_context().run, work)
        finally:
            self._queued_bytes -= size

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
