"""A conversation that the server's own answer began goes on: whatever the model wrote, whole or streamed, comes back as
the assistant's turn and renders in every template that takes tools. In the property tests the servers' converters are
run as they are, on the answers' events; only the engine and the sockets are left out."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.text.answers import (
    CallArguments,
    CallName,
    Content,
    Event,
    OutputParser,
    OutputParserNames,
    collect,
    output_parser_names,
)
from jaxinfer.text.answers.formats import CALL_SPELLINGS
from jaxinfer.text.chat import ChatTemplates
from serving.http import chat_input, responses_input
from serving.http.answers import new_call_id
from serving.http.decode import decode
from serving.http.models import ChatRequest
from serving.http.response_turn import ResponseTurn
from serving.http.responses_models import ResponsesRequest
from tests.jaxinfer.text.answers import templates
from tests.serving.harness import run
from tests.serving.http.harness import http_serving, says

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": None, "parameters": None}},
    {"type": "function", "function": {"name": "f", "parameters": {}}},
]
NAMES = ("get_weather", "f")
_NO_SUMMARY = {"summary": [], "encrypted_content": None, "status": None}
USER = {"role": "user", "content": "Weather?"}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
SHAPES = {
    "hermes": [templates.HERMES, templates.QWEN3, templates.XML, templates.LISTED, templates.PHI4_MINI],
    "granite": [templates.GRANITE, templates.PHI4],
    "llama3": [templates.LLAMA3],
    "mistral": [templates.MISTRAL, templates.MISTRAL_NAMED],
    "qwen3_xml": [templates.XML],
    "glm45": [templates.ARG_KEYS, templates.ARG_KEYS_CLOSE],
    "gemma4": [templates.GEMMA4],
    "nemotron": [templates.NEMOTRON],
    "deepseek_v3": [templates.DEEPSEEK],
    "deepseek_v31": [templates.DEEPSEEK_V31],
    "deepseek_v32": [templates.DEEPSEEK_V32],
    "kimi_k2": [templates.KIMI],
    "minimax_m2": [templates.MINIMAX],
    "seed_oss": [templates.SEED],
    "harmony": [templates.HARMONY, templates.HARMONY_NARROW],
}
ARGUMENTS = [
    "{}",
    '{"city": "Bern"}',
    '{"t": "a\nb"}',
    '{"a": 1,}',
    '""',
    "null",
    "[]",
    "5",
    '"{}"',
    '"x"',
    '{"t": "\\ud83d"}',
]
_TEXTS = st.sampled_from(
    [
        *("", " ", "\n", "I look. ", "é\u2028", "</think>", "<think>\nhm\n</think>\n\n", "<think>", "once up"),
        *("<|channel|>analysis<|message|>hm<|end|>", "<|channel|>commentary<|message|>I look.<|end|>", "<|channel|>"),
    ]
)


def _call(form: str, name: str, arguments: str) -> str:
    if form == "llama3":
        return f'{{"name": "{name}", "parameters": {arguments}}}'
    if form == "harmony":
        return f"<|start|>assistant to=functions.{name}<|channel|>commentary json<|message|>{arguments}<|end|>"
    call = f'{{"name": "{name}", "arguments": {arguments}}}'
    tagged = {
        "hermes": f"<tool_call>\n{call}\n</tool_call>",
        "granite": f"<|tool_call|>[{call}]",
        "mistral": f"[TOOL_CALLS][{call}]",
    }
    if form in tagged:
        return tagged[form]
    spelling = CALL_SPELLINGS[form][0]
    try:
        return spelling.spell_all([(name, arguments)]).encode("utf-8", "replace").decode("utf-8")
    except (ValueError, AttributeError):  # no JSON object: as it is, where the arguments stand
        return spelling.before_name + name + spelling.before_arguments + arguments + spelling.after_arguments


@st.composite
def answers(draw: Any) -> tuple[str, str]:
    """A format, and what a model may write that knows it: texts, calls, nearly calls, cut anywhere."""
    form = draw(st.sampled_from(sorted(SHAPES)))
    calls = st.builds(_call, st.just(form), st.sampled_from([*NAMES, ""]), st.sampled_from(ARGUMENTS))
    text = "".join(draw(st.lists(calls | _TEXTS, max_size=5)))
    return form, text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


def form_of(tool_calls: str, reasoning: str) -> OutputParserNames:
    """harmony is one format for both."""
    return OutputParserNames(tool_calls, tool_calls if tool_calls == "harmony" and reasoning != "none" else reasoning)


def events_of(form: OutputParserNames, text: str, *, whole: bool, begun: bool) -> list[Event]:
    parser = OutputParser(form, tools=NAMES, begun=begun, whole=whole)
    events = [event for piece in ([text] if whole else text) for event in parser.push(piece)]
    return [*events, *parser.finish()]


def chat_turn(form: OutputParserNames, events: list[Event]) -> list[dict[str, Any]]:
    """The message as the server gives it, and a result for each call."""
    answer = collect(events)
    calls = [
        {"id": new_call_id(form), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in answer.calls
    ]
    message: dict[str, Any] = {"role": "assistant", "content": answer.content or None, "refusal": None}
    message |= {"annotations": [], "audio": None, "function_call": None, "tool_calls": calls}
    message["reasoning_content"] = answer.reasoning or None
    return [message, *({"role": "tool", "tool_call_id": call["id"], "content": "21"} for call in calls)]


def response_items(form: OutputParserNames, events: list[Event]) -> list[dict[str, Any]]:
    """The output's items as the server gives them, and an output for each call."""
    items: list[dict[str, Any]] = []
    for event in events:
        last = items[-1] if items else {"type": None}
        if isinstance(event, CallName):
            call = {
                "call_id": new_call_id(form),
                "name": event.name,
                "arguments": "",
                "id": "fc_1",
                "status": "completed",
            }
            items.append({"type": "function_call", **call})
        elif isinstance(event, CallArguments):
            last["arguments"] += event.text
        else:
            kind, part = ("message", "output_text") if isinstance(event, Content) else ("reasoning", "reasoning_text")
            if last["type"] != kind:
                text = {"type": part, "text": "", "annotations": [], "logprobs": []}
                more = {"role": "assistant", "status": "completed"} if kind == "message" else _NO_SUMMARY
                items.append({"type": kind, "id": "i_1", "content": [text], **more})
            items[-1]["content"][0]["text"] += event.text
    if not items:
        items.append({"type": "message", "role": "assistant", "id": "i_1", "content": [], "status": "completed"})
    parts = [{"type": "input_text", "text": "21"}]
    calls = [item["call_id"] for item in items if item["type"] == "function_call"]
    return [*items, *({"type": "function_call_output", "call_id": call, "output": parts, "id": None} for call in calls)]


