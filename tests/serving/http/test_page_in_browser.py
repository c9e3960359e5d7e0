"""The page at `/` in a headless Chromium, as a person uses it. Skipped where there is no browser."""

from __future__ import annotations

import json
import re

import pytest

from jaxinfer.messages import Abort
from serving.access.access import AccessConfig
from serving.access.keys import KeyLimits, add_key
from tests.fakes import FakeOptions
from tests.serving.http.browser import answer, ask, running, setting, shown, submitted
from tests.serving.http.harness import says
from tests.serving.test_processes import wait

pytestmark = pytest.mark.longer

MARKUP = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script><b>&amp;</b>'
PHONE = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}


def test_a_conversation(visit):
    with running(says("Hello there.")) as s:
        page = visit(s.url)
        assert "fake" in page.locator("#model").inner_text()
        setting(page, temperature=0)
        ask(page, "first")
        assert shown(page) == "Hello there."
        assert re.match(r"\d+ \+ 13 tokens · \d+\.\d\d s", answer(page).locator(".note").inner_text())
        ask(page, "second")
        told = bytes(token for token in submitted(s)[-1].prompt_token_ids if token < 256).decode()
        assert told == "<user>first;<assistant>Hello there.;<user>second;<assistant>"
        page.get_by_role("button", name="Again").last.click()
        wait(lambda: len(submitted(s)) == 3, "the question is asked again")
        assert submitted(s)[-1].prompt_token_ids == submitted(s)[-2].prompt_token_ids
        page.locator("#clear").click()
        assert page.locator(".turn").count() == 0
        assert page.locator("#empty").is_visible()


def test_markup_stays_text(visit):
    """In what was asked, in the answer, in its tokens, and in an error that quotes the request."""
    with running(says(MARKUP)) as s:
        page = visit(s.url)
        setting(page, temperature=0)
        ask(page, MARKUP)
        assert shown(page) == MARKUP
        assert page.locator(".said.you .text").inner_text() == MARKUP
        setting(page, logprobs=True)
        ask(page, MARKUP)
        assert answer(page).locator(".tokens").evaluate("list => list.textContent") == MARKUP + "</s>"
        answer(page).locator(".token").first.click()
        setting(page, stop=(MARKUP * 20)[:1100])
        ask(page, "x")
        assert page.locator(".error").inner_text().startswith("Stop")
        assert page.locator("#talk :is(img, script, b)").count() == 0
        assert "owned" not in page.title()


def test_stop_ends_the_request_in_the_engine(visit):
    with running(FakeOptions(step_seconds=0.05)) as s:
        page = visit(s.url)
        setting(page, temperature=0, max_tokens=2000)
        ask(page, "go on", wait_for_end=False)
        page.wait_for_timeout(1500)
        assert page.locator("#running").inner_text() == "1"
        assert float(page.locator("#rate").inner_text()) > 1
        page.locator("#stop").click()
        page.locator("#send").wait_for()
        wait(lambda: len(s.grpc.received(Abort)) == 1, "the engine is told")
        part = shown(page)
        assert part.startswith("abc")
        assert answer(page).locator(".note").inner_text() == "stopped"
        page.wait_for_timeout(1500)
        assert page.locator("#running").inner_text() == "0"
        assert shown(page) == part
        ask(page, "and now", wait_for_end=False)  # what came before the stop is part of the conversation
        wait(lambda: len(submitted(s)) == 2, "the next question")
        assert part.encode() in bytes(token for token in submitted(s)[-1].prompt_token_ids if token < 256)
        page.keyboard.press("Escape")
        page.locator("#send").wait_for()


