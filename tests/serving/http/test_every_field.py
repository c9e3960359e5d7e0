"""No field of the OpenAPI document is ignored: it changes the output of a real model, is refused by its name, or the
answer's header names it.

The walk is over the document that the server gives, so a field that is added without an effect fails here.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from jaxinfer.messages import Submit
from serving.http.decode import no_effects
from serving.http.models import RECORDED, REFUSED
from serving.http.openapi import document
from tests.serving.harness import run
from tests.serving.http.demo_server import demo_server
from tests.serving.http.field_table import (
    BASES,
    EFFECTS,
    ENGINE,
    FAKED,
    FORM,
    GREEDY,
    ITEM,
    LONG,
    MESSAGES,
    NOT_NEUTRAL,
    PATHS,
    REASONS,
    SCHEMAS,
    SCRIPT,
    STORY,
    STREAMS,
    TYPES,
)
from tests.serving.http.harness import http_serving, says
from tests.serving.observing.test_metrics import Scrape

pytestmark = pytest.mark.longer


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[httpx.Client]:
    with demo_server(tmp_path_factory.mktemp("model"), "--max-logprobs", "-1") as client:
        yield client


def without_effect(kind: str) -> set[str]:
    return set(no_effects(TYPES[kind]))


def holds_no_effect(kind: str) -> set[str]:
    """Objects of which no field has one: test_ignored_fields.py."""
    return {"stream_options"} if kind == "responses" else set()


def fields(kind: str) -> set[str]:
    return set(document()["components"]["schemas"][SCHEMAS[kind]]["properties"])


def forms(kind: str) -> set[str]:
    return FORM.keys() & fields(kind)


@pytest.mark.parametrize("kind", list(PATHS))
def test_every_field_is_accounted_for(kind):
    refused = {name for name in fields(kind) if name in (*REFUSED, "best_of")}  # some have an effect elsewhere
    effects = {
        *EFFECTS[kind],
        *FAKED.get(kind, ()),
        *REASONS.get(kind, ()),
        *ENGINE,
        *forms(kind),
        *(STREAMS if kind != "responses" else ()),
    }
    assert fields(kind) - effects - set(RECORDED) - without_effect(kind) - holds_no_effect(kind) == refused - effects
    assert effects <= fields(kind)
    assert {"user"} <= fields(kind)


class Walk:
    """Requests of one kind, with the markers of the table filled in."""

    def __init__(self, client: httpx.Client, kind: str) -> None:
        self.client, self.kind = client, kind
        asked = client.post("/tokenize", json={"messages": MESSAGES}).json()["tokens"]
        answer = client.post(
            "/v1/completions", json={"prompt": asked, **GREEDY, "max_tokens": 3, "return_token_ids": True}
        )
        self.asked, self.token = asked, answer.json()["choices"][0]["token_ids"][2]

    def outcome(self, change: dict[str, Any]) -> Any:
        """Status and body without what differs from call to call, or the stream's texts."""
        response = self.client.post(PATHS[self.kind], json=self._filled({**BASES[self.kind], **change}))
        if response.headers["content-type"].startswith("text/event-stream"):
            return response.status_code, [sorted(line) for line in response.text.splitlines() if "usage" in line][-1:]
        answer = _without_ids(response.json())
        if self.kind == "responses" and response.status_code == 200:  # the rest repeats the request
            answer = {name: answer[name] for name in ("id", "status", "output", "usage", "metadata", "store")}
        return response.status_code, answer

    def _filled(self, body: dict[str, Any]) -> dict[str, Any]:
        text = {"chat": "messages", "completion": "prompt", "responses": "input"}[self.kind]
        if body.pop("ENDS", False):
            tokens = "max_output_tokens" if self.kind == "responses" else "max_tokens"
            body[tokens] = 60
            asked = {"chat": MESSAGES, "completion": self.asked, "responses": MESSAGES[0]["content"]}
            body[text] = asked[self.kind]
        if body.pop("ENDLESS", False):
            body.update({"ignore_eos": True, "max_output_tokens" if self.kind == "responses" else "max_tokens": 60})
        if body.pop("LONG", False):
            body[text] = [{"role": "user", "content": LONG}] if self.kind == "chat" else LONG
        if body.pop("TURNS", False):
            answer = {"role": "assistant", "content": "So it was."}
            body["input"] = [{"role": "user", "content": 4 * LONG}, answer, {"role": "user", "content": STORY}]
            body["max_output_tokens"] = 200
        for name, value in body.items():
            if value == "SOME RESPONSE":
                body[name] = self.client.post(PATHS["responses"], json={"input": "hi"}).json()["id"]
            if value == "SOME TOKEN":
                body[name] = [self.token]
            elif value == "SOME WORD":
                body[name] = [self.client.post("/detokenize", json={"tokens": [self.token]}).json()["prompt"]]
            elif value == "SOME BIAS":
                body[name] = {str(self.token): -100}
        return {name: value for name, value in body.items() if value is not None}


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: ("mine" in str(inner) if key in ("id", "call_id") else _without_ids(inner))
            for key, inner in value.items()
            if key not in ("created", "created_at", "seed")
        }
    return [_without_ids(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", list(PATHS))
def test_every_effect_changes_the_output(client, kind):
    walk = Walk(client, kind)
    plains: dict[str, Any] = {}
    for name, (value, around) in EFFECTS[kind].items():
        if str(around) not in plains:
            walk.outcome(around)  # fills the prefix cache
            plains[str(around)] = walk.outcome(around)
            again = walk.outcome(around)
            assert again == plains[str(around)], f"{name}: the comparison would be unequal anyway"
        plain = plains[str(around)]
        assert plain[0] == 200, (name, plain)
        changed = walk.outcome({**around, name: f"{value} of {kind}" if name == "cache_salt" else value})
        assert changed[0] == (404 if name == "model" else 200), (name, changed)
        assert changed != plain, name


@pytest.mark.parametrize("kind", list(PATHS))
def test_every_other_field_is_refused_by_name(client, kind):
    refused = (
        fields(kind)
        - {*EFFECTS[kind], *FAKED.get(kind, ()), *REASONS.get(kind, ()), *ENGINE, *RECORDED, *forms(kind)}
        - without_effect(kind)
        - holds_no_effect(kind)
    )
    for name in sorted(refused):
        value = NOT_NEUTRAL.get(name, "unheard-of")
        response = client.post(PATHS[kind], json={**BASES[kind], name: value})
        assert response.status_code == 400, name
        error = response.json()["error"]
        assert error["param"] == name
        assert str(value) in error["message"]
        for neutral in (*REFUSED[name].neutral, None) if name in REFUSED else (1, None):
            response = client.post(PATHS[kind], json={**BASES[kind], name: neutral})
            assert response.status_code == 200, (name, neutral, response.text)


def test_events_have_several_tokens(client):
    texts = []
    for interval in (None, 5):
        body = {**BASES["completion"], "temperature": 0, "max_tokens": 12, "ignore_eos": True, "stream": True}
        answer = client.post(PATHS["completion"], json={**body, "stream_interval": interval, "return_token_ids": True})
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        counts = [len(event["choices"][0]["token_ids"]) for event in events]
        texts.append("".join(event["choices"][0]["text"] for event in events))
        assert sum(counts) == 12
        if interval:
            assert counts[0] == 1
            assert min(counts[1:-1]) >= 5
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_named_tokens_have_the_log_probabilities_that_all_tokens_have(client, kind):
    def asked(**more: Any) -> list[dict[str, float]]:
        base = {**BASES[kind], "temperature": 0, "return_tokens_as_token_ids": True, "max_tokens": 4}
        answer = client.post(PATHS[kind], json={**base, **more}).json()["choices"][0]["logprobs"]
        if kind == "completion":
            return answer["top_logprobs"]
        return [{e["token"]: e["logprob"] for e in entry["top_logprobs"]} for entry in answer["content"]]

    logprobs = {"logprobs": 1} if kind == "completion" else {"logprobs": True}
    most = client.get("/server_info?config_format=json").json()["vllm_config"]["vocab_size"]
    every = asked(**({"logprobs": -1} if kind == "completion" else {"logprobs": True, "top_logprobs": most}))
    named = asked(**logprobs, logprob_token_ids=[20, 21, 300])
    for some, all_ in zip(named, every, strict=True):
        assert {"token_id:20", "token_id:21", "token_id:300"} <= some.keys()
        assert len(some) <= 4  # in completions the token that was drawn is among them
        assert all(all_[name] == value for name, value in some.items())


VALUES = {"store": True, "metadata": {"a": "b"}, "client_metadata": {"a": 1}, "max_tool_calls": 3}
VALUES |= {name: {"type": "content"} for name in ("prediction", "web_search_options")}


@pytest.mark.parametrize("kind", list(PATHS))
def test_what_has_no_effect_is_named_and_changes_nothing(client, kind):
    walk = Walk(client, kind)
    plain = walk.outcome({})
    fields = {name: VALUES.get(name, "text") for name in without_effect(kind)}
    assert walk.outcome(fields) == plain
    response = client.post(PATHS[kind], json={**BASES[kind], **fields})
    assert set(response.headers["x-jaxinfer-ignored"].split(", ")) == set(fields)
    neutral = {name: value for name, rule in no_effects(TYPES[kind]).items() for value in rule.neutral}
    assert neutral
    response = client.post(PATHS[kind], json={**BASES[kind], **dict.fromkeys(fields), **neutral})
    assert (response.status_code, "x-jaxinfer-ignored" in response.headers) == (200, False)


def test_another_tool_and_parts_that_are_no_text_are_refused(client):
    named = {"type": "function", "function": {"name": "g"}}
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    for change, param in (
        ({"tools": [ITEM], "tool_choice": named}, "tool_choice"),
        ({"messages": [{"role": "user", "content": image}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        ({"tools": [ITEM], "tool_choice": "unheard-of"}, "tool_choice"),
        ({"response_format": {"type": "unheard-of"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
    ):
        response = client.post(PATHS["chat"], json={**BASES["chat"], **change})
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]
    response = client.post(PATHS["responses"], json={"input": image})
    assert response.json()["error"]["param"] == "input[0].content[0].type"


@pytest.mark.parametrize("kind", list(PATHS))
def test_who_it_is_for_changes_nothing(client, kind):
    """These go to the usage ledger."""
    walk = Walk(client, kind)
    plain = walk.outcome({})
    for name in fields(kind) & set(RECORDED):
        assert walk.outcome({name: "someone"}) == plain


def test_a_real_engine_tells_what_it_did(client):
    before = Scrape(client.get("/metrics").text)
    response = client.post(PATHS["completion"], json={**BASES["completion"], "prompt": "x" * 60, "max_tokens": 9})
    name = response.headers["x-request-id"]
    usage = response.json()["usage"]
    deadline = time.monotonic() + 10
    while "finish_reason" not in (found := client.get(f"/debug/requests/{name}").json()):
        assert time.monotonic() < deadline
    assert found["cached_tokens"] == 0
    assert found["computed_tokens"] >= usage["prompt_tokens"] + usage["completion_tokens"] - 1
    assert found["prefill_chunks"] == -(-usage["prompt_tokens"] // 16) > 1  # 16 tokens a step
    assert found["pages"] >= 1
    assert 0 <= found["padding_share"] < 1
    seconds = found["seconds"]
    assert sum(seconds[phase] for phase in ("check", "queue", "prefill", "decode", "close")) == pytest.approx(
        seconds["total"]
    )
    assert 0 < seconds["device"] <= seconds["total"]
    after = Scrape(client.get("/metrics").text)
    assert after("compilations_after_ready_total") == 0
    assert after("generation_tokens_total") - before("generation_tokens_total") == usage["completion_tokens"]
    for part in ("schedule", "dispatch", "device", "update", "messages"):
        assert after("step_seconds_total", part=part) > before("step_seconds_total", part=part)
    assert after("iteration_tokens_total_sum") == after("scheduled_tokens_total") > before("scheduled_tokens_total")


def test_what_shows_on_a_model_that_reasons_and_calls():
    async def test():
        async with http_serving(says(SCRIPT), tool_call_parser="hermes", reasoning_parser="think") as s:
            for kind, changes in FAKED.items():
                tool = {"type": "function", "name": "f"} if kind == "responses" else ITEM
                base = {**BASES[kind], "temperature": 0, "tools": [tool]}
                base.pop("max_tokens", None), base.pop("max_output_tokens", None)
                plain = _without_ids((await s.post(PATHS[kind], **base)).json())
                for name, value in changes.items():
                    changed = _without_ids((await s.post(PATHS[kind], **base, **{name: value})).json())
                    part = "output" if kind == "responses" else "choices"
                    assert changed[part] != plain[part], name
                for name, value in REASONS.get(kind, {}).items():
                    await s.post(PATHS[kind], **base, **{name: value})
                    budget = s.grpc.received(Submit)[-1].thinking
                    assert budget is not None
                    assert budget.tokens == value

    run(test())


def test_what_the_engine_is_told():
    async def test():
        async with http_serving() as s:
            for kind, path in PATHS.items():
                for name, (value, told) in ENGINE.items():
                    await s.post(path, **BASES[kind], **{name: value})
                    assert told.items() <= s.grpc.received(Submit)[-1]._asdict().items()
                for name in sorted(forms(kind)):
                    assert s.grpc.received(Submit)[-1].constraint == ""
                    await s.post(path, **BASES[kind], **{name: FORM[name]})
                    submit = s.grpc.received(Submit)[-1]
                    assert ("[a-z]+" if name == "structured_outputs" else "json_schema") in submit.constraint
                    assert submit.params.structured_outputs is None
                    await s.post(path, **BASES[kind])
            assert len(s.grpc.received(Submit)) == 3 * len(ENGINE) + 2 * 2 * 3
            await asyncio.sleep(0)

    run(test())
