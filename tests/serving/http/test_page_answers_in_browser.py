"""What the page at `/` makes of structured output, tools and reasoning, and how it writes requests down for others, in
a headless Chromium. Skipped without one."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pytest

from tests.serving.http.browser import answer, ask, running, setting, shown, submitted
from tests.serving.http.harness import says

pytestmark = pytest.mark.longer

SCHEMA = {"type": "object", "properties": {"id": {"type": ["integer", "null"]}}, "required": ["id"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "<b>Bern</b>"}}</tool_call>'
NAMES = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
AWKWARD = "it's \"quoted\" \\ $HOME `x`\n\ttwo lines, \u2028 é 🦊 {'a': None}"


def sent(page: Any, act: Any) -> dict[str, Any]:
    """The body of the chat request that `act` makes the page send, which ends."""
    with page.expect_request("**/v1/chat/completions") as request:
        act()
    page.locator("#send").wait_for()
    return json.loads(request.value.post_data)


def test_an_answer_can_be_held_to_a_schema(visit):
    with running(says('{"id": 7}')) as s:
        page = visit(s.url)
        assert page.locator("[name=schema]").is_hidden()
        setting(page, temperature=0, response_format="json_object")
        ask(page, "hi")
        assert '"type": "object"' in submitted(s)[-1].constraint.replace('":"', '": "')
        setting(page, response_format="json_schema")
        ask(page, "hi")
        assert page.locator(".error").inner_text() == "Schema is empty."
        assert page.evaluate("document.activeElement.name") == "schema"
        setting(page, schema="{,}")
        page.get_by_role("button", name="Try again").click()
        page.locator(".error", has_text="Schema is not JSON: ").wait_for()
        setting(page, schema='{"uniqueItems": true}')
        page.get_by_role("button", name="Try again").click()
        page.locator(".error", has_text="uniqueItems").wait_for()
        assert page.locator("[name=schema]").get_attribute("aria-invalid") == "true"
        setting(page, schema=json.dumps(SCHEMA))
        body = sent(page, page.get_by_role("button", name="Try again").click)
        assert body["response_format"] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
        assert '"id"' in submitted(s)[-1].constraint
        assert page.locator("#forms-words").inner_text() == "Answer: JSON schema"
        page.locator("#reset-forms").click()
        assert page.locator("#forms").is_hidden()
        assert "response_format" not in sent(page, lambda: ask(page, "hi"))
        assert submitted(s)[-1].constraint == ""


def test_reasoning_is_open_while_it_is_written_and_folded_then(visit):
    text = "<think>\nLet me see, " + "hm, " * 20 + "</think>\n\nFine."
    with running(says(text, step_seconds=0.01), **NAMES) as s:
        page = visit(s.url)
        setting(page, temperature=0, reasoning_effort="high")
        ask(page, "hi", wait_for_end=False)
        box = answer(page).locator("details.thinking")
        box.locator("p", has_text="Let me see").wait_for()
        assert box.evaluate("box => box.open")
        page.locator("#send").wait_for()
        assert not box.evaluate("box => box.open")
        assert shown(page) == "Fine."
        assert "the server made no use of reasoning_effort" in answer(page).locator(".note").inner_text()
        box.locator("summary").click()
        assert box.locator("p").inner_text().startswith("Let me see")
        body = sent(page, lambda: ask(page, "more"))
        assert body["messages"][1] == {"role": "assistant", "content": "Fine."}


def test_a_tool_is_called_and_told_what_it_gave(visit):
    with running(says("<think>A tool.</think>\n\nI look. " + CALL), **NAMES) as s:
        page = visit(s.url)
        setting(page, temperature=0, tools=json.dumps(TOOL), tool_choice="required")
        body = sent(page, lambda: ask(page, "Weather?"))
        assert body["tools"] == [TOOL]  # one alone is a list of one
        assert body["tool_choice"] == "required"
        call = answer(page).locator("details.call")
        assert call.locator("summary").inner_text() == "Tool call get_weather"
        assert call.locator("pre").inner_text() == '{"city": "<b>Bern</b>"}'
        call.locator("textarea").fill("18 degrees")
        body = sent(page, page.locator(".send-results").click)
        _, said, told = body["messages"]
        assert said["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "<b>Bern</b>"}'}
        assert (said["content"], said["reasoning"]) == ("I look.", "A tool.")
        assert told == {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": "18 degrees"}
        assert "tool_choice" not in body  # the model is free to answer now
        assert page.locator(".said.you h2").all_inner_texts() == ["You", "Result of the tool"]
        assert page.locator(".send-results:visible").count() == 1  # of the last answer, which calls again


def test_a_call_that_is_cut_is_no_part_of_the_conversation(visit):
    with running(says("I look. " + CALL), **NAMES) as s:
        page = visit(s.url)
        setting(page, temperature=0, tools=json.dumps([TOOL]), max_tokens=60)
        ask(page, "Weather?")
        assert answer(page).locator("details.call").count() == 1
        assert page.locator(".send-results").count() == 0
        body = sent(page, lambda: ask(page, "more"))
        assert body["messages"][1] == {"role": "assistant", "content": "I look."}
        assert "tool_choice" not in body


def test_examples_show_json_a_tool_and_reasoning(visit):
    with running(says("x"), **NAMES) as s:
        page = visit(s.url)
        setting(page, temperature=0)
        body = sent(page, page.locator("#examples button", has_text="JSON").click)
        assert body["response_format"]["json_schema"]["schema"]["required"] == ["name", "age"]
        page.locator("#clear").click()
        body = sent(page, page.locator("#examples button", has_text="tool").click)
        assert "response_format" not in body
        assert body["tool_choice"] == "required"
        assert page.locator("[name=tool_choice]").is_visible()
        page.locator("#clear").click()
        body = sent(page, page.locator("#examples button", has_text="Reasoning").click)
        assert body["reasoning_effort"] == "medium"
        assert "tools" not in body
        page.locator("#clear").click()
        body = sent(page, page.locator("#examples button").first.click)
        assert body["messages"] == [{"role": "user", "content": "What is 347 + 586?"}]


def test_examples_that_the_model_cannot_follow_are_not_shown(visit):
    with running(says("x"), tool_call_parser="hermes", reasoning_parser="none") as s:
        page = visit(s.url)
        page.locator("#model:not(:empty)").wait_for()
        assert page.locator("#examples button", has_text="tool").is_visible()
        assert page.locator("#examples button", has_text="Reasoning").is_hidden()


def test_what_was_asked_is_a_program_in_python_that_asks_the_same(visit, monkeypatch, capsys):
    """The program runs, in this process, and the engine gets what it got from the page."""
    with running(says("Fine.")) as s:
        page = visit(s.url, permissions=["clipboard-read", "clipboard-write"])
        setting(page, temperature=0, top_k=7, min_p=0.25, seed=2**64 - 1, stop="END", logprobs=True, system=AWKWARD)
        setting(page, response_format="json_schema", schema=json.dumps(SCHEMA), key="secret")
        ask(page, AWKWARD)
        ask(page, "more")
        page.locator(".python").last.click()
        program = page.locator(".request").last.inner_text()
        page.locator(".copy:visible").click()
        page.locator(".copy", has_text="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == program
        assert "secret" not in program
        assert max(len(line) for line in program.splitlines() if "quoted" not in line) <= 100
        (call,) = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call) and node.keywords[2:]]
        extra = next(argument.value for argument in call.keywords if argument.arg == "extra_body")
        assert ast.literal_eval(extra) == {"top_k": 7, "min_p": 0.25}
        monkeypatch.setenv("KEY", "secret")
        exec(compile(program, "program", "exec"), {})  # what the page wrote is what is tested
        assert capsys.readouterr().out == "Fine.\n"
        by_page, by_program = submitted(s)[-2:]
        for name in ("prompt_token_ids", "params", "seed", "constraint"):
            assert getattr(by_page, name) == getattr(by_program, name), name
        page.locator(".python").last.click()
        assert page.locator(".request").last.is_hidden()


def test_the_clipboard_is_reached_where_a_page_is_not_given_it(visit):
    """Over plain http to another machine browsers have no `navigator.clipboard`."""
    with running(says("Fine.")) as s:
        page = visit(s.url, permissions=["clipboard-read"])
        setting(page, temperature=0)
        ask(page, "hi")
        page.locator(".curl").click()
        page.evaluate("window.kept = navigator.clipboard")
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        page.locator(".copy").click()
        page.locator(".copy", has_text="Copied").wait_for()
        assert page.evaluate("kept.readText()") == page.locator(".request").inner_text()
        assert re.match(r"curl -N http://[\w.:]+/v1/chat/completions ", page.locator(".request").inner_text())
