"""The handed conversations, templates and answers (reports/), each over a real socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.messages import Submit
from jaxinfer.text import Tokenizer, load_tokenizer
from tests.fakes import FakeOptions, write_tokenizer
from tests.serving.harness import run
from tests.serving.http.harness import HttpServer, http_serving, says

REPORTS = Path(__file__).parent / "reports"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
# What f02's messages are read with: the arguments as the template sees them.
SHOWS_ARGUMENTS = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}({{ c.function.arguments | tojson }}){% endfor %};{% endfor %}"
)
# What f08's answer is asked with: Qwen3's form, the reasoning opened by the prompt.
OPENS_REASONING = (
    "{%- for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}{%- for c in m.tool_calls or [] %}"
    """<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>"""
    "{%- endfor %}{%- endfor %}{%- if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


def report(name: str) -> Any:
    text = (REPORTS / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else text


@pytest.fixture
def with_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lets servers of this test have another chat template."""

    def use(source: str) -> Tokenizer:
        config_file = write_tokenizer(tmp_path) / "tokenizer_config.json"
        config = json.loads(config_file.read_text()) | {"chat_template": source}
        config_file.write_text(json.dumps(config))
        tokenizer = load_tokenizer(tmp_path)
        monkeypatch.setattr("tests.serving.harness.tokenizer", lambda: tokenizer)
        return tokenizer

    return use


def prompt(server: HttpServer) -> str:
    return bytes(server.grpc.received(Submit)[-1].prompt_token_ids).decode()


@pytest.mark.parametrize(
    ("template", "request_file", "expect_file", "prompt_seen"),
    [
        (
            "f01a.template.jinja",
            "f01.request.json",
            "f01a.expect.json",
            '\n<user>Weather in Bern?</user>\n<assistant>[call get_weather {"city": "Bern"}]</assistant>\n'
            "<tool>21 degrees</tool>",
        ),
        (
            "f01b.template.jinja",
            "f01.request.json",
            "f01b.expect.json",
            'user="Weather in Bern?";assistant="";tool="21 degrees";',
        ),
        (None, "f02a.request.json", "f02a.expect.json", "user:Time?;assistant:({});tool:12:00;"),
        (
            None,
            "f02b.request.json",
            "f02b.expect.json",
            "user:Write it.;assistant:({});tool:error: arguments are not JSON;user:Again.;",
        ),
        ("f07a.template.jinja", "f07a.request.json", "f07a.expect.json", "[user]First part.Second part."),
    ],
)
def test_what_a_template_sees(
    with_template, template: str | None, request_file: str, expect_file: str, prompt_seen: str
) -> None:
    with_template(SHOWS_ARGUMENTS if template is None else report(template))
    expected = report(expect_file)
    seen = prompt_seen.replace("\n", "")
    if "prompt" in expected:
        assert expected["prompt"].startswith(seen)  # a remark may follow
    else:
        assert f"({json.dumps(expected['arguments_seen_by_template'])})" in seen

    async def test() -> None:
        async with http_serving(FakeOptions()) as s:
            response = await s.post("/v1/chat/completions", **report(request_file))
            assert response.status_code == 200, response.text
            # transformers drops the line break at a template's end, and a block's first.
            assert prompt(s).replace("\n", "") == seen

    run(test())


def test_a_format_that_shares_a_tag_with_another_is_its_own(with_template) -> None:
    with_template(report("f03a.template.jinja"))
    _, found = report("f03a.expect.json")["either"]  # of the two that would do, the one that is built
    ((name, arguments),) = found["tool_calls"]

    async def test() -> None:
        async with http_serving(says(report("f03a.answer.txt"))) as s:
            choice = (await s.chat("Weather in Bern?", tools=[WEATHER], max_tokens=400))["choices"][0]
            (call,) = choice["message"]["tool_calls"]
            assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == (name, arguments)
            assert (choice["message"]["content"], choice["finish_reason"]) == (None, found["finish_reason"])

    run(test())


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_ends_a_reasoning_that_is_never_closed(with_template, stream: bool) -> None:
    with_template(OPENS_REASONING)
    expected = report("f08a.expect.json")

    async def test() -> None:
        async with http_serving(says(report("f08a.answer.txt"))) as s:
            body = {"messages": [{"role": "user", "content": "Weather?"}], "temperature": 0, "tools": [WEATHER]}
            if stream:
                events = await s.events("/v1/chat/completions", **body)
                choices = [event["choices"][0] for event in events[:-1] if event["choices"]]
                deltas = [choice["delta"] for choice in choices]
                reasoning = "".join(delta.get("reasoning") or "" for delta in deltas)
                content = "".join(delta.get("content") or "" for delta in deltas) or None
                told = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
                names = [call["name"] for call in told if "name" in call]
                arguments = ["".join(call.get("arguments", "") for call in told)]
                finish = next(choice["finish_reason"] for choice in choices if choice["finish_reason"])
            else:
                choice = (await s.post("/v1/chat/completions", **body)).json()["choices"][0]
                message, finish = choice["message"], choice["finish_reason"]
                reasoning, content = message["reasoning"], message["content"]
                names = [call["function"]["name"] for call in message["tool_calls"]]
                arguments = [call["function"]["arguments"] for call in message["tool_calls"]]
            assert (reasoning, content, finish) == (
                expected["reasoning"],
                expected["content"],
                expected["finish_reason"],
            )
            calls = [[name, json.loads(text)] for name, text in zip(names, arguments, strict=True)]
            assert calls == expected["tool_calls"]

    run(test())
