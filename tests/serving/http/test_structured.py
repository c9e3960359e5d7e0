"""What HTTP requests ask of their answers' form: the grammar that the engine gets, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jaxinfer.messages import Submit
from tests.jaxinfer.constraints.walks import accepts
from tests.serving.harness import run
from tests.serving.http.harness import HttpServer, http_serving, says

PATHS = {
    "completion": "/v1/completions",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
BASES: dict[str, dict[str, Any]] = {
    "completion": {"prompt": "x"},
    "chat": {"messages": [{"role": "user", "content": "x"}]},
    "responses": {"input": "x"},
    "messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 50},
}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TIME = {"name": "time", "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}}}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": TIME}]
STRICT = [{"type": "function", "function": {**function, "strict": True}} for function in (WEATHER, TIME)]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "time", "arguments": {"zone": "UTC"}}\n</tool_call>'


def flat(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "function", **tool["function"]} for tool in tools]


def described(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the Messages API has them."""
    functions = (tool["function"] for tool in tools)
    return [{"input_schema": f["parameters"], **{k: v for k, v in f.items() if k != "parameters"}} for f in functions]


def choice(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [choice(name) for name in names]}}


# kind, fields, texts that are let through, texts that are not
TAKEN: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("chat", {"response_format": {"type": "json_object"}}, ['{"a": [1]}', "{}"], ["[1]", "1", "text"]),
    (
        "chat",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": SCHEMA}}},
        ['{"n": 1}', '{"n":-20}', '{\n  "n": 1\n}'],
        ["{}", '{"n": "1"}', '{"n": 1, "m": 2}'],
    ),
    (
        "completion",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
        ['{"n": 1}'],
        ["{}"],
    ),
    (
        "responses",
        {"text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA, "strict": True}}},
        ['{"n": 1}'],
        ["{}"],
    ),
    ("responses", {"text": {"format": {"type": "json_object"}}}, ['{"n": 1}'], ["no"]),
    ("responses", {"structured_outputs": {"choice": ["yes", "no"]}}, ["yes", "no"], ["maybe", "ye"]),
    ("chat", {"structured_outputs": {"regex": r"\d{3}-[a-z/]+"}}, ["123-a/b"], ["12-a", "123-a ", "१२३-a"]),
    ("chat", {"structured_outputs": {"json": json.dumps(SCHEMA)}}, ['{"n": 1}'], ["{}"]),
    (
        "completion",
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        ['{"n":1}'],
        ['{"n": 1}'],
    ),
    (
        "completion",
        {"structured_outputs": {"json_object": True, "whitespace_pattern": "_"}},
        ['{_"a":1}'],
        ['{ "a":1}'],
    ),
    (
        "completion",
        {"structured_outputs": {"json": {"properties": {"a": {}}}, "disable_additional_properties": True}},
        ['{"a": 1}', "{}", "3"],
        ['{"b": 1}'],
    ),
    ("completion", {"structured_outputs": {"grammar": 'start: "a" N\nN: /[0-9]+/'}}, ["a12"], ["a", "12"]),
    ("completion", {"structured_outputs": {"grammar": 'root ::= "a" [0-9]+'}}, ["a12"], ["a", "12"]),
    (
        "completion",
        {
            "structured_outputs": {
                "structural_tag": {
                    "type": "structural_tag",
                    "structures": [{"begin": "<f=x>", "schema": SCHEMA, "end": "</f>"}],
                    "triggers": ["<f="],
                }
            }
        },
        ["text", 'text <f=x>{"n": 1}</f> and more', ""],
        ["<f=y>", "<f=x>{}</f>"],
    ),
    ("chat", {"tools": TOOLS, "tool_choice": "required"}, [CALL, f"{CALL}\n{OTHER}"], ["text", "", f"{CALL}text"]),
    (
        "chat",
        {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
        [CALL, OTHER],
        [f"{CALL}\n{OTHER}"],
    ),
    ("chat", {"tools": TOOLS, "tool_choice": choice("time")}, [OTHER], [CALL, f"{OTHER}\n{OTHER}"]),
    ("responses", {"tools": flat(TOOLS), "tool_choice": {"type": "function", "name": "time"}}, [OTHER], [CALL]),
    ("chat", {"tools": TOOLS, "tool_choice": allowed("required", "time")}, [OTHER], [CALL, "text"]),
    ("chat", {"tools": TOOLS, "tool_choice": allowed("auto", "time")}, [OTHER, "text"], [CALL]),
    (
        "responses",
        {"tools": flat(TOOLS), "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": flat(TOOLS)[:1]}},
        [CALL, "text"],
        [OTHER],
    ),
    ("chat", {"tools": STRICT}, ["text", CALL, f"Well.\n{OTHER}"], [CALL.replace("city", "town")]),
    (
        "chat",
        {"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
        [CALL],
        ["{}"],
    ),
    ("chat", {"tools": STRICT, "response_format": {"type": "json_object"}}, [CALL, "{}"], ["text"]),
]
TAKEN += [
    ("messages", {"tools": described(TOOLS), "tool_choice": {"type": "any"}}, [CALL, f"{CALL}\n{OTHER}"], ["text"]),
    (
        "messages",
        {"tools": described(TOOLS), "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
        [CALL],
        [f"{CALL}\n{OTHER}"],
    ),
    ("messages", {"tools": described(TOOLS), "tool_choice": {"type": "tool", "name": "time"}}, [OTHER], [CALL]),
    ("messages", {"tools": described(STRICT)}, ["text", CALL], [CALL.replace("city", "town")]),
    ("messages", {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, ['{"n": 1}'], ["{}"]),
    ("messages", {"output_format": {"type": "json_schema", "schema": SCHEMA}}, ['{"n": 1}'], ["{}"]),
    ("messages", {"structured_outputs": {"choice": ["a"]}}, ["a"], ["b"]),
]
FREE: list[tuple[str, dict[str, Any]]] = [
    ("chat", {}),
    ("chat", {"response_format": {"type": "text"}}),
    ("chat", {"response_format": None}),
    ("responses", {"text": {"format": {"type": "text"}}}),
    ("responses", {"text": {}}),
    ("chat", {"tools": TOOLS}),
    ("chat", {"tools": STRICT, "tool_choice": "none"}),
    ("chat", {"tools": TOOLS, "tool_choice": allowed("auto", "time", "weather")}),
]
BROKEN = {"properties": {"a": {"items": {"uniqueItems": True}}}}
NO_KIND = "exactly one of json, regex"
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [  # kind, fields, param, what is said
    ("chat", {"structured_outputs": {}}, "structured_outputs", NO_KIND),
    ("chat", {"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", NO_KIND),
    ("chat", {"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp", "it may have json"),
    ("chat", {"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "unclosed group"),
    ("chat", {"structured_outputs": {"regex": "a" * 9000}}, "structured_outputs.regex", "1 to 8192"),
    ("chat", {"structured_outputs": {"grammar": "start: x"}}, "structured_outputs.grammar", "unknown name"),
    ("chat", {"structured_outputs": {"grammar": "x" * 140_000}}, "structured_outputs.grammar", "1 to 131072"),
    ("chat", {"structured_outputs": {"choice": []}}, "structured_outputs.choice", "1 to 1024"),
    (
        "chat",
        {"structured_outputs": {"structural_tag": {"format": {"type": "any_text"}}}},
        "structured_outputs.structural_tag.format",
        "only structures and triggers",
    ),
    (
        "chat",
        {"structured_outputs": {"json": BROKEN}},
        "structured_outputs.json#/properties/a/items/uniqueItems",
        "not",
    ),
    (
        "chat",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": BROKEN}}},
        "response_format.json_schema.schema#/properties/a/items/uniqueItems",
        "not supported",
    ),
    (
        "responses",
        {"text": {"format": {"type": "json_schema", "name": "s", "schema": BROKEN}}},
        "text.format.schema#/properties/a/items/uniqueItems",
        "not supported",
    ),
    (
        "completion",
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "response_format",
        "give one of them",
    ),
    ("chat", {"response_format": {"type": "xml"}}, "response_format", "text, json_object, json_schema"),
    ("chat", {"guided_json": {}}, "guided_json", "replaced by structured_outputs.json"),
    ("completion", {"guided_regex": "a"}, "guided_regex", "replaced by structured_outputs.regex"),
    ("chat", {"tool_choice": "required"}, "tool_choice", "it needs tools"),
    ("chat", {"tools": TOOLS, "tool_choice": choice("nothing")}, "tool_choice", "weather, time"),
    ("chat", {"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice", "a function by its name"),
    ("chat", {"tools": TOOLS, "tool_choice": allowed("any", "time")}, "tool_choice", "auto or required"),
    (
        "chat",
        {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": BROKEN}}]},
        "tools[0].function.parameters#/properties/a/items/uniqueItems",
        "not supported",
    ),
    (
        "responses",
        {"tools": [{"type": "function", "name": "f", "strict": True, "parameters": {"type": "string"}}]},
        "tools[0].parameters",
        "its type must be object",
    ),
]


REFUSED += [
    (
        "messages",
        {"output_config": {"format": {"type": "json_schema", "schema": BROKEN}}},
        "output_config.format.schema#/properties/a/items/uniqueItems",
        "not supported",
    ),
    (
        "messages",
        {"tools": [{"name": "f", "input_schema": BROKEN, "strict": True}]},
        "tools[0].input_schema#/properties/a/items/uniqueItems",
        "not supported",
    ),
]


async def constraint(s: HttpServer, kind: str, fields: dict[str, Any]) -> str:
    response = await s.post(PATHS[kind], **BASES[kind], **fields)
    assert response.status_code == 200, response.text
    submit = s.grpc.received(Submit)[-1]
    assert submit.params.structured_outputs is None
    return submit.constraint


def test_what_is_asked_for_reaches_the_engine() -> None:
    async def test() -> None:
        async with http_serving(says("."), tool_call_parser="hermes") as s:
            for kind, fields, taken, not_taken in TAKEN:
                found = await constraint(s, kind, fields)
                for text in taken:
                    assert accepts(found, text), (fields, text)
                for text in not_taken:
                    assert not accepts(found, text), (fields, text)
            for kind, fields in FREE:
                assert await constraint(s, kind, fields) == "", fields

    run(test())


def test_what_cannot_be_is_refused_by_name() -> None:
    async def test() -> None:
        async with http_serving(says("."), tool_call_parser="hermes") as s:
            for kind, fields, param, said in REFUSED:
                response = await s.post(PATHS[kind], **BASES[kind], **fields)
                assert response.status_code == 400, fields
                error = response.json()["error"]
                assert error.get("param", error["message"].partition(" is ")[0]) == param, error
                assert said in error["message"], error
            assert s.grpc.received(Submit) == []

    run(test())


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_without_a_format_is_made_to_call(stream: bool) -> None:
    """Its template shows no format, so the parser reads the one that the grammar made it write."""

    async def test() -> None:
        async with http_serving(says(f"{CALL}\n{OTHER}")) as s:
            fields = {"tools": TOOLS, "tool_choice": "required", "temperature": 0}
            if stream:
                events = await s.events(PATHS["chat"], **BASES["chat"], **fields)
                deltas = [event["choices"][0] for event in events if isinstance(event, dict) and event["choices"]]
                calls = [call for d in deltas for call in d["delta"].get("tool_calls", ())]
                assert [call["function"]["name"] for call in calls if "id" in call] == ["weather", "time"]
                reason = deltas[-1]["finish_reason"]
            else:
                (found,) = (await s.post(PATHS["chat"], **BASES["chat"], **fields)).json()["choices"]
                calls, reason = found["message"]["tool_calls"], found["finish_reason"]
                assert [call["function"]["arguments"] for call in calls] == ['{"city": "Bonn"}', '{"zone": "UTC"}']
                assert found["message"]["content"] is None
            assert reason == "tool_calls"
            assert accepts(s.grpc.received(Submit)[-1].constraint, f"{CALL}\n{OTHER}")
            # Where it may choose, nobody could say what a call is.
            response = await s.post(PATHS["chat"], **BASES["chat"], tools=TOOLS)
            assert response.json()["error"]["param"] == "tools"

    run(test())


def test_no_format_is_made_up_where_the_operator_wants_none() -> None:
    async def test() -> None:
        async with http_serving(says(CALL), tool_call_parser="none") as s:
            response = await s.post(PATHS["chat"], **BASES["chat"], tools=TOOLS, tool_choice="required")
            assert response.json()["error"]["param"] == "tools"

    run(test())


def test_reasoning_comes_first() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}

    async def test() -> None:
        answer = '<think>a {"n": 5} </think>\n\n{"n": 7}'
        async with http_serving(says(answer), reasoning_parser="think", tool_call_parser="hermes") as s:
            response = await s.post(PATHS["chat"], **BASES["chat"], response_format=schema, temperature=0)
            message = response.json()["choices"][0]["message"]
            assert (message["content"], message["reasoning"]) == ('{"n": 7}', 'a {"n": 5}')
            found = s.grpc.received(Submit)[-1].constraint
            assert accepts(found, answer)
            assert accepts(found, '{"n": 7}')
            assert not accepts(found, "<think>a")
            assert not accepts(found, '<think>a</think>\n\n{"m": 7}')

    run(test())


def test_what_has_no_meaning_beside_a_form_is_named() -> None:
    async def test() -> None:
        async with http_serving(says("{}")) as s:
            for kind, fields, name in (
                ("chat", {"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
                ("responses", {"text": {"verbosity": "low"}}, "text.verbosity"),
                ("responses", {"text": {"format": {"type": "json_object", "x": 1}}}, "text.format.x"),
            ):
                response = await s.post(PATHS[kind], **BASES[kind], **fields)
                assert (response.status_code, response.headers["x-jaxinfer-ignored"]) == (200, name)

    run(test())


def test_a_response_repeats_what_was_asked() -> None:
    wanted = {"type": "json_schema", "name": "s", "schema": SCHEMA}

    async def test() -> None:
        async with http_serving(says('{"n": 1}')) as s:
            response = await s.post(PATHS["responses"], **BASES["responses"], text={"format": wanted})
            assert response.json()["text"] == {"format": wanted}

    run(test())
