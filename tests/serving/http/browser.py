"""A server on an event loop of its own and a headless Chromium, for tests that look at the page."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes import FakeOptions
from tests.serving.http.harness import HttpServer, http_serving

# Debian's browser; without these it asks its maker's hosts for news, which a test must not.
_ARGUMENTS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def running(options: FakeOptions, **config: Any) -> Iterator[HttpServer]:
    """The server is for other threads to talk to: its `http` client belongs to its own loop."""
    found: list[HttpServer] = []
    started, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        async with http_serving(options, **config) as server:
            found.append(server)
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(20), "the server did not start"
    try:
        yield found[0]
    finally:
        ended.set()
        thread.join(20)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """playwright's Browser. Skips the test where there is no browser, or nothing to drive it with."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[browser]'")
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} is on the PATH")
    with api.sync_playwright() as driver:
        # Root, as in containers, has no sandbox; the pages are our own.
        browser = driver.chromium.launch(executable_path=path, args=list(_ARGUMENTS), chromium_sandbox=False)
        try:
            yield browser
        finally:
            browser.close()
