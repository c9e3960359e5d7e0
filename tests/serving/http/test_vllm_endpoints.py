"""Endpoints that vLLM has beside OpenAI's."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields

import jaxinfer
from jaxinfer.messages import Submit
from jaxinfer.sampling_params import SamplingParams
from serving.http.gate import NEEDS, needed
from tests.fakes import FakeOptions
from tests.serving.harness import run, until
from tests.serving.http.harness import http_serving

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def test_what_is_rendered_is_what_the_engine_gets():
    async def test():
        async with http_serving() as s:
            for path, body, prefix in (
                (
                    "/v1/completions",
                    {"prompt": ["one", "two"], "max_tokens": 5, "stop": ["x"], "cache_salt": "s"},
                    "cmpl-",
                ),
                ("/v1/chat/completions", {**CHAT, "temperature": 0.5, "seed": 3, "priority": 2, "n": 2}, "chatcmpl-"),
            ):
                answer = await s.post(path + "/render", **body, request_id="mine", unheard_of=1)
                assert (answer.status_code, answer.headers["x-jaxinfer-ignored"]) == (200, "unheard_of")
                found = answer.json() if path == "/v1/completions" else [answer.json()]
                assert s.grpc.received(Submit) == [], "nothing is generated"
                assert (await s.post(path, **body, request_id="mine")).status_code == 200
                sent = s.grpc.received(Submit)
                s.grpc.engine.received.clear()
                assert [each["token_ids"] for each in found] == [list(each.prompt_token_ids) for each in sent]
                for each, submit in zip(found, sent, strict=True):
                    assert each["request_id"] == prefix + submit.request_id.split("/")[0]
                    params = {f.name: getattr(submit.params, f.name) for f in fields(SamplingParams)}
                    assert each["sampling_params"] == json.loads(json.dumps(params))
                    assert (each["priority"], each["stream"]) == (submit.priority, False)
                    assert each["cache_salt"] == body.get("cache_salt")
            error = await s.refused("/v1/chat/completions/render", **CHAT, top_p=2, n=0)
            assert error["message"].startswith("2 faults")
            assert (await s.refused("/v1/completions/render", prompt=[]))["param"] == "prompt"

    run(test())


def test_ping_load_and_server_info():
    async def test():
        async with http_serving(FakeOptions(step_seconds=0.05), name="first", aliases=("second",)) as s:
            for answer in (await s.http.get("/ping"), await s.http.post("/ping")):
                assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
            assert (await s.http.get("/load")).json() == {"server_load": 0}
            running = asyncio.create_task(s.complete(max_tokens=20))
            await until(lambda: s.grpc.server.frontend.open_requests == 1, "a request runs")
            assert (await s.http.get("/load")).json() == {"server_load": 1}
            await running
            assert (await s.http.get("/load")).json() == {"server_load": 0}
            found = (await s.http.get("/server_info?config_format=json")).json()
            assert found["vllm_config"]["served_model_names"] == ["first", "second"]
            assert found["vllm_config"]["max_model_len"] == 4096
            assert found["vllm_config"]["api"]["unknown_fields"] == "report"
            assert found["system_env"]["jaxinfer"] == jaxinfer.__version__
            text = (await s.http.get("/server_info")).json()["vllm_config"]
            assert json.loads(text) == found["vllm_config"]
            error = (await s.http.get("/server_info?config_format=xml")).json()["error"]
            assert error["param"] == "config_format"
            assert (await s.http.post("/load")).status_code == 405

    run(test())
    assert needed("/server_info")[1] == needed("/load")[1] == NEEDS["/metrics"]
    assert needed("/v1/chat/completions/render")[1] == needed("/v1/chat/completions")[1]


def test_ping_is_as_health_while_the_model_loads():
    async def test():
        async with http_serving(FakeOptions(load_seconds=0.3), ready=False) as s:
            assert (await s.http.get("/ping")).status_code == 503
            assert (await s.http.get("/server_info")).status_code == 503
            await s.grpc.server.wait_ready()
            assert (await s.http.get("/ping")).status_code == 200

    run(test())


def test_spellings_of_tokens():
    async def test():
        async with http_serving() as s:
            body = {"prompt": "hé", "return_token_strs": True}
            found = (await s.post("/tokenize", **body)).json()
            assert len(found["token_strs"]) == len(found["tokens"]) == found["count"] == 4
            assert "token_strs" not in (await s.post("/tokenize", prompt="hé")).json()

    run(test())
