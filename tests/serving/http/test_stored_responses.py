"""Responses that are kept: to go on from, to refer to, to fetch, to delete; each tenant's own, and none where the
server keeps none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from jaxinfer.messages import Abort, Submit
from serving.access.access import AccessConfig
from serving.http import response_turn
from serving.http.response_store import StoreLimits
from serving.http.response_turn import ResponseTurn
from tests.fakes import FakeOptions
from tests.serving.access.harness import Keys
from tests.serving.harness import run, until
from tests.serving.http.harness import HttpServer, http_serving, says

PATH = "/v1/responses"
CALLS = '<think>hm</think>I look.<tool_call>{"name": "f", "arguments": {"q": 1}}</tool_call>'
FORM = {"tool_call_parser": "hermes", "reasoning_parser": "think"}
TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}]
STORE = StoreLimits()


async def answered(s: HttpServer, **body: Any) -> dict[str, Any]:
    response = await s.post(PATH, **{"temperature": 0, **body})
    assert response.status_code == 200, response.text
    return response.json()


def prompt(s: HttpServer) -> str:
    return bytes(s.grpc.received(Submit)[-1].prompt_token_ids).decode().removesuffix("<assistant>")


def kept(s: HttpServer) -> dict[str, float]:
    return s.grpc.server.api.responses.metrics()


def test_a_conversation_goes_on_from_a_response():
    async def test() -> None:
        async with http_serving(says("ok"), response_store=STORE) as s:
            first = await answered(s, input="one", instructions="be brief")
            assert (first["store"], first["previous_response_id"]) == (True, None)
            assert prompt(s) == "<system>be brief;<user>one;"
            events = await s.events(PATH, input="two", temperature=0, previous_response_id=first["id"])
            second = events[-1]["response"]
            assert events[0]["response"]["store"] is second["store"] is True
            assert second["previous_response_id"] == first["id"]
            assert prompt(s) == "<user>one;<assistant>ok;<user>two;"  # instructions are each request's own
            third = await answered(s, input=[{"role": "user", "content": "three"}], previous_response_id=second["id"])
            assert prompt(s) == "<user>one;<assistant>ok;<user>two;<assistant>ok;<user>three;"
            other = await answered(s, input="else", previous_response_id=first["id"], store=False)
            assert prompt(s) == "<user>one;<assistant>ok;<user>else;"
            assert other["store"] is False
            for name in (other["id"], "resp_1", ""):
                if name:
                    error = await s.refused(PATH, input="x", previous_response_id=name)
                    assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_found")
                    assert name in error["message"]
            # What it is made of may go.
            for each in (first, second):
                assert (await s.http.delete(f"{PATH}/{each['id']}")).json()["deleted"] is True
            await answered(s, input="four", previous_response_id=third["id"])
            assert prompt(s).endswith("<user>three;<assistant>ok;<user>four;")
            assert prompt(s).startswith("<user>one;")

    run(test())


def test_items_of_a_response_are_referred_to():
    """As the AI SDK does it in the second step of a tool loop."""

    async def test() -> None:
        async with http_serving(says(CALLS), response_store=STORE, **FORM) as s:
            first = await answered(s, input=[{"role": "user", "content": "hi", "id": "msg_mine"}], tools=TOOLS)
            reasoning, message, call = first["output"]
            result = {"type": "function_call_output", "call_id": call["call_id"], "output": "21"}
            whole = [{"role": "user", "content": "hi"}, *first["output"], result]
            await answered(s, input=whole, tools=TOOLS, store=False)
            expected = prompt(s)
            referred = [{"type": "item_reference", "id": item["id"]} for item in (reasoning, message, call)]
            for user in ({"role": "user", "content": "hi"}, {"id": "msg_mine"}):  # the type may be left out
                second = await answered(s, input=[user, *referred, result], tools=TOOLS)
                assert prompt(s) == expected
            # They are found behind the second step, too, which was given them.
            await s.http.delete(f"{PATH}/{first['id']}")
            await answered(s, input=[*whole[:1], *referred, result], tools=TOOLS)
            assert prompt(s) == expected
            listed = (await s.http.get(f"{PATH}/{second['id']}/input_items?order=asc")).json()
            assert [item["id"] for item in listed["data"][:4]] == [
                "msg_mine",
                *(item["id"] for item in first["output"]),
            ]
            for item, words in (
                ({"type": "item_reference", "id": "fc_none"}, "no such item is kept here"),
                ({"type": "item_reference"}, "it must be the id of an item"),
            ):
                error = await s.refused(PATH, input=[item])
                assert error["param"] == "input[0].id"
                assert words in error["message"]

    run(test())


def test_the_events_of_a_response_come_again():
    """All that the stream told, in its order, deltas of one text put together."""

    def merged(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for event in events:
            last = found[-1] if found else {"type": ""}
            if event["type"].endswith(".delta") and event["type"] == last["type"]:
                last["delta"] += event["delta"]
                if "logprobs" in last:
                    last["logprobs"] = [*last["logprobs"], *event["logprobs"]]
            else:
                found.append(event)
        return [{**event, "sequence_number": i} for i, event in enumerate(found)]

    async def test() -> None:
        async with http_serving(says(CALLS), response_store=STORE, **FORM) as s:
            for more in ({}, {"include": ["message.output_text.logprobs"]}, {"max_output_tokens": 24}):
                told = await s.events(PATH, input="hi", temperature=0, tools=TOOLS, **more)
                url = f"{PATH}/{told[-1]['response']['id']}"
                again = [event async for event in _events(s, url + "?stream=true")]
                assert again == merged(told)
                assert [event async for event in _events(s, url + "?stream=True&starting_after=4")] == again[5:]
                assert [event async for event in _events(s, url + "?stream=true&starting_after=999")] == again[-1:]
                client = openai.AsyncOpenAI(base_url=s.url + "/v1", api_key="none", http_client=s.http)
                stream = await client.responses.retrieve(again[-1]["response"]["id"], stream=True)
                assert [event.type async for event in stream] == [event["type"] for event in again]

    run(test())


async def _events(s: HttpServer, url: str) -> AsyncIterator[dict[str, Any]]:
    async with s.http.stream("GET", url) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def test_a_prompt_is_counted_as_it_would_be_answered():
    async def test() -> None:
        async with http_serving(says(CALLS), response_store=STORE, **FORM) as s:
            first = await answered(s, input="hi", tools=TOOLS)
            client = openai.AsyncOpenAI(base_url=s.url + "/v1", api_key="none", http_client=s.http)
            for body in (
                {"input": "hi"},
                {"input": [{"role": "user", "content": "hi"}], "instructions": "be brief", "tools": TOOLS},
                {"input": "on", "previous_response_id": first["id"], "reasoning": {"effort": "low"}},
            ):
                answer = await answered(s, **body)
                counted = await client.responses.input_tokens.count(model="fake", **body)
                assert (counted.object, counted.input_tokens) == (
                    "response.input_tokens",
                    answer["usage"]["input_tokens"],
                )
            count = PATH + "/input_tokens"
            response = await s.post(count, input="hi", parallel_tool_calls=False, unheard_of=1)
            assert (response.status_code, response.headers["x-jaxinfer-ignored"]) == (200, "unheard_of")
            for field, value in (("previous_response_id", "resp_1"), ("truncation", "x"), ("conversation", "conv_1")):
                assert (await s.refused(count, input="hi", **{field: value}))["param"] == field
            assert (await s.refused(count))["param"] == "input"

    run(test())


def test_a_server_that_keeps_none_says_so():
    async def test() -> None:
        async with http_serving(says("ok")) as s:
            answer = await answered(s, input="hi")
            assert answer["store"] is False
            error = await s.refused(PATH, input="hi", previous_response_id=answer["id"])
            assert "--response-store none" in error["message"]
            item = {"type": "item_reference", "id": answer["output"][0]["id"]}
            error = await s.refused(PATH, input=[item])
            assert error["param"] == "input[0].id"
            assert "store: false" in error["message"]
            response = await s.post(PATH, input="hi", store=True)
            assert (response.status_code, response.json()["store"]) == (200, False)
            assert response.headers["x-jaxinfer-ignored"] == "store"
            missing = await s.http.get(f"{PATH}/{answer['id']}")
            assert (missing.status_code, missing.json()["error"]["code"]) == (404, "response_not_found")
            assert "--response-store none" in missing.json()["error"]["message"]

    run(test())


def test_a_response_is_fetched_listed_and_deleted():
    async def test() -> None:
        async with http_serving(says("ok"), response_store=STORE) as s:
            client = s.openai()
            made = await client.responses.create(model="fake", input="one", temperature=0, metadata={"a": "b"})
            found = await client.responses.retrieve(made.id)
            assert found.model_dump() == made.model_dump()
            for i in range(3):
                made = await client.responses.create(
                    model="fake", input=f"{i}", temperature=0, previous_response_id=made.id
                )
            items = [item async for item in client.responses.input_items.list(made.id, order="asc", limit=2)]
            texts = [item.content[0].text for item in items]
            assert texts == ["one", "ok", "0", "ok", "1", "ok", "2"]  # four pages
            assert [item.content[0].type for item in items[:2]] == ["input_text", "output_text"]
            newest = await client.responses.input_items.list(made.id, limit=1)
            assert (newest.data[0].content[0].text, newest.has_more) == ("2", True)
            await client.responses.delete(made.id)
            for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
                with pytest.raises(openai.NotFoundError) as missing:
                    await call(made.id)
                assert missing.value.code == "response_not_found"
                assert made.id in missing.value.message

    run(test())


CANNOT: list[tuple[str, str, str, str]] = [
    ("POST", "/cancel", "response_id", "background true"),
    ("GET", "?stream=yes", "stream", "false or true"),
    ("GET", "?starting_after=1", "starting_after", "it needs stream"),
    ("GET", "?stream=true&starting_after=-1", "starting_after", "0 or more"),
    ("GET", "/input_items?limit=0", "limit", "from 1 to 100"),
    ("GET", "/input_items?limit=x", "limit", "from 1 to 100"),
    ("GET", "/input_items?order=up", "order", "desc or asc"),
    ("GET", "/input_items?after=msg_none", "after", "the id of one"),
]


def test_what_cannot_be_asked_of_a_response():
    async def test() -> None:
        async with http_serving(says("ok"), response_store=STORE) as s:
            for method, path, param, words in CANNOT:
                made = await answered(s, input="hi")
                answer = await s.http.request(method, f"{PATH}/{made['id']}{path}")
                error = answer.json()["error"]
                assert (answer.status_code, error["param"]) == (400, param)
                assert words in error["message"]
                error = await s.refused(PATH, input="hi", background=True)
                assert error["param"] == "background"
                assert (await s.http.put(f"{PATH}/{made['id']}")).status_code == 405

    run(test())


def test_another_tenants_responses_are_not_there(tmp_path):
    keys = Keys(tmp_path)
    acme, colleague, other = keys.new("acme"), keys.new("acme"), keys.new("other")

    async def test() -> None:
        async with http_serving(says("ok"), response_store=STORE, access=AccessConfig(keys.path)) as s:
            s.http.headers["authorization"] = f"Bearer {acme}"
            made = await answered(s, input="hi")
            reference = [{"type": "item_reference", "id": made["output"][0]["id"]}]
            s.http.headers["authorization"] = f"Bearer {other}"
            for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
                assert (await s.http.request(method, f"{PATH}/{made['id']}{path}")).status_code == 404
            assert (await s.refused(PATH, input="x", previous_response_id=made["id"]))["code"]
            assert (await s.refused(PATH, input=reference))["param"] == "input[0].id"
            del s.http.headers["authorization"]
            assert (await s.http.get(f"{PATH}/{made['id']}")).status_code == 401
            s.http.headers["authorization"] = f"Bearer {colleague}"
            assert (await s.http.get(f"{PATH}/{made['id']}")).json() == made
            await answered(s, input="x", previous_response_id=made["id"])
            await answered(s, input=[*reference, {"role": "user", "content": "x"}])

    run(test())


def test_nothing_is_left_of_a_request_that_breaks_off():
    async def test() -> None:
        options = FakeOptions(step_seconds=0.005)
        async with http_serving(options, response_store=STORE) as s:
            for stream in (False, True):
                with pytest.raises((httpx.ReadTimeout, TimeoutError)):
                    async with asyncio.timeout(0.2):
                        await s.http.post(PATH, json={"input": "hi", "temperature": 0, "stream": stream}, timeout=0.1)
            await until(lambda: len(s.grpc.received(Abort)) == 2, "both were ended")
            await until(lambda: s.grpc.server.frontend.open_requests == 0, "nothing is left")
            assert kept(s)["response_store_responses"] == kept(s)["response_store_bytes"] == 0
            await answered(s, input="hi", max_output_tokens=3)  # one that is cut has an end
            assert kept(s)["response_store_responses"] == 1

    run(test())


def test_the_bounds_hold_and_the_metrics_tell():
    async def test() -> None:
        async with http_serving(says("ok"), response_store=StoreLimits(bytes=20_000, responses=3)) as s:
            made = [await answered(s, input=f"{i}") for i in range(5)]
            found = [(await s.http.get(f"{PATH}/{each['id']}")).status_code for each in made]
            assert found == [404, 404, 200, 200, 200]
            huge = await answered(s, input="x" * 3000, metadata={f"{i}": "y" * 512 for i in range(16)}, store=True)
            assert huge["store"] is True
            huge = await answered(s, input=[{"role": "user", "content": f"{i}"} for i in range(100)])
            assert huge["store"] is False  # larger than all may be
            text = (await s.http.get("/metrics")).text
            for name in ("response_store_responses", "response_store_bytes", "response_store_evicted_total"):
                (line,) = (line for line in text.splitlines() if line.startswith(f"jaxinfer:{name}"))
                assert float(line.split()[-1]) == kept(s)[name] > 0
            assert kept(s)["response_store_bytes"] <= 20_000

    run(test())


def test_a_short_body_counts_for_what_it_brings_back():
    """What is much work is not done on the event loop."""

    async def test() -> None:
        async with http_serving(says("ok"), response_store=STORE) as s:
            store = s.grpc.server.api.responses
            made = await answered(s, input="x" * 1000)
            item, turn = made["output"][0]["id"], ResponseTurn(store, "default")
            for body, least in (
                ({"previous_response_id": made["id"]}, 1000),
                ({"input": [{"type": "item_reference", "id": item}]}, 1000),
                ({"input": [{"type": "item_reference", "id": "none"}]}, 0),
                ({"input": made["id"]}, 0),
                ({"input": ["x" * 20_000, {"type": "item_reference", "id": item}]}, 1 << 18),
            ):
                size = turn.size_of_named(json.dumps(body).encode())
                assert least <= size <= 2 * least, body
            assert (
                ResponseTurn(store, "other").size_of_named(json.dumps({"previous_response_id": made["id"]}).encode())
                == 0
            )

    run(test())


def test_a_conversation_has_a_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(response_turn, "MAX_SIZE", 3000)

    async def test() -> None:
        async with http_serving(says("ok"), response_store=STORE) as s:
            made = await answered(s, input="x" * 1500)
            await answered(
                s, input=[{"type": "item_reference", "id": made["output"][0]["id"]}], previous_response_id=made["id"]
            )
            more = await answered(s, input="x" * 1500, previous_response_id=made["id"])
            error = await s.refused(PATH, input="hi", previous_response_id=more["id"])
            assert error["param"] == "previous_response_id"
            assert "at most 3000" in error["message"]
            users = [
                (await answered(s, input=[{"role": "user", "content": f"{i}" * 1500, "id": f"m{i}"}])) for i in range(2)
            ]
            assert len(users) == 2
            references = [{"type": "item_reference", "id": f"m{i}"} for i in range(2)]
            await answered(s, input=references[1:])
            assert (await s.refused(PATH, input=references))["param"] == "input[1].id"

    run(test())