def test_it_works_by_keyboard_alone(visit):
    with running(says("abcdef", step_seconds=0.02)) as s:
        page = visit(s.url)
        assert page.evaluate("document.activeElement.id") == "prompt"
        page.locator("[name=logprobs]").focus()
        page.keyboard.press("Space")
        page.locator("[name=temperature]").focus()
        page.keyboard.type("0")
        page.locator("#prompt").focus()
        page.keyboard.type("one")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        page.keyboard.press("Enter")
        page.locator(".again:visible").wait_for()
        assert page.locator(".said.you .text").inner_text() == "one\ntwo"
        for _ in range(12):
            page.keyboard.press("Shift+Tab")
            if page.evaluate("document.activeElement.getAttribute('role')") == "option":
                break
        assert page.locator(".token[aria-selected=true]").inner_text() == "a"
        page.keyboard.press("ArrowRight")
        assert page.locator(".token[aria-selected=true]").inner_text() == "b"
        page.keyboard.press("End")
        assert page.locator(".token[aria-selected=true]").inner_text() == "</s>"
        assert page.locator(".token[tabindex='0']").count() == 1


def test_tokens_have_colours_and_alternatives(visit):
    with running(FakeOptions(script="né\n", eos_after=4)) as s:
        page = visit(s.url)
        setting(page, temperature=0, logprobs=True, top_logprobs=3)
        ask(page, "hi")
        tokens = answer(page).locator(".token")
        assert tokens.all_inner_texts()[:4] == ["n", "\\xc3", "\\xa9", "⏎\n"]  # bytes are no characters
        assert "p2" in (tokens.first.get_attribute("class") or "").split()  # e**-0.5 is 0.61
        tokens.first.click()
        detail = answer(page).locator(".detail")
        assert "probability 60.7% · log -0.500" in detail.inner_text()
        assert detail.locator("li .share").all_inner_texts() == ["60.7%", "22.3%", "8.21%"]
        assert detail.locator("li.taken code").inner_text() == "n"
        answer(page).get_by_role("button", name="Tokens").click()
        assert shown(page).rstrip() == "né"
        assert tokens.first.is_hidden()


def test_every_control_reaches_the_engine(visit):
    with running(says("x")) as s:
        page = visit(s.url)
        values = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.05, "max_tokens": 9}
        penalties = {"repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": -0.2}
        setting(page, **values, **penalties, seed=2**64 - 1, stop="END\n.\n", system="Be brief.")
        ask(page, "hi")
        (submit,) = submitted(s)
        assert {name: getattr(submit.params, name) for name in {**values, **penalties}} == {**values, **penalties}
        assert submit.seed == 2**64 - 1
        assert submit.params.logprobs is None
        told = bytes(token for token in submit.prompt_token_ids if token < 256).decode()
        assert told == "<system>Be brief.;<user>hi;<assistant>"
        with page.expect_request("**/v1/chat/completions") as sent:
            ask(page, "hi")
        assert json.loads(sent.value.post_data)["stop"] == ["END", "."]


def test_errors_are_words(visit):
    with running(says("fine")) as s:
        page = visit(s.url)
        setting(page, temperature=500)
        ask(page, "hi")
        assert page.locator(".error").inner_text() == "Temperature is 500.0; it must be a number from 0 to 100."
        assert page.evaluate("document.activeElement.name") == "temperature"
        assert page.locator("[name=temperature]").get_attribute("aria-invalid") == "true"
        setting(page, temperature=0, seed="1e3")
        page.get_by_role("button", name="Try again").click()
        page.locator(".error", has_text='Seed is "1e3"; it must be a whole number.').wait_for()
        setting(page, seed="")
        page.locator("[name=temperature]").evaluate("input => { input.value = '' }")
        page.locator("[name=temperature]").press_sequentially("1e")
        page.get_by_role("button", name="Try again").click()
        page.locator(".error", has_text="Temperature is not a number.").wait_for()
        page.locator("[name=temperature]").fill("0")
        page.get_by_role("button", name="Try again").click()
        page.locator("#send").wait_for()
        assert shown(page) == "fine"
        assert page.locator(".error, [aria-invalid]").count() == 0