_CHATS = ChatTemplates(None, "here")


def render(template: str, messages: list[dict[str, Any]]) -> str:
    return _CHATS.render(
        messages,
        add_generation_prompt=True,
        tools=chat_input.tools(TOOLS),
        template=template,
        variables={},
        special_tokens=SPECIAL,
        settle=True,
    )


@settings(max_examples=60, deadline=None)
@given(answer=answers(), reasoning=st.sampled_from(["none", "think"]), begun=st.booleans(), whole=st.booleans())
def test_an_answer_can_be_sent_back(answer: tuple[str, str], reasoning: str, begun: bool, whole: bool) -> None:
    name, text = answer
    form = form_of(name, reasoning)
    events = events_of(form, text, whole=whole, begun=begun and reasoning != "none")
    body = {"messages": [USER, *chat_turn(form, events)], "tools": TOOLS, "tool_choice": "auto"}
    chat = chat_input.messages(decode(msgspec.json.encode(body), ChatRequest).messages)
    body = {"input": [USER, *response_items(form, events)], "tools": [], "tool_choice": "auto"}
    items = responses_input._messages(decode(msgspec.json.encode(body), ResponsesRequest), ResponseTurn(None, ""))
    calls = sum(isinstance(event, CallName) for event in events)
    for template in SHAPES[name]:
        if template is templates.LLAMA3 and calls > 1:
            continue  # it takes one call in a message, from anyone
        assert render(template, chat).startswith(render(template, chat[:1]).split("Weather?")[0])
        render(template, items)


