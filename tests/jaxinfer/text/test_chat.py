"""Chat templates: bytes of transformers' rendering, which template applies, and what is refused."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.text import ChatMessageError, ChatTemplateError, load_tokenizer
from jaxinfer.text.chat import ChatTemplates
from jaxinfer.text.template_environment import make_environment
from tests.jaxinfer.text.golden_cases import GOLDENS, case, read, tokenizer, write_folder

RENDERED = read("chats.json")["rendered"]
TEMPLATES = sorted({entry["template"] for entry in RENDERED})
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"add_generation_prompt": False},
    "prompt": {"add_generation_prompt": True},
    "tools": {"add_generation_prompt": True, "tools": True},
}
VARIABLES = {
    "enable_thinking": False,
    "extra": ["<x>", {"k": 1}],
    "documents": [{"title": "T", "text": "body"}],
    "eos_token": "<over>",
}
ONE = [{"role": "user", "content": "hi"}]


def _source(template: str) -> str:
    return (GOLDENS / "templates" / f"{template}.jinja").read_text(encoding="utf-8")


def _render(template: str, conversation: str, variant: str) -> str:
    clock = datetime.fromisoformat(read("chats.json")["clock"])
    chats = ChatTemplates(source=None, where="here", environment=make_environment(now=lambda: clock))
    inputs = read("inputs.json")
    with_tools = variant == "tools"
    return chats.render(
        inputs["conversations"][conversation],
        add_generation_prompt=VARIANTS[variant]["add_generation_prompt"],
        tools=inputs["tools"] if with_tools else None,
        template=_source(template),
        variables=VARIABLES if with_tools else {},
        special_tokens=tokenizer("byte_level").special_tokens,
    )


@pytest.mark.parametrize("template", TEMPLATES)
def test_rendering_equals_transformers(template: str) -> None:
    for entry in RENDERED:
        if entry["template"] != template:
            continue
        arguments = (template, entry["conversation"], entry["variant"])
        if isinstance(entry["text"], str):
            assert _render(*arguments) == entry["text"], arguments
        else:
            kind, message = entry["text"]
            with pytest.raises(ChatTemplateError) as caught:
                _render(*arguments)
            # Our own words for a namespace; what a template or Python says is passed on.
            assert message in str(caught.value) or "underscore" in str(caught.value), (kind, arguments)


def test_goldens_contain_both_kinds() -> None:
    refused = {entry["template"] for entry in RENDERED if not isinstance(entry["text"], str)}
    rendered = {entry["template"] for entry in RENDERED if isinstance(entry["text"], str)}
    assert {"inst", "turns", "headers", "refused/escape_class", "refused/mutation"} <= refused
    assert {"chatml", "inst", "turns", "headers", "controls", "json_forms", "thinking"} <= rendered


@pytest.mark.parametrize("entry", read("chats.json")["encoded"], ids=lambda entry: entry["template"])
def test_encoded_chats_equal_transformers(entry: dict[str, Any]) -> None:
    messages = read("inputs.json")["conversations"][entry["conversation"]]
    if entry["template"] == "headers":
        pinned = datetime.fromisoformat(read("chats.json")["clock"]).strftime("%d %b %Y")
        ids = tokenizer("byte_level").encode_chat(messages, template=_source("headers"), date_string=pinned)
    else:
        ids = tokenizer("byte_level").encode_chat(messages, template=_source(entry["template"]))
    assert ids == entry["ids"]


@pytest.mark.parametrize("number", range(len(read("chats.json")["folders"])))
def test_where_the_template_comes_from(tmp_path: Path, number: int) -> None:
    entry = read("chats.json")["folders"][number]
    base = case("byte_level")
    files = dict(entry["files"])
    files["tokenizer_config.json"] = base["files"]["tokenizer_config.json"] | files.get("tokenizer_config.json", {})
    loaded = load_tokenizer(write_folder(tmp_path, base, **files))
    inputs = read("inputs.json")
    assert loaded.chat_template == entry["chat_template"]
    for key, options in {"default": {}, "tools": {"tools": inputs["tools"]}, "named": {"template": "rag"}}.items():
        messages = inputs["conversations"]["one"]
        if isinstance(entry[key], str):
            assert loaded.render_chat(messages, add_generation_prompt=False, **options) == entry[key]
        else:
            with pytest.raises(ChatTemplateError, match=r"no chat template|none is named default"):
                loaded.render_chat(messages, **options)


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages must hold at least one message"),
        ("hi", "messages must be a list of objects, not str"),
        ({"role": "user"}, "messages must be a list of objects, not dict"),
        (["hi"], r"messages\[0\] must be an object with role and content, not str"),
        ([*ONE, {"content": "x"}], r"messages\[1\]\.role must be a non-empty string, got None"),
        ([{"role": "", "content": "x"}], r"messages\[0\]\.role must be a non-empty string, got ''"),
        ([{"role": 3, "content": "x"}], r"messages\[0\]\.role must be a non-empty string, got 3"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content must be a string or a list of text parts, not int"),
        ([{"role": "user", "content": [5]}], r"messages\[0\]\.content\[0\] must be an object"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "url": "u"}]}],
            r"messages\[0\]\.content\[1\]\.type must be \"text\", got 'image'",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\]\.content\[0\]\.text must be a string"),
        ([{"role": "user", "content": "a\ud800"}], r"messages\[0\]\.content holds the lone surrogate U\+D800 at char"),
        ([{"role": "user", "content": "a", "x": [object()]}], r"messages\[0\]\.x\[0\] must be made of JSON values"),
        ([{"role": "user", "content": "a", "x": {1: 2}}], r"key of messages\[0\]\.x must be a string, got 1"),
    ],
)
def test_bad_messages_name_the_field(messages: Any, field: str) -> None:
    with pytest.raises(ChatMessageError, match=field):
        tokenizer("byte_level").render_chat(messages, template="x")


def test_endless_nesting_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ChatMessageError, match="nested too deeply"):
        tokenizer("byte_level").render_chat([{"role": "user", "content": "a", "x": loop}], template="x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": {"name": "f"}}, "tools must be a list of objects, not dict"),
        ({"tools": [len]}, r"tools\[0\] must be an object, not builtin_function_or_method"),
        ({"documents": ["text"]}, r"documents\[0\] must be an object, not str"),
        ({"continue_final_message": True}, "template variable continue_final_message is not supported"),
        ({"thing": {1, 2}}, "thing must be made of JSON values, got set"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ChatMessageError, match=message):
        tokenizer("byte_level").render_chat(ONE, template="x", **options)


def test_content_may_be_absent_beside_a_tool_call_or_reasoning() -> None:
    loaded = tokenizer("byte_level")
    messages = [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, {"role": "a", "thinking": "t"}]
    template = "{{ messages[0].tool_calls[0].function.name }}{{ messages[1].reasoning_content }}"
    assert loaded.render_chat(messages, template=template) == "ft"


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_has_every_name_that_templates_read(key: str) -> None:
    """vLLM 0.32 passes it as reasoning and reasoning_content; gpt-oss' and Granite's templates read thinking."""
    template = "{% set m = messages[0] %}{{ m.reasoning_content }}{{ m.reasoning }}{{ m.thinking }}"
    assert tokenizer("byte_level").render_chat([{"role": "a", key: "r"}], template=template) == "rrr"


@pytest.mark.parametrize("answer", [{"content": ""}, {"content": None}, {}, {"content": []}, {"reasoning": "hm"}])
def test_an_answer_without_text_goes_into_templates_that_refuse_it(answer: dict[str, Any]) -> None:
    """Mistral's newest templates take no "" and no [], and demand that roles alternate."""
    template = (
        "{% for m in messages %}{% if m.content is none or m.content | length == 0 %}"
        "{{ raise_exception('a message must have a string or a list of chunks') }}{% endif %}[{{ m.role }}]"
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    messages = [*ONE, {"role": "assistant", **answer}, *ONE]
    assert tokenizer("byte_level").render_chat(messages, template=template) == "[user]hi[assistant][user]hi"


def test_the_callers_messages_are_not_changed() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "a", "name": None, "reasoning": "r"}]
    template = "{{ messages[0].reasoning_content }}{{ messages[0].name is defined }}"
    assert tokenizer("byte_level").render_chat(messages, template=template) == "rFalse"
    assert messages == [{"role": "user", "content": "a", "name": None, "reasoning": "r"}]