def test_a_failure_in_the_middle_and_a_server_that_is_gone(visit):
    with running(FakeOptions(crash_at_step=8, step_seconds=0.02)) as s:
        page = visit(s.url)
        setting(page, temperature=0)
        ask(page, "hi")
        assert shown(page).startswith("abc")
        assert "the fake engine crashes" in page.locator(".error").inner_text()
    ask(page, "again")
    assert "The server cannot be reached." in page.locator(".error").last.inner_text()
    page.locator("#status[data-state=unreachable]").wait_for()
    assert page.locator("#running").inner_text() == "–"


def test_a_full_server_says_when_to_try_again(visit):
    with running(FakeOptions(step_seconds=0.05, max_num_seqs=1), max_waiting=0) as s:
        first, second = visit(s.url), visit(s.url)
        ask(first, "x", wait_for_end=False)
        wait(lambda: len(submitted(s)) == 1, "the first request runs")
        ask(second, "x")
        assert re.search(r"Try again in \d+ s\.", second.locator(".error").inner_text())
        first.locator("#stop").click()


def test_a_server_with_keys(visit, tmp_path):
    """A key is sent and kept nowhere. Numbers that it may not see are asked for once: refusals are written down."""
    chatting, _ = add_key(tmp_path / "keys.toml", "acme", ["infer"], KeyLimits())
    seeing, _ = add_key(tmp_path / "keys.toml", "acme", ["infer", "admin"], KeyLimits())
    with running(says("ok"), access=AccessConfig(keys=tmp_path / "keys.toml")) as s:
        page = visit(s.url)
        asked: list[str] = []
        page.on("request", lambda found: found.url.endswith("/metrics") and asked.append(found.url))
        ask(page, "hi")
        assert page.locator(".error").inner_text().endswith("Enter an API key under Settings.")
        assert page.evaluate("document.activeElement.name") == "key"
        setting(page, key=chatting, temperature=0)
        page.get_by_role("button", name="Try again").click()
        page.locator("#send").wait_for()
        assert shown(page) == "ok"
        page.wait_for_timeout(1500)
        before = len(asked)
        page.wait_for_timeout(2500)
        assert len(asked) == before
        assert page.locator("#running").inner_text() == "–"
        setting(page, key=seeing)
        page.locator("#running", has_text="0").wait_for()
        assert page.locator("#model").inner_text().startswith("fake")
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        page.reload()
        page.locator("#status[data-state=ready]").wait_for()
        assert page.locator("[name=key]").input_value() == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(visit, scheme):
    with running(says("word " * 60 + "w" * 120)) as s:
        page = visit(s.url, color_scheme=scheme, **PHONE)
        assert not page.locator("#settings").evaluate("box => box.open")
        setting(page, temperature=0, logprobs=True)
        ask(page, "n" * 120)
        page.locator("#settings").evaluate("box => { box.open = false }")
        page.locator(".python").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("#talk").evaluate("talk => talk.scrollWidth - talk.clientWidth") <= 0
        for button in page.locator("button:visible").all():
            box = button.bounding_box()
            assert box["height"] >= 24, button.inner_text()
            assert box["x"] >= 0, button.inner_text()
            assert box["x"] + box["width"] <= 360, button.inner_text()
        assert page.locator("#prompt").bounding_box()["y"] < 640
        assert page.locator("body").evaluate(CONTRASTS) == []


# WCAG 2.2's contrast of text, 4.5 to 1, for every kind of text, and for text on every colour of tokens.
CONTRASTS = """body => {
  const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = colour => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (colour.startsWith("rgb(")) return colour;
    }
  };
  const bad = [];
  const check = (element, what) => {
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${what}: ${ratio.toFixed(2)}`);
  };
  for (const element of body.querySelectorAll("h1, h2, p, dt, dd, button, summary, label, .note, .hint, code, pre")) {
    if (element.checkVisibility()) check(element, `${element.tagName}.${element.className}`);
  }
  const token = body.querySelector(".token");
  for (let i = 0; i <= 6; i++) {
    token.className = `token p${i}`;
    check(token, token.className);
  }
  const error = body.querySelector(".turn").appendChild(document.createElement("p"));
  error.className = "error";
  check(error, "error");
  return bad;
}"""
