"""POST /v1/responses as agents and SDKs send it: tools of every kind, items that come back, fields that have no effect
here, and the events in the order that OpenAI's clients follow."""

from __future__ import annotations

import json
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from jaxinfer.messages import Submit
from serving.http.response_store import StoreLimits
from serving.http.response_turn import ResponseTurn
from serving.http.responses_input import _messages
from serving.http.responses_models import ResponsesRequest
from serving.http.responses_tools import functions
from tests.fakes import FakeOptions
from tests.serving.harness import run
from tests.serving.http.harness import HttpServer, http_serving, says

PATH = "/v1/responses"
FORM = {"tool_call_parser": "hermes", "reasoning_parser": "think"}
USER = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
FUNCTION = {"type": "function", "name": "exec_command", "description": "Runs", "strict": False, "parameters": {}}
NAMESPACE = {
    "type": "namespace",
    "name": "multi_agent_v1",
    "description": "Sub-agents.",
    "tools": [
        {"type": "function", "name": "spawn_agent", "description": "Spawns", "parameters": {"type": "object"}},
        {"type": "custom", "name": "note", "format": {"type": "text"}},
        {"type": "function", "name": "close_agent"},
    ],
}
WEB = {"type": "web_search", "external_web_access": False}
CALLS = (
    "<think>hm</think>I look."
    '<tool_call>{"name": "exec_command", "arguments": {"cmd": "ls"}}</tool_call>'
    '<tool_call>{"name": "multi_agent_v1__spawn_agent", "arguments": {}}</tool_call>'
)


def prompt(s: HttpServer) -> str:
    return bytes(s.grpc.received(Submit)[-1].prompt_token_ids).decode()


# -- tools ------------------------------------------------------------------------------------------------------------


def test_functions_of_a_namespace_are_functions_and_other_tools_are_reported():
    async def test() -> None:
        async with http_serving(says(CALLS), **FORM) as s:
            tools = [FUNCTION, NAMESPACE, WEB, {"type": "local_shell"}, {"type": "custom", "name": "apply_patch"}]
            body = {"input": [USER], "tools": tools, "temperature": 0}
            response = await s.post(PATH, **body)
            assert response.status_code == 200, response.text
            ignored = response.headers["x-jaxinfer-ignored"].split(", ")
            assert ignored == ["tools[1].tools[1].type", "tools[2].type"]  # the first of each place
            shown = json.loads(prompt(s).partition("[")[2].rpartition("]")[0])
            assert [tool["function"]["name"] for tool in shown] == [
                "exec_command",
                "multi_agent_v1__spawn_agent",
                "multi_agent_v1__close_agent",
            ]
            assert [tool["function"].get("description") for tool in shown] == ["Runs", "Sub-agents.\nSpawns", None]
            events = await s.events(PATH, **body)
            for output in (response.json()["output"], events[-1]["response"]["output"]):
                plain, of_namespace = output[2:]
                assert (plain["name"], "namespace" in plain) == ("exec_command", False)
                assert (of_namespace["name"], of_namespace["namespace"]) == ("spawn_agent", "multi_agent_v1")
            added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
            assert added[3]["namespace"] == "multi_agent_v1"
            assert response.json()["tools"][1:] == tools[1:]
            messages = _messages(ResponsesRequest(input=[USER, *output]), ResponseTurn(None, ""))
            names = [call["function"]["name"] for call in messages[-1]["tool_calls"]]
            assert names == ["exec_command", "multi_agent_v1__spawn_agent"]
            only_others = await s.post(PATH, input="hi", tools=[WEB], tool_choice="auto")
            assert only_others.status_code == 200, only_others.text

    run(test())


