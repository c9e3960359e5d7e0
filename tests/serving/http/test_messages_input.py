"""The Messages API's requests: what becomes of turns, blocks, tools and settings, and what is refused or reported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from jaxinfer.errors import InvalidRequest
from jaxinfer.text import Tokenizer
from jaxinfer.text.answers import OutputParserNames
from serving.http import ignored, messages_input
from serving.http.decode import decode
from serving.http.messages_models import MessagesRequest
from serving.http.thinking_signature import signature_of
from serving.request import ChatPrompt, ModelContext
from tests.serving.harness import tokenizer

HERMES = OutputParserNames("hermes", "think")
USER = {"role": "user", "content": "hi"}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "21"}
CALLED = {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def converted(
    form: OutputParserNames = HERMES, template: Tokenizer | None = None, pinned_pages: int = 0, **body: Any
) -> tuple[ChatPrompt, tuple[str, ...]]:
    """The prompt, and what was reported. template: of the tests' own tokenizer, unless one with another is given.
    pinned_pages: that the engine can pin."""
    spoken: Any = {
        "info": SimpleNamespace(max_pinned_pages=pinned_pages),
        "name": "m",
        "tokenizer": template or tokenizer(),
        "defaults": {},
    }
    context = ModelContext(**spoken, draw_seed=lambda: 0)
    with ignored.collecting("report") as found:
        request = decode(msgspec.json.encode({"max_tokens": 8, "messages": [USER], **body}), MessagesRequest)
        (generation,) = messages_input.to_requests(request, context, form)
    assert isinstance(generation.prompt, ChatPrompt)
    return generation.prompt, found.names


def test_a_budget_is_that_of_models_that_reason():
    for form, kind, told in (
        (OutputParserNames("hermes", "think"), "enabled", True),
        (OutputParserNames("harmony", "harmony"), "enabled", True),
        (OutputParserNames("hermes", "think"), "disabled", False),
        (HERMES._replace(reasoning="none"), "enabled", False),
    ):
        info = SimpleNamespace(max_pinned_pages=0)
        spoken: Any = {"info": info, "name": "m", "tokenizer": tokenizer(), "defaults": {}}
        body = {"max_tokens": 8, "messages": [USER], "thinking": {"type": kind, "budget_tokens": 1024}}
        with ignored.collecting("report") as found:
            request = decode(msgspec.json.encode(body), MessagesRequest)
            (generation,) = messages_input.to_requests(request, ModelContext(**spoken, draw_seed=lambda: 0), form)
        assert generation.sampling.get("thinking_token_budget") == (1024 if told else None)
        assert ("thinking.budget_tokens" in found.names) != told


def messages(*turns: dict[str, Any], **body: Any) -> list[Any]:
    return list(converted(messages=list(turns), **body)[0].messages)


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def test_turns_become_messages():
    system = {"role": "system", "content": "S"}
    assert messages(USER, system="S") == [system, USER]
    assert messages(USER, system=[text("S", cache_control={"type": "ephemeral"})]) == [system, USER]
    two = [text("A"), text("B")]
    assert messages(USER, system=two) == [{"role": "system", "content": two}, USER]
    for nothing in (None, "", []):
        assert messages(USER, system=nothing) == [USER]
    assert messages(USER, system) == [USER, system]  # between turns, and behind the last
    assert messages(USER, {"role": "user", "content": [text("A"), "B"]}) == [
        {"role": "user", "content": [text("hi"), *two]}
    ]  # turns of one role are one
    assert messages({"role": "user", "content": [text("hi")]}) == [USER]
    assert messages({"role": "user", "content": []}) == [{"role": "user", "content": ""}]


def test_one_answer_is_one_message_and_results_follow_it():
    answer = [
        {"type": "thinking", "thinking": "so", "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
        text("I look."),
        CALL,
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
    ]
    turns = [USER, {"role": "assistant", "content": answer}, {"role": "user", "content": [text("go on"), RESULT]}]
    prompt, reported = converted(messages=turns)
    assert list(prompt.messages) == [
        USER,
        {"role": "assistant", "content": "I look.", "reasoning_content": "so", "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "21"},
        {"role": "user", "content": "go on"},
    ]
    assert reported == (
        "messages[1].content[1].redacted_thinking",
        "messages[1].content[4].server_tool_use",
        "messages[1].content[5].web_search_tool_result",
    )
    omitted = {"type": "thinking", "thinking": "", "signature": signature_of("sø", omitted=True)}
    answers = [{"role": "assistant", "content": [omitted]}, {"role": "assistant", "content": [CALL]}]
    assert messages(USER, *answers, USER)[1:-1] == [
        {"role": "assistant", "content": "", "reasoning_content": "sø", "tool_calls": [CALLED]}
    ]
    for strange in ("text:", "text:%%", "text:gA==", "sha"):
        block = {"type": "thinking", "thinking": "", "signature": strange}
        assert messages(USER, {"role": "assistant", "content": [block]}, USER)[1] == {
            "role": "assistant",
            "content": "",
        }


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"content": None}, ""),
        ({"content": [text("A"), text("B", cache_control={"type": "ephemeral"})]}, "A\nB"),
        ({"content": "no such file", "is_error": True}, "Error: no such file"),
        ({"content": [], "is_error": True}, "Error"),
        ({"content": "21", "is_error": False}, "21"),
        ({"content": [{"type": "tool_reference", "tool_name": "g"}]}, "g"),
        ({"content": [{"type": "search_result", "title": "T", "source": "u", "content": [text("A")]}]}, "T\nu\nA"),
    ],
)
def test_results_are_text(result, expected):
    turns = [USER, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [{**RESULT, **result}]}]
    assert messages(*turns)[-1] == {"role": "tool", "tool_call_id": "toolu_1", "content": expected}


def test_documents_that_are_text_are_read():
    plain = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "A"}}
    parts = {"type": "document", "context": "C", "source": {"type": "content", "content": [text("A"), text("B")]}}
    assert messages({"role": "user", "content": [plain, parts]}) == [
        {"role": "user", "content": [text("T\nA"), text("C\nA\nB")]}
    ]


def test_tools_are_offered_and_those_of_the_provider_are_passed_over():
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
    bare = {"name": "mcp__" + "x" * 100, "type": "custom", "cache_control": {"type": "ephemeral"}, "strict": False}
    prompt, reported = converted(tools=[TOOL, search, bare])
    assert prompt.tools == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": TOOL["input_schema"]}},
        {"type": "function", "function": {"name": bare["name"], "parameters": {"type": "object", "properties": {}}}},
    ]
    assert reported == ("tools[1].web_search_20250305", "tools[2].cache_control")
    assert converted(tools=[search])[0].tools is None
    assert converted(tools=[TOOL], tool_choice={"type": "none"})[0].tools is None
    for nothing in (None, []):
        assert converted(tools=nothing, tool_choice={"type": "auto"})[0].tools is None


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "at least one message"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "user, assistant or system"),
    ({"messages": [USER, {"role": "assistant", "content": ""}]}, "messages[1].role", "must be text"),
    ({"messages": [USER, {"role": "assistant", "content": [CALL]}]}, "messages[1].role", "must be text"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "a string or a list of blocks"),
    ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]", "an object like"),
    ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type", "a string"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "a string"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type",
     "it is an image, and the language model alone is served"),
    ({"messages": [{"role": "user", "content": [{**RESULT, "content": [{"type": "image"}]}]}]},
     "messages[0].content[0].content[0].type", "it is an image"),
    ({"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "base64"}}]}]},
     "messages[0].content[0].source.type", "only the sources text and content"),
    ({"messages": [{"role": "user", "content": [CALL]}]}, "messages[0].content[0].type", "only text, document"),
    ({"messages": [{"role": "assistant", "content": [RESULT]}]}, "messages[0].content[0].type", "only text, thinking"),
    ({"messages": [{"role": "assistant", "content": [{**CALL, "input": "x"}]}]}, "messages[0].content[0].input",
     "an object"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id",
     "a string"),
    ({"system": [{"type": "image"}]}, "system[0].type", "it is an image"),
    ({"tools": [{"name": "a b"}]}, "tools[0].name", "1 to 128"),
    ({"tools": [{"name": "f", "input_schema": "x"}]}, "tools[0].input_schema", "an object"),
    ({"tools": [{"name": "f", "description": 5}]}, "tools[0].description", "a string"),
    ({"tools": [{"type": 5}]}, "tools[0].type", "a string"),
    ({"tools": [{**TOOL, "strict": "yes"}]}, "tools[0].strict", "true, false or null"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name", "one of the offered tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name", "which are f"),
    ({"tool_choice": {"type": "any"}}, "tool_choice.type", "it needs tools"),
    (
        {"output_format": {"type": "json_schema", "schema": {}}, "structured_outputs": {"regex": "a"}},
        "output_config.format",
        "give one of them",
    ),
    ({"metadata": {"user_id": "x" * 513}}, "metadata.user_id", "at most 512 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "field", "allowed"), REFUSED)
def test_what_cannot_be_done_is_refused_by_name(body, field, allowed):
    with pytest.raises(InvalidRequest) as refused:
        converted(**body)
    assert refused.value.field == field
    assert allowed in refused.value.allowed


def test_a_model_whose_calls_nobody_can_read_gets_no_tools():
    with pytest.raises(InvalidRequest, match="does not know how the model writes tool calls"):
        converted(OutputParserNames(), tools=[TOOL])


def test_what_has_no_effect_is_reported():
    marked = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    prompt, reported = converted(
        OutputParserNames("hermes", "none"),
        messages=[{"role": "user", "content": [text("hi", **marked, citations=None, novel=1)], "novel": 2}],
        system=[text("S", **marked)],
        tools=[{**TOOL, "defer_loading": True, "novel": 3}],
        thinking={"type": "adaptive", "budget_tokens": 2048, "display": "updates"},
        output_config={"effort": "high"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        service_tier="auto",
        speed="fast",
        novel=4,
    )
    assert set(reported) == {
        *("messages[0].content[0].cache_control", "messages[0].content[0].novel", "messages[0].novel"),
        *("system[0].cache_control", "tools[0].defer_loading", "tools[0].novel"),
        *(
            "thinking.type",
            "thinking.display",
            "thinking.budget_tokens",
            "output_config.effort",
            "context_management",
            "speed",
            "novel",
        ),
    }
    assert prompt.variables == {}


def test_thinking_and_effort_reach_a_template_that_reads_them(monkeypatch):
    source = (
        "{% for m in messages %}{{ m.content }};{% endfor %}{% if reasoning_effort is defined %}"
        "{% if reasoning_effort not in ['low', 'high'] %}{{ raise_exception('no') }}{% endif %}"
        "<{{ reasoning_effort }}>{% endif %}{% if %s is defined and not %s %}<think></think>{% endif %}"
    )
    for switch in ("enable_thinking", "thinking"):
        monkeypatch.setattr("tests.fakes.CHAT_TEMPLATE", source.replace("%s", switch))
        given = tokenizer.__wrapped__()
        for kind, expected in (("enabled", True), ("adaptive", True), ("between_tools", True), ("disabled", False)):
            prompt, reported = converted(template=given, thinking={"type": kind})
            assert (prompt.variables, reported) == ({switch: expected}, ())
        prompt, reported = converted(template=given, thinking={"type": "of_next_year"})
        assert (prompt.variables, reported) == ({}, ("thinking.type",))
        own = converted(template=given, thinking={"type": "enabled"}, chat_template_kwargs={switch: False})[0]
        assert own.variables == {switch: False}
        for effort, expected in (("low", "low"), ("high", "high"), ("xhigh", "high"), ("max", "high")):
            prompt, reported = converted(template=given, output_config={"effort": effort})
            assert (prompt.variables, reported) == ({"reasoning_effort": expected}, ())
        prompt, reported = converted(template=given, output_config={"effort": "medium"})
        assert (prompt.variables, reported) == ({}, ("output_config.effort",))
