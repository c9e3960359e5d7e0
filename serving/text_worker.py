"""Work on texts beside the event loop, so that other streams go on meanwhile.

That takes three things besides threads. The work must not keep the interpreter to itself: see
`jaxinfer.text.Tokenizer.encode`, and serving/http/decode.py for bodies. The event loop, which lets go of the
interpreter at every read and write, must get it back soon: a thread that computes is asked for it after
`SWITCH_SECONDS` and not after Python's 5 ms. And a text of megabytes must not stand before one of kilobytes: each kind
has threads of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving import garbage
from serving.errors import overloaded

# Requests up to this size are done on the event loop: it takes less than handing them to another thread.
_INLINE_BYTES = 4096
PART_BYTES = 32  # what each value of a request counts for besides its bytes: some take more work than they have bytes
_LONG_BYTES = 1 << 18
_THREADS, _LONG_THREADS = 2, 1
_MAX_QUEUED_MESSAGES = 8  # of the largest size, waiting for a thread
SWITCH_SECONDS = 0.0001

BESIDE = _INLINE_BYTES + 1  # the size of a request of which something takes long whatever its size: a grammar is made

T = TypeVar("T")


class TextWorker:
    """Shared by all servers. max_message_bytes: of the largest request. `close` ends its threads."""

    def __init__(self, max_message_bytes: int) -> None:
        self._limit = _MAX_QUEUED_MESSAGES * max_message_bytes
        self._queued_bytes = 0
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenizer")
        self._long_pool = ThreadPoolExecutor(_LONG_THREADS, thread_name_prefix="tokenizer-long")
        self._switch_seconds = sys.getswitchinterval()
        sys.setswitchinterval(min(self._switch_seconds, SWITCH_SECONDS))
        # Each text is its own thread's work: in the library's pool a long one could hold up the others.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """What `work` returns; in a thread when the request is long (`size` in bytes, with `PART_BYTES` more for each
        value of which there can be many). Raises Refusal when there is too much to do already."""
        if size <= _INLINE_BYTES:
            return _done(work)
        if self._queued_bytes + size > self._limit:
            raise overloaded(
                f"the tokenizer has {self._queued_bytes} bytes of text to do and takes at most {self._limit}"
            )
        self._queued_bytes += size
        pool = self._pool if size <= _LONG_BYTES else self._long_pool
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, contextvars.copy_context().run, _done, work)
        finally:
            self._queued_bytes -= size

    def close(self) -> None:
        for pool in (self._pool, self._long_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        sys.setswitchinterval(self._switch_seconds)


def _done(work: Callable[[], T]) -> T:
    """What `work` returns. What it had made of a request that it refuses is freed at once, here."""
    try:
        return work()
    except Exception as error:
        garbage.let_go(error)
        raise
