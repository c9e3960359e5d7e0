"""Conversations reach templates that have no place for a part of them, as gpt-oss's own, without a loss."""

from __future__ import annotations

from typing import Any

import pytest

from jaxinfer.errors import ChatTemplateError
from jaxinfer.text.chat import ChatTemplates

# As gpt-oss's: instructions are the first message's alone, a message has one call, whose name its result takes over,
# and beside it text or reasoning.
NARROW = """
{%- set told = messages[0].role in ["system", "developer"] %}
{%- if told %}[{{ messages[0].content }}]{% endif %}
{%- set called = namespace(name=none) %}
{%- for m in messages[(1 if told else 0):] %}
{%- if m.role == "assistant" and "tool_calls" in m %}
{%- if m.content and m.thinking %}{{ raise_exception("text and reasoning") }}{% endif %}
{%- set called.name = m.tool_calls[0].function.name %}
{{- "(" ~ (m.thinking or m.content) ~ ")" ~ called.name ~ (m.tool_calls[0].function.arguments | tojson) ~ ";" }}
{%- elif m.role == "assistant" %}{{ "assistant:" ~ m.content ~ ";" }}
{%- elif m.role == "tool" %}
{%- if called.name is none %}{{ raise_exception("no call") }}{% endif %}
{{- called.name ~ "=" ~ m.content ~ ";" }}
{%- elif m.role == "user" %}{{ "user:" ~ m.content ~ ";" }}
{%- endif %}{%- endfor %}"""
# Has a place for everything.
WIDE = """
{%- for m in messages %}{{ m.role }}:{{ m.thinking }}|{{ m.content }}
{%- for c in m.tool_calls or [] %}+{{ c.function.name }}{% endfor %};{% endfor %}"""
DEVELOPER = WIDE + "{# a role: 'developer' #}"
# As Kimi K2's: a call is its id.
BY_IDS = """
{%- for m in messages %}{% if m.role == "user" %}user{% endif %}
{%- for c in m.tool_calls or [] %}+{{ c.id }}{% endfor %}{% if m.role == "tool" %}={{ m.tool_call_id }}{% endif %};
{%- endfor %}"""
# As Mistral's and Gemma's: one system message, at the beginning, and then the two others by turns.
BY_TURNS = """
{%- if messages[0].role == "system" %}[{{ messages[0].content }}]{% set messages = messages[1:] %}{% endif %}
{%- for m in messages %}
{%- if m.role == "system" or (m.role == "user") != (loop.index0 % 2 == 0) %}{{ raise_exception("by turns") }}{% endif %}
{{- m.role ~ ":" ~ m.content ~ ";" }}
{%- endfor %}"""
# Leaves later ones out without a word.
SILENT = """
{%- if messages[0].role == "system" %}[{{ messages[0].content }}]{% endif %}
{%- for m in messages if m.role != "system" %}{{ m.role ~ ":" ~ m.content ~ ";" }}{% endfor %}"""
USER = {"role": "user", "content": "Tides?"}
ANSWER = {"role": "assistant", "content": "High."}


def call(name: str, id_: str | None = None, **arguments: Any) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(text: str, id_: str | None = None) -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": id_}


def render(source: str, *messages: dict[str, Any], continue_final: bool = False) -> str:
    return ChatTemplates(source, "the test").render(
        messages,
        add_generation_prompt=False,
        tools=None,
        template=None,
        variables={},
        special_tokens={},
        settle=True,
        continue_final=continue_final,
    )


def test_instructions_become_one_message_where_one_is_shown() -> None:
    system, developer = (
        {"role": "system", "content": "A."},
        {"role": "developer", "content": [{"type": "text", "text": "B."}]},
    )
    assert render(NARROW, system, developer, USER) == "[A.\n\nB.]user:Tides?;"
    assert render(NARROW, developer, USER, system, USER) == "[B.\n\nA.]user:Tides?;user:Tides?;"
    assert render(NARROW, USER, developer) == "[B.]user:Tides?;"
    assert render(NARROW, system, system, USER) == "[A.\n\nA.]user:Tides?;"
    assert render(NARROW, developer, USER) == "[B.]user:Tides?;"
    assert render(DEVELOPER, system, developer, USER) == "system:|A.;developer:|B.;user:|Tides?;"
    assert render(DEVELOPER, USER, system) == "user:|Tides?;system:|A.;"
    assert render(WIDE, USER, developer, system) == "system:|B.\n\nA.;user:|Tides?;"