BAD_TOOLS: list[tuple[list[Any], str, str]] = [
    ([{**NAMESPACE, "tools": "x"}], "tools[0].tools", "a list of functions"),
    ([{**NAMESPACE, "name": "a b"}], "tools[0].name", "1 to 64 letters"),
    ([{**NAMESPACE, "tools": [{"type": "function", "name": ""}]}], "tools[0].tools[0].name", "1 to 64 letters"),
    ([{**NAMESPACE, "tools": [{"name": "f"}]}], "tools[0].tools[0].type", "only functions"),
    ([{"type": 5, "name": "f"}], "tools[0].type", "only functions"),
    ([NAMESPACE, {**FUNCTION, "name": "multi_agent_v1__close_agent"}], "tools[1].name", "the model sees both"),
    ([{**NAMESPACE, "tools": [{"type": "function", "name": f"f{i}"} for i in range(129)]}], "tools", "at most 128"),
]


def test_tools_that_cannot_be():
    async def test() -> None:
        async with http_serving(**FORM) as s:
            for tools, param, words in BAD_TOOLS:
                error = await s.refused(PATH, input="hi", tools=tools)
                assert error["param"] == param, error
                assert words in error["message"]

    run(test())


def test_a_namespace_joins_its_functions_names():
    for namespace, shown in (("crm", "crm__f"), ("mcp__files__", "mcp__files__f"), ("a.b", "a.b__f")):
        tool = {"type": "namespace", "name": namespace, "tools": [{"type": "function", "name": "f"}]}
        assert [each["function"]["name"] for each in functions([tool])] == [shown]


# -- items ------------------------------------------------------------------------------------------------------------


def test_what_codex_sends_back():
    """Its second turn: items with ids, and reasoning with its text and nothing encrypted."""
    text = {"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}
    items = [
        {**USER, "role": "developer", "id": "msg_0"},
        {**USER, "id": "msg_1"},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
            "encrypted_content": None,
        },
        {"type": "message", "role": "assistant", "id": "msg_2", "status": "completed", "content": [text]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "exec_command", "arguments": '{"cmd": "ls"}'},
        {"type": "function_call", "call_id": "c2", "name": "f", "namespace": "n", "arguments": "{}"},
        {"type": "function_call_output", "id": "fco_1", "call_id": "c1", "output": "a.txt"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "done"}]},
        {"type": "custom_tool_call", "call_id": "c3", "name": "apply_patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "c3", "output": "ok"},
    ]  # fmt: skip
    messages = _messages(ResponsesRequest(input=items), ResponseTurn(None, ""))
    assert [message["role"] for message in messages] == [
        *("developer", "user", "assistant", "tool", "tool", "assistant", "tool"),
    ]
    turn = messages[2]
    assert (turn["reasoning_content"], turn["content"]) == ("hm", "I look.")
    calls = [(each["id"], each["function"]["name"], each["function"]["arguments"]) for each in turn["tool_calls"]]
    assert calls == [("c1", "exec_command", {"cmd": "ls"}), ("c2", "n__f", {})]
    (patch,) = messages[5]["tool_calls"]
    assert patch["function"] == {"name": "apply_patch", "arguments": {"input": "*** Begin"}}


def test_items_of_tools_that_run_elsewhere_are_passed_over():
    async def test() -> None:
        async with http_serving(says("ok")) as s:
            for kind in ("web_search_call", "mcp_list_tools", "compaction", "of_a_tool_of_next_year"):
                response = await s.post(PATH, input=[USER, {"type": kind, "id": "x_1", "status": "completed"}])
                assert response.status_code == 200, response.text
                assert response.headers["x-jaxinfer-ignored"] == "input[1].type"
                assert prompt(s).startswith("<user>hi;<assistant>")
            error = await s.refused(PATH, input=[{"type": "web_search_call", "id": "ws_1"}])
            assert error["param"] == "input"
            for part in ({"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": "x"}):
                error = await s.refused(PATH, input=[USER, part])
                assert (error["param"], "part of a message" in error["message"]) == ("input[1].type", True)
            response = await s.post(PATH, input=[USER, {"type": "reasoning", "summary": [], "encrypted_content": "gA"}])
            assert response.headers["x-jaxinfer-ignored"] == "input[1].encrypted_content"
        async with http_serving(says("ok"), unknown_fields="refuse") as s:
            error = await s.refused(PATH, input=[USER, {"type": "web_search_call", "id": "ws_1"}])
            assert error["param"] == "input[1].type"
            assert (await s.refused(PATH, input="x", tools=[WEB]))["param"] == "tools[0].type"

    run(test())