@pytest.mark.longer
@settings(max_examples=300, deadline=None)
@given(
    turns=st.lists(st.tuples(answers(), st.booleans()), min_size=1, max_size=6),
    reasoning=st.sampled_from(["none", "think", "granite"]),
)
def test_long_conversations_go_on(turns: list[tuple[tuple[str, str], bool]], reasoning: str) -> None:
    form = form_of(turns[0][0][0], reasoning)
    chat, items = [], []
    one_call = True
    for (_, text), whole in turns:
        events = events_of(form, text, whole=whole, begun=False)
        one_call = one_call and sum(isinstance(event, CallName) for event in events) < 2
        user = [USER] if not chat or chat[-1]["role"] == "assistant" else []  # after results the model goes on
        chat += [*user, *chat_turn(form, events)]
        items += [*user, *response_items(form, events)]
    chat = chat_input.messages(decode(msgspec.json.encode({"messages": chat}), ChatRequest).messages)
    items = responses_input._messages(
        decode(msgspec.json.encode({"input": items}), ResponsesRequest), ResponseTurn(None, "")
    )
    for template in SHAPES[form.tool_calls]:
        if template is templates.LLAMA3 and not one_call:
            continue
        render(template, chat)
        render(template, items)


def test_the_shapes_are_those_that_the_parsers_are_for() -> None:
    known = {
        form: [output_parser_names("auto", "none", shape).tool_calls for shape in shapes]
        for form, shapes in SHAPES.items()
    }
    assert known == {
        "hermes": ["hermes", "hermes", "qwen3_xml", "hermes", "none"],
        "granite": ["granite", "granite"],
        "llama3": ["llama3"],
        "mistral": ["mistral", "mistral"],
        "qwen3_xml": ["qwen3_xml"],
        "glm45": ["glm45", "glm45"],
        "gemma4": ["gemma4"],
        "nemotron": ["nemotron"],
        "deepseek_v3": ["deepseek_v3"],
        "deepseek_v31": ["deepseek_v31"],
        "deepseek_v32": ["deepseek_v32"],
        "kimi_k2": ["kimi_k2"],
        "minimax_m2": ["minimax_m2"],
        "seed_oss": ["seed_oss"],
        "harmony": ["harmony", "harmony"],
    }


def test_reasoning_that_cannot_be_shown_still_is_a_turn() -> None:
    """An answer of reasoning alone, which a client sends back without its text."""
    hidden = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [], "encrypted_content": None}
    shown = {**hidden, "content": [{"type": "reasoning_text", "text": "hm"}]}
    text = {"type": "message", "role": "assistant", "content": "ok"}
    call = {"type": "function_call", "call_id": "a1b2c3d4e", "name": "f", "arguments": "{}"}
    for turn, told in (
        ([hidden], {}),
        ([hidden, shown], {"reasoning_content": "hm"}),
        ([hidden, text], {"content": "ok"}),
        ([shown, hidden, text], {"reasoning_content": "hm", "content": "ok"}),
        ([text, hidden, call], {"content": "ok", "tool_calls": 1}),
        ([text, shown, call], {"content": "ok", "reasoning_content": "hm", "tool_calls": 1}),
    ):
        body = msgspec.json.encode({"input": [USER, *turn, USER]})
        _, answer, _ = responses_input._messages(decode(body, ResponsesRequest), ResponseTurn(None, ""))
        assert answer.pop("role") == "assistant"
        assert {key: len(value) if key == "tool_calls" else value for key, value in answer.items()} == told


def test_parts_of_thinking_are_text() -> None:
    """vLLM 0.32 reads them as it reads the others."""
    parts = [{"type": "thinking", "thinking": "hm", "closed": True}, {"type": "text", "text": "ok"}]
    (message,) = chat_input.messages([{"role": "assistant", "content": parts}])
    assert render("{{ messages[0].content }}", [message]) == "hm\nok"
    assert render("{{ messages[0].content }}", [{"role": "assistant", "content": parts}]) == "hm\nok"