def test_later_system_messages_are_the_users_where_the_template_has_no_place_for_them() -> None:
    system = {"role": "system", "content": "A."}
    assert render(WIDE, system, USER, system) == "system:|A.;user:|Tides?;system:|A.;"
    assert render(BY_TURNS, system, USER, system) == "[A.]user:Tides?\nA.;"
    assert render(BY_TURNS, USER, system, ANSWER, system, USER) == "user:Tides?\nA.;assistant:High.;user:A.\nTides?;"
    assert render(BY_TURNS, USER, ANSWER, system) == "user:Tides?;assistant:High.;user:A.;"
    assert render(SILENT, system, USER, ANSWER, system) == "[A.]user:Tides?;assistant:High.;user:A.;"
    assert render(SILENT, USER, USER, system) == "user:Tides?;user:Tides?\nA.;"
    with pytest.raises(ChatTemplateError, match="by turns"):
        render(BY_TURNS, USER, USER)


def test_calls_get_messages_of_their_own_where_one_is_shown() -> None:
    called = {
        "role": "assistant",
        "thinking": "Hm.",
        "tool_calls": [call("f", "a", x=1), call("g", "b"), call("h", "c")],
    }
    every = '(Hm.)f{"x": 1};f=1;()g{};g=2;()h{};h=3;'
    assert render(NARROW, USER, called, result("1", "a"), result("2", "b"), result("3", "c")) == "user:Tides?;" + every
    assert render(NARROW, USER, called, result("3", "c"), result("1", "a"), result("2", "b")) == "user:Tides?;" + every
    assert render(NARROW, USER, called, result("1"), result("2"), result("3")) == "user:Tides?;" + every
    assert render(NARROW, called, result("2", "b"), USER, called, result("?", "z")) == (
        '(Hm.)f{"x": 1};()g{};g=2;()h{};user:Tides?;(Hm.)f{"x": 1};()g{};()h{};h=?;'
    )
    assert render(WIDE, USER, called, result("1", "a")) == "user:|Tides?;assistant:Hm.|+f+g+h;tool:|1;"


def test_ids_name_the_functions_where_they_alone_are_shown() -> None:
    first = {"role": "assistant", "tool_calls": [call("f", "a"), call("g", "b")]}
    second = {"role": "assistant", "tool_calls": [call("f", "a")]}  # clients may use an id again
    shown = render(BY_IDS, USER, first, result("2", "b"), result("1", "a"), second, result("3", "a"), second)
    assert shown == (
        "user;+functions.f:0+functions.g:1;=functions.g:1;=functions.f:0;+functions.f:2;=functions.f:2;+functions.f:3;"
    )
    unnamed = {"role": "assistant", "tool_calls": [call("f"), call("g")]}
    assert render(BY_IDS, unnamed, result("1"), result("2"), result("?", "z")) == (
        "+functions.f:0+functions.g:1;=functions.f:0;=functions.g:1;=z;"
    )


def test_text_beside_a_call_joins_the_reasoning_where_one_is_taken() -> None:
    called = {"role": "assistant", "content": "I look.", "tool_calls": [call("f")]}
    assert render(NARROW, USER, {**called, "reasoning": "Hm."}) == "user:Tides?;(Hm.\n\nI look.)f{};"
    assert render(NARROW, USER, called) == "user:Tides?;(I look.)f{};"
    assert render(NARROW, USER, {**called, "content": None, "thinking": "Hm."}) == "user:Tides?;(Hm.)f{};"
    assert render(WIDE, USER, {**called, "reasoning": "Hm."}) == "user:|Tides?;assistant:Hm.|I look.+f;"
    answer = {"role": "assistant", "content": "High.", "reasoning": "Hm."}
    assert render(NARROW, USER, answer) == "user:Tides?;assistant:High.;"


def test_what_a_template_refuses_itself_stays_refused() -> None:
    with pytest.raises(ChatTemplateError, match="no call"):
        render(NARROW, USER, result("1", "a"))
