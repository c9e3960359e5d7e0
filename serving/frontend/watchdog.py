"""Finds an engine that is stuck: it owes news and says nothing. Compilation is before ready, so steps are short."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from serving.frontend.engine_link import EngineLink

_LOG = logging.getLogger("serving.watchdog")

_ANSWER_SECONDS = 2.0  # for a stuck engine to say what it was doing


async def watch(
    link: EngineLink, unready_seconds: float, stall_seconds: float, tell: Callable[[], Awaitable[None]]
) -> None:
    """Runs until the engine is given up. unready_seconds: of silence, until the link is stuck and the server not ready
    (until there is news; `tell` is called at every change). stall_seconds: until the engine counts as failed. 0 of
    either: never."""
    limits = [limit for limit in (unready_seconds, stall_seconds) if limit]
    while limits:
        await asyncio.sleep(min(1.0, min(limits) / 4))
        silent = time.monotonic() - link.last_news if link.waiting_for_engine else 0.0
        stuck = bool(unready_seconds) and silent > unready_seconds
        if stuck != link.stuck:
            link.stuck = stuck
            await tell()
            await _report(link, silent) if stuck else _LOG.warning("the engine goes on; the server is ready again")
        if stall_seconds and silent > stall_seconds:
            await _report(link, silent)
            link.give_up(f"it said nothing for {stall_seconds:g} s while requests were running")
            return


async def _report(link: EngineLink, silent: float) -> None:
    """The last plan, for whoever has to find out."""
    found = await link.describe(_ANSWER_SECONDS)
    _LOG.error("the engine has been silent for %.1f s", silent, extra={"fields": found})