# -- fields -----------------------------------------------------------------------------------------------------------


TAKEN: list[tuple[str, Any, str | None]] = [
    ("include", ["reasoning.encrypted_content"], None),
    ("include", ["reasoning.encrypted_content", "web_search_call.results"], "include[1]"),
    ("include", ["everything"], "include[0]"),
    ("reasoning", {"summary": "auto"}, "reasoning.summary"),
    ("reasoning", {"summary": "none", "effort": None}, None),
    ("truncation", "auto", None),
    ("truncation", "disabled", None),
    ("max_tool_calls", 3, "max_tool_calls"),
    ("text", {"format": {"type": "text"}}, None),
    ("text", {"verbosity": "low"}, "text.verbosity"),
    ("text", {}, None),
    ("stream_options", {"include_obfuscation": False}, None),
    ("stream_options", {"include_obfuscation": True}, "stream_options.include_obfuscation"),
    ("metadata", {"a": "b"}, None),
    ("background", False, None),
    ("store", False, None),
]


def test_fields_are_taken_or_reported():
    async def test() -> None:
        async with http_serving(says("ok"), response_store=StoreLimits()) as s:
            for field, value, ignored in TAKEN:
                response = await s.post(PATH, input="hi", **{field: value})
                assert response.status_code == 200, response.text
                assert response.headers.get("x-jaxinfer-ignored") == ignored
                answer = response.json()
                Response.model_validate(answer)
                if field in ("truncation", "max_tool_calls", "metadata", "background", "store"):
                    assert answer[field] == value
                if field == "text":
                    assert answer["text"] == {"format": {"type": "text"}, **{k: v for k, v in value.items() if v}}

    run(test())


BAD_FIELDS: list[tuple[str, Any, str]] = [
    ("include", [5], "include[0]"),
    ("truncation", "yes", "truncation"),
    ("text", {"verbosity": "loud"}, "text.verbosity"),
    ("max_tool_calls", "many", "max_tool_calls"),
    ("background", True, "background"),
    ("conversation", "conv_1", "conversation"),
    ("prompt", {"id": "pmpt_1"}, "prompt"),
    ("previous_response_id", 5, "previous_response_id"),
]


def test_fields_that_cannot_be():
    async def test() -> None:
        async with http_serving() as s:
            for field, value, param in BAD_FIELDS:
                assert (await s.refused(PATH, input="hi", **{field: value}))["param"] == param

    run(test())


# -- truncation -------------------------------------------------------------------------------------------------------


def test_the_oldest_turns_are_left_out_where_the_client_says_so():
    async def test() -> None:
        async with http_serving(FakeOptions(max_model_len=256)) as s:
            turns = [
                item
                for i in range(10)
                for item in (
                    {"role": "user", "content": f"q{i}" + "x" * 20},
                    {"role": "assistant", "content": "a" * 10},
                )
            ]
            body = {"instructions": "be brief", "input": [*turns, {"role": "user", "content": "last"}]}
            assert (await s.refused(PATH, **body))["param"] == "input"
            assert (await s.refused(PATH, **body, truncation="disabled"))["param"] == "input"
            for limit, first in ((None, "q7"), (12, "q6"), (1000, "q7")):  # 51 tokens a turn
                response = await s.post(PATH, **body, truncation="auto", temperature=0, max_output_tokens=limit)
                assert response.status_code == 200, response.text
                told = prompt(s)
                assert told.startswith(f"<system>be brief;<user>{first}x"), told
                assert told.endswith("<user>last;<assistant>")
                assert response.json()["usage"]["output_tokens"] >= min(limit or 64, 64)
            short = {**body, "input": turns[:2]}
            for truncation in ("auto", "disabled"):
                await s.post(PATH, **short, truncation=truncation)
                assert prompt(s).startswith("<system>be brief;<user>q0")
            alone = await s.refused(PATH, input="x" * 300, truncation="auto")
            assert alone["param"] == "input"

    run(test())