def test_arguments_come_back_as_objects_or_empty() -> None:
    for text, expected in (
        *(
            (each, {})
            for each in (
                "",
                "[]",
                "5",
                "null",
                '"x"',
                '{"a": 1,}',
                '{"text": "once up',
                "1" * 5000,
                "[" * 100_000,
                '{"a":' * 300 + "1" + "}" * 300,
            )
        ),
        ('{"a": 1}', {"a": 1}),
        ('{"t": "\\ud83d"}', {"t": "\ufffd"}),
        ('{"t": "\\ud83d\\ude00"}', {"t": "\U0001f600"}),
        (None, {}),
        ({"a": {"b": []}}, {"a": {"b": []}}),
        ([1], {}),
        (True, {}),
    ):
        call = {"id": "a1b2c3d4e", "function": {"name": "f", "arguments": text}}
        message = {"role": "assistant", "tool_calls": [call]}
        (given_message,) = chat_input.messages([message])
        assert given_message["tool_calls"][0]["function"]["arguments"] == expected
        shown = render("{{ messages[0].tool_calls[0].function.arguments | tojson }}", [message])  # as gRPC gives it
        assert json.loads(shown) == expected


CUT = '<tool_call>\n{"name": "f", "arguments": {"text": "once up'


@pytest.mark.parametrize("text", [CUT, '<tool_call>{"name": "f", "arguments": {"t": "a\nb"}}</tool_call>'])
def test_calls_without_json_are_content_unless_they_were_streamed(text: str) -> None:
    """Over sockets; and either way the conversation goes on with what was answered."""
    flat = [{"type": "function", **TOOLS[1]["function"]}]

    async def test() -> None:
        async with http_serving(says(text), tool_call_parser="hermes") as s:
            whole = (await s.chat(tools=TOOLS, max_tokens=None))["choices"][0]
            assert (whole["message"]["content"], whole["finish_reason"]) == (text, "stop")
            assert "tool_calls" not in whole["message"]
            response = (await s.post("/v1/responses", input="hi", temperature=0, tools=flat)).json()
            assert [item["content"][0]["text"] for item in response["output"]] == [text]
            events = await s.events("/v1/chat/completions", messages=[USER], temperature=0, tools=TOOLS)
            deltas = [event["choices"][0]["delta"] for event in events[:-1]]
            calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
            arguments = "".join(call["function"].get("arguments", "") for call in calls)
            assert arguments == text.removesuffix("}</tool_call>").partition('"arguments": ')[2]
            call = {"id": calls[0]["id"], "type": "function", "function": {"name": "f", "arguments": arguments}}
            told = {"role": "assistant", "content": None, "tool_calls": [call]}
            result = {"role": "tool", "tool_call_id": call["id"], "content": "no JSON"}
            for turn in ([whole["message"]], [told, result]):
                await s.chat(messages=[USER, *turn, USER], tools=TOOLS)
            again = await s.post("/v1/responses", input=[USER, *response["output"], USER], temperature=0, tools=flat)
            assert again.status_code == 200, again.text

    run(test())


@pytest.mark.parametrize(("answer", "hidden"), [("STOP", False), ("<think></think>", False), ("<think>hm", True)])
def test_an_answer_without_text_is_an_empty_message(answer: str, hidden: bool) -> None:
    """Else the turn is lost, and the next request has two of the user's in a row."""

    async def test() -> None:
        body = {"input": [USER], "temperature": 0, "stop": ["STOP"], "include_reasoning": not hidden}
        body["max_output_tokens"] = len(answer) + (answer == "STOP")  # two of them are cut
        async with http_serving(says(answer), reasoning_parser="think") as s:
            whole = (await s.post("/v1/responses", **body)).json()
            events = await s.events("/v1/responses", **body)
            for response in (whole, events[-1]["response"]):
                (item,) = response["output"]
                assert (item["type"], item["role"]) == ("message", "assistant")
                assert [part["text"] for part in item["content"]] == [""]
                assert item["status"] == response["status"]
                messages = responses_input._messages(
                    decode(msgspec.json.encode({"input": [USER, item, USER]}), ResponsesRequest),
                    ResponseTurn(None, ""),
                )
                assert render(templates.MISTRAL, messages).count("[INST]") == 2
            kinds = [event["type"].removeprefix("response.") for event in events[2:]]
            assert kinds == [
                "output_item.added",
                "content_part.added",
                "output_text.done",
                "content_part.done",
                "output_item.done",
                whole["status"],
            ]
            assert [event["sequence_number"] for event in events] == list(range(len(events)))

    run(test())
