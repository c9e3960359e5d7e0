"""A field takes effect, or the answer names it: in a header, an explanation, the log and a metric."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.messages import Submit
from jaxinfer.sampling_params import FIELDS
from serving.http import chat_input, ignored
from serving.http.decode import decode, no_effects
from serving.http.ignored import IgnoredFields, collecting, escaped
from serving.http.messages_models import MessagesRequest
from serving.http.models import ChatRequest, CompletionRequest, StreamOptions
from serving.http.responses_models import ReasoningOptions, ResponsesRequest
from serving.observing.logs import logging_to
from tests.serving.harness import run
from tests.serving.http.harness import HttpServer, http_serving
from tests.serving.observing.test_metrics import Scrape

HEADER = "x-jaxinfer-ignored"
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi", "max_tokens": 4},
    "/v1/chat/completions": {"messages": [USER], "max_tokens": 4},
    "/v1/responses": {"input": "hi", "max_output_tokens": 4},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [5]},
}
# (path, what is sent besides, what is told)
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"max_token": 5}, "max_token;nearest=max_tokens"),
    ("/v1/completions", {"top_q": 0.5, "unheard_of": {"of": 1}}, "top_q;nearest=top_p, unheard_of"),
    ("/v1/completions", {"unheard_of": None, "store": None, "metadata": {}, "service_tier": "auto"}, ""),
    ("/v1/completions", {"stream": True, "stream_options": {"include_usages": True}},
     "stream_options.include_usages;nearest=include_usage"),
    ("/v1/completions", {"n": 2.0, "x": 1}, "x"),  # both are mended at once
    ("/v1/chat/completions", {"prompt_cache_key": "k", "store": True, "verbosity": "low", "metadata": {"a": "b"},
      "prompt_cache_retention": "24h", "service_tier": "flex", "user": "u", "safety_identifier": "s"},
     "prompt_cache_key, service_tier, store, metadata, verbosity"),
    ("/v1/chat/completions", {"messages": [{**USER, "cache_control": {"a": "b"}, "nme": "a"}, {**USER, "nme": 1}]},
     "messages[0].cache_control, messages[0].nme;nearest=name"),
    ("/v1/chat/completions", {"messages": [{**USER, "nothing": [], "name": "a"}]}, ""),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "mark": 1}]}]},
     "messages[0].content[0].mark"),
    ("/v1/chat/completions", {"tools": [TOOL, {**TOOL, "x": 1, "function": {"name": "g", "descripton": "d"}}]},
     "tools[1].x, tools[1].function.descripton;nearest=description"),
    ("/v1/responses", {"reasoning": {"summary": "auto", "mode": "x"}, "client_metadata": {"a": 1}, "store": True},
     "reasoning.mode, client_metadata, reasoning.summary, store"),
    ("/v1/responses", {"input": [{**USER, "extra": 1}]}, "input[0].extra"),
    ("/v1/responses", {"stream": True, "stream_options": {"include_obfuscation": True}},
     "stream_options.include_obfuscation"),
    ("/v1/chat/completions", {"stream": True, "stream_options": {"include_obfuscation": False}}, ""),
    ("/v1/responses", {"metadata": {"a": "b"}}, ""),  # it comes back with the answer
    ("/tokenize", {"add_special_token": False}, "add_special_token;nearest=add_special_tokens"),
    ("/detokenize", {"x": 1}, "x"),
]  # fmt: skip


def test_the_answer_names_them():
    async def test():
        async with http_serving(tool_call_parser="hermes") as s:
            for path, more, told in CASES:
                response = await s.post(path, **{**BODIES[path], **more})
                assert response.status_code == 200, response.text
                assert response.headers.get(HEADER, "") == told, (path, more)

    run(test())


def test_a_stream_has_the_header_before_its_events():
    async def test():
        async with http_serving() as s:
            for path in list(BODIES)[:3]:
                request = s.http.build_request("POST", path, json={**BODIES[path], "stream": True, "x-y": 1})
                response = await s.http.send(request, stream=True)
                assert (response.status_code, response.headers[HEADER]) == (200, "x-y")
                assert b"data: " in await response.aread()

    run(test())


def test_a_known_field_with_a_bad_value_is_refused_and_names_no_unknown_one():
    async def test():
        async with http_serving() as s:
            for path, body, param in (
                ("/v1/completions", {"prompt": "x", "top_p": 2, "x": 1}, "top_p"),
                ("/v1/completions", {"prompt": "x", "x": 1, "top_p": "hot"}, "top_p"),
                ("/v1/completions", {"x": 1}, "prompt"),
                ("/v1/chat/completions", {"messages": [USER], "store": "yes"}, "store"),
                ("/v1/chat/completions", {"messages": [{**USER, "z": 1}, {"z": 1}]}, "messages[1].role"),
                ("/v1/chat/completions", {"messages": [{**USER, "audio": {"id": "a"}}]}, "messages[0].audio"),
                ("/tokenize", {"x": 1, "prompt": 5}, "prompt"),
            ):
                error = await s.refused(path, **body)
                assert error["param"] == param
                assert "fault" not in error["message"]

    run(test())


def test_refuse_is_the_other_mode():
    async def test():
        async with http_serving(unknown_fields="refuse", tool_call_parser="hermes") as s:
            for path, more, told in CASES:
                response = await s.post(path, **{**BODIES[path], **more})
                if told and "cache_control" not in told and "content[0]" not in told:
                    assert response.status_code == 400, (path, more)
                    assert response.json()["error"]["param"] in re.split(";[a-z_=]+|, ", told)
            # What answers and proxies put beside a message is taken all the same.
            response = await s.post("/v1/chat/completions", messages=[{**USER, "id": "m"}], max_tokens=4)
            assert (response.status_code, response.headers[HEADER]) == (200, "messages[0].id")

    run(test())


def test_explanation_log_and_metric_name_them_and_no_value():
    async def work(s: HttpServer) -> None:
        body = {"messages": [{**USER, "cache_control": "wert"}], "max_tokens": 10**6, "store": True, "neu\n": "wert"}
        response = await s.post("/v1/chat/completions", **body)
        names = ["neu%0A", "store", "messages[0].cache_control"]
        assert response.headers[HEADER].split(", ") == names
        found = (await s.http.get("/debug/requests/" + response.headers["x-request-id"])).json()
        assert found["ignored"] == names
        assert found["max_tokens_asked"] == 10**6 > found["max_tokens"] == s.grpc.received(Submit)[0].params.max_tokens
        response = await s.post("/v1/completions", prompt="a", max_tokens=2)
        found = (await s.http.get("/debug/requests/" + response.headers["x-request-id"])).json()
        assert "ignored" not in found
        assert "max_tokens_asked" not in found
        assert (await s.post("/tokenize", prompt="a", alt=1)).status_code == 200
        m = Scrape((await s.http.get("/metrics")).text)
        counts = {name: m("ignored_fields_total", field=name) for name in ("store", "cache_control", "other")}
        assert counts == {"store": 1, "cache_control": 1, "other": 2}

    async def test():
        async with http_serving() as s:
            await work(s)

    stream = io.StringIO()
    with logging_to(stream, form="json"):
        run(test())
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    first, second = [event for event in events if event["message"] == "request"]
    assert first["ignored"] == ["neu%0A", "store", "messages[0].cache_control"]
    assert "ignored" not in second
    assert "wert" not in stream.getvalue()


def test_names_are_a_header_whatever_they_are():
    found = IgnoredFields()
    for name in ("a\r\nset-cookie: b", 'é,;=" (', "", "\0\x7f", "𝄞" * 99, "x" * 500, "%", "a.b[0].c-d"):
        found.add(name)
    ((_, value),) = found.headers
    assert re.fullmatch(rb"[!-~ ]+", value)
    items = value.decode().split(", ")
    assert len(items) == 8
    assert items[:3] == ["a%0D%0Aset-cookie:%20b", "%C3%A9%2C%3B%3D%22%20%28", '""']
    assert max(map(len, items)) == ignored.MAX_NAME
    assert items[-1] == "a.b[0].c-d"
    for i in range(1000):
        found.add(f"name_{i}")
    ((_, value),) = found.headers
    assert len(value) <= ignored.MAX_HEADER + 20
    shown, more = value.decode().split(", more=")
    assert len(shown.split(", ")) + int(more) == 1008
    assert len(found.names) == ignored.MAX_NAMES
    assert sum(found.counts.values()) == ignored.MAX_NAMES


def test_hostile_names_over_the_wire():
    async def test():
        async with http_serving() as s:
            body = {**BODIES["/v1/completions"], "a\r\nx-evil: 1\r\n\r\n<b>": 1, "\u0000": 2, "ü" * 70_000: 3}
            body |= {f"{'n' * 90}{i}": i for i in range(500)}
            response = await s.post("/v1/completions", **body)
            assert response.status_code == 200
            assert "x-evil" not in response.headers
            assert response.headers[HEADER].startswith("a%0D%0Ax-evil:%201%0D%0A%0D%0A%3Cb%3E, %00, %C3%BC")
            assert len(response.headers[HEADER]) <= ignored.MAX_HEADER + 20
            # One of a megabyte is nobody's field.
            response = await s.post("/v1/completions", prompt="a", **{"x" * 2_000_000: 1})
            assert (response.status_code, len(response.text) < 1000) == (400, True)

    run(test())


@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest, ResponsesRequest])
def test_every_name_misspelt_by_a_letter_is_named_with_the_one_that_was_meant(kind):
    required = {"prompt": "x", "messages": [USER], "input": "x"}
    base = {name: value for name, value in required.items() if name in kind.__struct_fields__}
    if kind is ResponsesRequest:
        del base["prompt"]
    for name in set(FIELDS) & set(kind.__struct_fields__) - {"n"}:
        for wrong in {name[:i] + name[i + 1 :] for i in range(1, len(name))} | {name + "x"}:
            if len(name) < 5 or wrong == "top_" or wrong in kind.__struct_fields__:
                continue
            with collecting("report") as found:
                decode(json.dumps({**base, wrong: 1}).encode(), kind)
            assert found.names == (escaped(wrong),)
            ((_, value),) = found.headers
            assert value.decode() == f"{wrong};nearest={name}", (name, wrong)


def test_outside_of_a_request_names_are_refused():
    with pytest.raises(Exception, match="x is not a field of this request"):
        decode(b'{"prompt":"a","x":1}', CompletionRequest)


def test_the_page_says_why_a_field_has_no_effect():
    page = (Path(__file__).resolve().parents[3] / "docs/http.md").read_text()
    kinds = {"completions": CompletionRequest, "chat": ChatRequest, "responses": ResponsesRequest}
    nested = {"stream_options.": StreamOptions, "reasoning.": ReasoningOptions}
    reasons: dict[str, str] = {}
    places: dict[str, list[str]] = {}
    for place, kind in kinds.items():
        for name, rule in no_effects(kind).items():
            reasons[name] = rule.why
            places.setdefault(name, []).append(place)
    for name, why in reasons.items():
        where = "all" if len(places[name]) == len(kinds) else ", ".join(places[name])
        assert f"| `{name}` | {where} | {why} |" in page, name
    for prefix, kind in nested.items():
        for name, rule in no_effects(kind).items():
            assert f"| `{prefix}{name}` | " in page
            assert f" | {rule.why} |" in page
    for name, rule in no_effects(MessagesRequest).items():
        assert name in reasons or f"| `{name}` | messages | {rule.why} |" in page, name


def test_tools_that_are_no_functions_are_passed_over_in_chats() -> None:
    others = [
        {"type": "custom", "custom": {"name": "run", "description": "d"}},
        {"type": "web_search"},
        {"type": "builtin_function", "function": {"name": "$search"}},
    ]
    called = {"id": "c1", "type": "custom", "custom": {"name": "run", "input": "ls"}}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "c1", "content": "a.txt"},
    ]

    async def test() -> None:
        async with http_serving(tool_call_parser="hermes") as s:
            function = {"type": "function", "function": {"name": "f"}}
            for tools, offered in (([*others, function], True), (others, False)):
                response = await s.post(
                    "/v1/chat/completions", messages=turns, tools=tools, tool_choice="auto", max_tokens=2
                )
                assert response.status_code == 200, response.text
                assert response.headers["x-jaxinfer-ignored"] == "tools[0].type"
                shown = bytes(s.grpc.received(Submit)[-1].prompt_token_ids).decode()
                assert ('"name": "f"' in shown, "$search" in shown) == (offered, False)
            (call,) = chat_input.messages(turns)[1]["tool_calls"]
            assert call == {"id": "c1", "type": "function", "function": {"name": "run", "arguments": {"input": "ls"}}}
            for broken in ({"name": "run"}, {"input": "x"}):
                turns[1] = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "custom", "custom": broken}]}
                error = await s.refused("/v1/chat/completions", messages=turns)
                assert error["param"].startswith("messages[1].tool_calls[0].")
            assert (await s.refused("/v1/chat/completions", messages=turns[:1], tools=others, tool_choice="required"))[
                "param"
            ] == ("tool_choice")

    run(test())