def test_errors_of_templates() -> None:
    loaded = tokenizer("byte_level")
    with pytest.raises(ChatTemplateError, match="error in line 2"):
        loaded.render_chat(ONE, template="\n{% if %}")
    with pytest.raises(ChatTemplateError, match="RecursionError"):
        loaded.render_chat(ONE, template="{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")
    with pytest.raises(ChatTemplateError, match="ZeroDivisionError"):
        loaded.render_chat(ONE, template="{{ 1 // 0 }}")
    with pytest.raises(ChatTemplateError, match="template must be a string, not int"):
        loaded.render_chat(ONE, template=3)  # type: ignore[arg-type]


def test_compiled_templates_are_bounded() -> None:
    chats = ChatTemplates(source=None, where="here")
    for number in range(100):
        text = chats.render(
            ONE, add_generation_prompt=False, tools=None, template=f"{number}", variables={}, special_tokens={}
        )
        assert text == str(number)
    assert len(chats._compiled) <= 16


def test_strftime_now_is_local_time_by_default() -> None:
    before = datetime.now().strftime("%Y-%m-%d")
    text = tokenizer("byte_level").render_chat(ONE, template="{{ strftime_now('%Y-%m-%d') }}")
    assert before <= text <= datetime.now().strftime("%Y-%m-%d")
