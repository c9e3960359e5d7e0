"""Where things stand on the page at `/`, on a phone and on a desktop, in a headless Chromium. Skipped without one."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.http.browser import running
from tests.serving.http.harness import says

pytestmark = pytest.mark.longer

PHONE = {"viewport": {"width": 390, "height": 760}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1280, "height": 760}}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(says("Well, then.")) as server:
        yield server.url


@pytest.fixture
def page(browser, url, request) -> Iterator[Any]:
    context = browser.new_context(**request.param)
    context.set_default_timeout(10_000)
    page = context.new_page()
    page.goto(url + "/")
    page.locator("#status[data-state=ready]").wait_for()
    yield page
    context.close()


def on(device: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("page", [device], indirect=True, ids=["phone" if device is PHONE else "desktop"])


def place(page: Any, selector: str) -> dict[str, float]:
    return page.locator(selector).bounding_box()


@on(PHONE)
def test_a_phone_is_told_what_its_enter_does(page):
    assert page.locator("#how").inner_text() == "Tap Send to send; Enter starts a new line."
    assert page.locator("#prompt").evaluate("box => box.enterKeyHint") == "enter"
    page.locator("#prompt").press_sequentially("one")
    page.keyboard.press("Enter")
    page.locator("#prompt").press_sequentially("two")
    assert page.locator("#prompt").input_value() == "one\ntwo"
    assert page.locator(".turn").count() == 0


@on(DESKTOP)
def test_a_keyboard_is_told_what_its_enter_does(page):
    assert page.locator("#how").inner_text().startswith("Enter sends, Shift+Enter starts a new line")
    assert page.locator("#prompt").evaluate("box => box.enterKeyHint") == "send"
    page.locator("#prompt").press_sequentially("one")
    page.keyboard.press("Enter")
    page.locator(".turn .note").wait_for()


@on(PHONE)
def test_settings_lie_over_the_conversation_of_a_phone(page):
    """Opening them moves nothing; they go when something else is touched, and when a message is sent."""
    before = place(page, "#talk")
    page.locator("#settings summary").tap()
    assert page.locator("[name=temperature]").is_visible()
    assert place(page, "#talk") == before
    fields = place(page, ".fields")
    assert fields["y"] + fields["height"] < place(page, "#ask")["y"]
    page.touchscreen.tap(200, before["y"] + before["height"] - 10)
    assert page.locator("[name=temperature]").is_hidden()
    page.locator("#settings summary").tap()
    page.locator("[name=temperature]").fill("500")
    page.locator("#prompt").fill("hi")
    page.locator("#send").tap()
    page.locator(".error").wait_for()  # its control is shown, and its words where they can be seen
    assert page.evaluate("document.activeElement.name") == "temperature"
    assert page.locator(".wrong").inner_text() == "Temperature is 500.0; it must be a number from 0 to 100."
    page.locator("[name=temperature]").fill("0")
    page.keyboard.press("Escape")
    page.locator(".again").tap()
    page.locator(".turn .note").wait_for()
    assert page.locator("[name=temperature]").is_hidden()
    assert page.locator(".wrong").count() == 0


@on(DESKTOP)
def test_closed_settings_leave_no_column_on_a_desktop(page):
    assert page.locator("[name=temperature]").is_visible()
    fields, main = place(page, ".fields"), place(page, "main")
    assert main["x"] + main["width"] == fields["x"]
    assert fields["x"] + fields["width"] == 1280
    assert fields["y"] + fields["height"] == 760
    page.locator("#settings summary").click()
    assert place(page, "main")["width"] == 1280
    assert page.locator("#settings summary").is_visible()
    assert place(page, "#settings")["height"] == place(page, "header")["height"]


@on(DESKTOP)
def test_the_last_minute_has_a_step_for_each_second_and_its_highest_in_words(page):
    page.locator("#prompt").fill("hi")
    page.locator("#send").click()
    page.locator("#peak", has_text=", up to ").wait_for()
    steps = re.findall(r"H(\d+)V([\d.]+)H(\d+)", page.locator("#history path").get_attribute("d"))
    assert [(int(left), int(right)) for left, _, right in steps] == [(i, i + 1) for i in range(60)]
    assert min(float(height) for _, height, _ in steps) == 0  # the highest takes all of the picture's 20


@on(PHONE)
def test_a_phone_shows_the_last_minute_beside_its_settings(page):
    minute, line, header = place(page, ".minute"), place(page, "#settings summary"), place(page, "header")
    assert minute["y"] >= header["y"] + header["height"]
    assert minute["y"] + minute["height"] <= line["y"] + line["height"]
    assert minute["x"] > 150
    assert minute["x"] + minute["width"] <= 390


@on(DESKTOP)
def test_an_example_is_asked_and_what_was_asked_is_a_line_for_a_shell(page, url):
    with page.expect_request("**/v1/chat/completions") as sent:
        page.locator("#examples button").first.click()
    page.locator(".turn .note").wait_for()
    assert page.locator(".said.you .text").inner_text() == "What is 347 + 586?"
    page.locator("#prompt").fill('it\'s "quoted" $HOME `x`\nand 2 lines')
    page.locator("#send").click()
    page.locator("#send").wait_for()
    page.locator("[name=key]").fill("secret")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.locator(".again:visible").click()
    page.locator("#send").wait_for()
    page.locator(".curl").last.click()
    line = page.locator(".request").last.inner_text()
    words = shlex.split(line)
    assert words[:3] == ["curl", "-N", f"{url}/v1/chat/completions"]
    assert "Authorization: Bearer $KEY" in words
    assert "secret" not in line
    assert json.loads(words[words.index("-d") + 1]) == json.loads(sent.value.post_data)
