"""A server on an event loop of its own and a headless Chromium, for tests that look at the page, and what they do there
as a person would."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from jaxinfer.messages import Submit
from tests.fakes import FakeOptions
from tests.serving.http.harness import HttpServer, http_serving

SECONDS = 10_000  # milliseconds that the browser waits
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


@contextlib.contextmanager
def visits(browser: Any) -> Iterator[Any]:
    """visit(url, **context): the page, ready. Fails the test if the page asked for anything elsewhere, if its policy
    refused something, or if a script failed."""
    contexts: list[Any] = []
    faults: list[str] = []

    def fault(happened: bool, what: str) -> None:
        if happened:
            faults.append(what)

    def open_page(url: str, **settings: Any) -> Any:
        context = browser.new_context(**settings)
        context.set_default_timeout(SECONDS)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda asked: fault(not asked.url.startswith(url), f"asked for {asked.url}"))
        page.on("pageerror", lambda error: fault(True, f"a script failed: {error}"))
        page.on("console", lambda line: fault("Content Security" in line.text, line.text))
        page.goto(url + "/")
        page.locator("#status[data-state=ready]").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def ask(page: Any, text: str, *, wait_for_end: bool = True) -> None:
    page.locator("#prompt").fill(text)
    page.locator("#send").click()
    if wait_for_end:
        page.locator("#send").wait_for()


def setting(page: Any, **values: Any) -> None:
    """Values by the controls' names; the settings open where they are folded."""
    page.locator("#settings").evaluate("box => { box.open = true }")
    for name, value in values.items():
        control = page.locator(f"#settings [name={name}]")
        if control.evaluate("one => one.tagName") == "SELECT":
            control.select_option(value)
        else:
            control.check() if value is True else control.fill(str(value))


def answer(page: Any, index: int = -1) -> Any:
    return page.locator(".turn").nth(index).locator(".said.model")


def shown(page: Any, index: int = -1) -> str:
    """An answer's text, where nobody looks at tokens."""
    return answer(page, index).locator("> .text").inner_text()


def submitted(s: HttpServer) -> list[Submit]:
    return s.grpc.received(Submit)
