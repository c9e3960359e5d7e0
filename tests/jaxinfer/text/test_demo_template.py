"""The demo's chat template: what it writes with and without tools and thinking, and that its own formats are read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.errors import ChatTemplateError
from jaxinfer.model_path import demo_path
from jaxinfer.text import load_tokenizer
from jaxinfer.text.answers import OutputParser, collect, output_parser_names

ROOT = Path(__file__).parents[3]
TOKENIZER = load_tokenizer(demo_path())
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.\n\nOf today, or of a later day.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name"},
                "unit": {"enum": ["C", "F"]},
                "days": {"type": ["integer", "null"]},
                "more": {},
            },
            "required": ["city"],
        },
    },
}
CALLS = [("get_weather", {"city": "Paris <3", "days": 2}), ("get_weather", {"city": "東京"})]
ASKED = {"role": "user", "content": "How is the weather?"}
CALLING = {
    "role": "assistant",
    "content": "",
    "reasoning_content": "I call it.",
    "tool_calls": [{"id": name, "function": {"name": name, "arguments": json.dumps(given)}} for name, given in CALLS],
}
RESULTS = [{"role": "tool", "tool_call_id": "x", "content": text} for text in ("sunny", "rainy")]


TRAINED = (ROOT / "scripts" / "demo_training" / "chat_template.jinja").read_text()


def render(messages: list[dict[str, Any]], **more: Any) -> str:
    return TOKENIZER.render_chat(messages, **{"template": TRAINED, **more})


def test_both_checkpoints_have_the_template_of_training_without_thinking() -> None:
    """Their weights were not trained on it: told to think, they would answer inside the reasoning."""
    shipped = TOKENIZER.chat_template
    assert shipped == (demo_path().with_name("demo_draft") / "chat_template.jinja").read_text()
    assert isinstance(shipped, str)
    assert not re.search("think|reasoning", shipped)
    chats = [
        [ASKED],
        [{"role": "system", "content": "Be brief."}, ASKED, {**CALLING, "reasoning_content": ""}, *RESULTS],
    ]
    for chat in [*chats, [*chats[1], {"role": "assistant", "content": "Well."}, ASKED]]:
        plain = [{key: value for key, value in message.items() if key != "reasoning_content"} for message in chat]
        for tools in (None, [WEATHER]):
            assert render(plain, tools=tools, template=shipped) == render(plain, tools=tools)
    form = output_parser_names("auto", "auto", shipped)
    assert (form.tool_calls, form.reasoning) == ("hermes", "none")


def test_a_chat_without_tools_and_thinking_is_roles_and_ends() -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        ASKED,
        {"role": "assistant", "content": " <b>{{ 7 }}</b>\n", "reasoning_content": "of an earlier answer"},
        {"role": "user", "content": "你好\n"},
    ]
    plain = "<s><|system|>Be brief.<|end|><|user|>How is the weather?<|end|>"
    plain += "<|assistant|> <b>{{ 7 }}</b>\n<|end|><|user|>你好\n<|end|><|assistant|>"
    for more in ({}, {"tools": []}, {"enable_thinking": False}):
        assert render(chat, **more) == plain
    assert render(chat, enable_thinking=True) == plain + "<think>\n"
    with pytest.raises(ChatTemplateError, match="role critic is unknown: use system, user, assistant or tool"):
        render([{"role": "critic", "content": "?"}])


def test_tools_are_a_line_each() -> None:
    line = (
        'Functions:\nget_weather(city: string, unit?: "C"|"F", days?: integer|null, more?: any): The weather in a city.'
    )
    asked = "<|end|><|user|>How is the weather?<|end|><|assistant|>"
    assert render([ASKED], tools=[WEATHER]) == f"<s><|system|>{line}{asked}"
    system = {"role": "system", "content": "Be brief."}
    assert render([system, ASKED], tools=[WEATHER]) == f"<s><|system|>Be brief.\n\n{line}{asked}"
    bare = {"type": "function", "function": {"name": "now"}}
    assert render([ASKED], tools=[bare, WEATHER]).startswith("<s><|system|>Functions:\nnow()\nget_weather(")


def test_calls_and_results_are_shown_and_reasoning_until_the_next_question() -> None:
    calls = "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(given, ensure_ascii=False)}}}\n</tool_call>'
        for name, given in CALLS
    )
    told = "".join(f"\n<tool_response>\n{text}\n</tool_response>" for text in ("sunny", "rainy")).strip()
    asked = "<|user|>How is the weather?<|end|>"
    shown = render([ASKED, CALLING, *RESULTS], tools=[WEATHER], enable_thinking=True)
    thought = "<think>\nI call it.\n</think>\n"
    behind = f"<|end|><|user|>{told}<|end|><|assistant|>"
    assert shown.partition("<|end|>")[2] == f"{asked}<|assistant|>{thought}{calls}{behind}<think>\n"
    answer = {"role": "assistant", "content": "Well."}
    later = render([ASKED, CALLING, *RESULTS, answer, ASKED], tools=[WEATHER])
    assert later.partition("<|end|>")[2] == f"{asked}<|assistant|>{calls}{behind}Well.<|end|>{asked}<|assistant|>"
    said = render([ASKED, {**CALLING, "content": "Let me see."}], tools=[WEATHER], add_generation_prompt=False)
    assert said.endswith(f"{thought}Let me see.\n{calls}<|end|>")


def test_the_server_reads_what_the_template_shows() -> None:
    form = output_parser_names("auto", "auto", TRAINED)
    assert (form.tool_calls, form.reasoning, form.variant, form.unopened) == ("hermes", "think", 0, False)
    prompt = render([ASKED], tools=[WEATHER], enable_thinking=True)
    assert form.begun(prompt)
    assert not form.begun(render([ASKED], tools=[WEATHER]))
    turn = render([ASKED, CALLING], tools=[WEATHER], add_generation_prompt=False).removeprefix(prompt)
    parser = OutputParser(form, tools={"get_weather": {}}, begun=True)
    answer = collect([*parser.push(turn.removesuffix("<|end|>")), *parser.finish()])
    assert (answer.content, answer.reasoning.strip()) == ("", "I call it.")
    assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == CALLS