# -- events -----------------------------------------------------------------------------------------------------------

ITEM = ["output_item.added", "content_part.added", "{}.delta", "{}.done", "content_part.done", "output_item.done"]
CALL = ["output_item.added", "{}.delta", "{}.done", "output_item.done"]


_EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def collapsed(events: list[dict[str, Any]]) -> list[str]:
    """The events' types; deltas in a row are one."""
    kinds = [event["type"].removeprefix("response.") for event in events]
    return [kind for i, kind in enumerate(kinds) if not (kind.endswith(".delta") and kinds[i - 1] == kind)]


def test_the_events_of_every_kind_of_item():
    async def test() -> None:
        async with http_serving(says(CALLS), **FORM) as s:
            events = await s.events(PATH, input="hi", tools=[FUNCTION, NAMESPACE], temperature=0)
            expected = ["created", "in_progress"]
            for steps, name in (
                (ITEM, "reasoning_text"),
                (ITEM, "output_text"),
                (CALL, "function_call_arguments"),
                (CALL, "function_call_arguments"),
            ):
                expected += [step.format(name) for step in steps]
            assert collapsed(events) == [*expected, "completed"]
            assert [event["sequence_number"] for event in events] == list(range(len(events)))
            for event in events:  # all that OpenAI's types need is there
                _EVENTS.validate_python(event)
            last = events[-1]["response"]
            prefixes = ["rs_", "msg_", "fc_", "fc_"]
            for index, (item, prefix) in enumerate(zip(last["output"], prefixes, strict=True)):
                assert item["id"].startswith(prefix)
                own = [event for event in events if event.get("output_index") == index]
                assert {event.get("item_id", item["id"]) for event in own} == {item["id"]}
                assert own[-1]["item"] == item
                assert own[0]["item"]["status"] == "in_progress"
            assert last["output"][0]["encrypted_content"] is None
            assert last["output"][0]["summary"] == []
            assert last["completed_at"] >= last["created_at"]

    run(test())


def test_an_answer_that_breaks_off():
    async def test() -> None:
        async with http_serving(says("ok"), **FORM) as s:
            events = await s.events(PATH, input="hi", temperature=0, max_output_tokens=1)
            assert events[-1]["type"] == "response.incomplete"
            assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
        async with http_serving(FakeOptions(crash_at_step=5, step_seconds=0.01), response_store=StoreLimits()) as s:
            events = await s.events(PATH, input="hi", temperature=0)
            assert collapsed(events)[-2:] == ["error", "failed"]
            failed = events[-1]["response"]
            assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
            assert "the engine failed" in failed["error"]["message"]
            assert len(s.grpc.server.api.responses) == 0

    run(test())


def test_a_call_of_a_namespace_can_be_forced():
    """The grammar knows the function by the name that the model does."""
    parameters = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
    strict = {
        "type": "function",
        "name": "g",
        "strict": True,
        "parameters": {**parameters, "additionalProperties": False},
    }

    async def test() -> None:
        async with http_serving(says("ok"), **FORM) as s:
            tools = [FUNCTION, {"type": "namespace", "name": "n", "tools": [strict]}]
            for choice in (
                {"type": "function", "name": "g", "namespace": "n"},
                {"type": "function", "name": "n__g"},
                {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "n__g"}]},
            ):
                response = await s.post(PATH, input="hi", tools=tools, tool_choice=choice)
                assert response.status_code == 200, response.text
                constraint = s.grpc.received(Submit)[-1].constraint
                assert "n__g" in constraint
                assert "exec_command" not in constraint
            error = await s.refused(PATH, input="hi", tools=tools, tool_choice={"type": "function", "name": "g"})
            assert error["param"] == "tool_choice"

    run(test())
