"""All faults of a request are told at once, and the log says which fields were at fault and why, no more."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from jaxinfer.errors import MAX_FAULTS, Faults, InvalidRequest, together
from jaxinfer.text import load_tokenizer
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.observing.logs import logging_to
from serving.refusal_log import known_part
from tests.fakes import write_tokenizer
from tests.serving.gateways.harness import BOTH, generate, infer
from tests.serving.gateways.test_open_inference import stub as infer_stub
from tests.serving.gateways.test_vllm_engine import stub as vllm_stub
from tests.serving.harness import run, serving, status
from tests.serving.http.harness import HttpServer, http_serving

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}
# (path, body, each fault's beginning in the order in which they are told)
CASES: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "completions",
        {"prompt": "x", "temperature": -1, "top_p": 2, "n": 0},
        ["temperature is -1.0;", "top_p is 2.0;", "n is 0;"],
    ),
    (
        "completions",
        {"prompt": "x", "max_token": 5, "temperature": "hot", "n": 2.5, "suffix": "y", "top_k": -5},
        ["max_token is not a field", "temperature is 'hot';", "n is 2.5;", "suffix is 'y';", "top_k is -5;"],
    ),
    (
        "completions",
        {"a": 1, "list": 2, "prompt": 5, "stop": 7},  # names that are words of what is said of the others
        ["a is not a field", "list is not a field", "prompt is 5;", "stop is 7;"],
    ),
    ("completions", {"temperature": -1}, ["prompt is missing;", "temperature is -1.0;"]),
    (
        "completions",
        {"prompt": "x", "request_id": "ü", "priority": 2**31, "cache_salt": "x" * 257, "logprobs": 21},
        ["request_id is", "cache_salt is", "priority is", "logprobs is 21;"],
    ),
    (
        "completions",
        {"prompt": "x", "best_of": 3, "stop": [""], "seed": 2**70},
        ["best_of is 3;", "seed is", "stop is ''"],
    ),
    (
        "chat/completions",
        {"messages": [{"content": "x"}, USER, {**USER, "z": 1}], "top_p": 2},
        ["messages[0].role is None;", "messages[2].z is 1;", "top_p is 2.0;"],
    ),
    (
        "chat/completions",
        {"messages": [USER], "max_completion_tokens": 0, "logprobs": 5, "modalities": ["audio"], "audio": {"a": 1}},
        ["logprobs is 5;", "modalities is ['audio'];", "audio is {'a': 1};", "max_completion_tokens is 0;"],
    ),
    (
        "chat/completions",
        {"messages": [USER], "tools": [TOOL, {"type": "web"}, {**TOOL, "x": 1}], "n": 65},
        ["tools[1].type is 'web';", "tools[2].x is 1;", "n is 65;"],
    ),
    (
        "responses",
        {"input": [{"type": "file"}, {"role": "tool", "content": "x"}], "max_output_tokens": 0, "store": True},
        ["store is True;", "input[0].type is 'file';", "input[1].role is 'tool';", "max_output_tokens is 0;"],
    ),
]


def test_all_are_told():
    async def check(s: HttpServer, path: str, body: dict[str, Any], faults: list[str]) -> None:
        error = await s.refused("/v1/" + path, **body)
        assert error["message"].startswith(f"{len(faults)} faults: (1) "), error["message"]
        assert error["message"].count("; (") == len(faults) - 1
        for i, fault in enumerate(faults, 1):
            assert f"({i}) {fault}" in error["message"], error["message"]
        assert error["param"] == faults[0].split(" ")[0]

    async def test():
        async with http_serving(tool_call_parser="hermes", unknown_fields="refuse") as s:
            for case in CASES:
                await check(s, *case)

    run(test())


def test_a_fault_alone_is_told_as_ever_and_no_consequence_is_a_fault():
    async def test():
        async with http_serving(unknown_fields="refuse") as s:
            for path, body, message in (
                ("completions", {"prompt": "x", "n": 0}, "n is 0; it must be an integer from 1 to 64"),
                # Without its faulty value, one field would lack what it needs.
                (
                    "chat/completions",
                    {"messages": [USER], "logprobs": 5, "top_logprobs": 2},
                    "logprobs is 5; it must be true or false",
                ),
                (
                    "completions",
                    {"prompt": "x", "stream": "yes", "stream_options": {"include_usage": True}},
                    "stream is 'yes'; it must be true or false",
                ),
                (
                    "completions",
                    {"prompt": "x", "min_tokens": 5, "max_tokens": 4},
                    "min_tokens is 5; it must not exceed max_tokens 4",
                ),
            ):
                assert (await s.refused("/v1/" + path, **body))["message"] == message
            both = (await s.refused("/tokenize", tokns=[1], promt="x"))["message"]
            assert "tokns is not a field" in both
            assert "promt is not a field of this request; did you mean prompt?" in both

    run(test())


def test_very_many_faults_are_counted():
    assert together(["a"]) == "a"
    assert together(["a", "b"]) == "2 faults: (1) a; (2) b"
    many = together([str(i) for i in range(MAX_FAULTS + 5)])
    assert many.startswith(f"{MAX_FAULTS + 5} faults: (1) 0;")
    assert many.endswith(f"({MAX_FAULTS}) {MAX_FAULTS - 1}; ...")
    faults = Faults([InvalidRequest("a", 1, "x"), InvalidRequest("b", 2, "y")])
    assert (faults.field, faults.value, faults.allowed) == ("a", 1, "x")
    assert str(faults) == "2 faults: (1) a is 1; x; (2) b is 2; y"

    async def test():
        async with http_serving(unknown_fields="refuse") as s:
            unknown = {f"field_{i}": i for i in range(200)}
            message = (await s.refused("/v1/completions", prompt="x", **unknown))["message"]
            assert message.startswith(f"{MAX_FAULTS} faults: ")
            assert len(message) < 3000

    run(test())


def test_other_servers_tell_all_too():
    async def test():
        async with serving(gateways=BOTH) as s:
            sampling = pb.SamplingParams(top_p=1.5, temperature=-1.0, n=65)
            request = pb.GenerateRequest(text="a", sampling=sampling, request_id="\n", cache_salt="x" * 257)
            error = await status(s.stub.Generate(request))
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
            for part in (
                "5 faults: (1) request_id is",
                "cache_salt is",
                "top_p is 1.5",
                "temperature is -1.0",
                "n is 65",
            ):
                assert part in error.details()
            error = await status(infer_stub(s).ModelInfer(infer(sampling={"top_p": 1.5, "min_p": 2})))
            assert "sampling_parameters.top_p is 1.5" in error.details()
            assert "sampling_parameters.min_p is 2" in error.details()
            error = await status(vllm_stub(s).Generate(generate(top_p=1.5, n=65)))
            assert "top_p is 1.5" in error.details()
            assert "n is 65" in error.details()

    run(test())


def test_what_a_template_or_the_engine_refuses_has_a_param(tmp_path):
    folder = write_tokenizer(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    async def test():
        async with http_serving() as s:
            s.grpc.server.frontend.model = model_with(s, load_tokenizer(folder))
            system = {"role": "system", "content": "x"}
            for path, body, param in (
                ("chat/completions", {"messages": [system]}, "messages"),
                ("responses", {"input": [system]}, "input"),
            ):
                error = await s.refused("/v1/" + path, **body)
                assert (error["param"], "no system" in error["message"]) == (param, True)

    run(test())


def model_with(s: HttpServer, tokenizer: Any) -> Any:
    from dataclasses import replace

    assert s.grpc.server.frontend.model is not None
    return replace(s.grpc.server.frontend.model, tokenizer=tokenizer)


# -- the log ----------------------------------------------------------------------------------------------------------


def logged(work: Callable[[HttpServer], Any], **settings: Any) -> list[dict[str, Any]]:
    async def test():
        async with http_serving(gateways=BOTH, **settings) as s:
            await work(s)

    stream = io.StringIO()
    with logging_to(stream, form="json"):
        run(test())
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [event for event in events if event["message"] == "refused"]


def test_the_log_names_field_and_reason_and_no_content():
    secret, name = "kanarienvogel", "zaunkönig"  # a name is told, a value never

    async def work(s: HttpServer) -> None:
        for path, body in (
            ("completions", {"prompt": secret, "temperature": -1}),
            ("completions", {"prompt": secret, name: secret}),
            ("completions", {"prompt": secret, "top_p": 2, "logit_bias": {secret: 1}, name: secret}),
            ("completions", {"prompt": secret, "model": secret}),
            ("chat/completions", {"messages": [USER, {**USER, name: secret}]}),
            ("chat/completions", {"messages": [{"role": "user", "content": [{"type": secret}]}]}),
        ):
            assert (await s.post("/v1/" + path, **body)).status_code in (400, 404)
        await s.http.post(
            "/v1/completions", content=b"{" + secret.encode(), headers={"content-type": "application/json"}
        )
        await s.http.post("/v1/completions", content=secret, headers={"content-type": secret})
        await status(s.grpc.stub.Generate(pb.GenerateRequest(text=secret, sampling=pb.SamplingParams(n=65))))
        request = infer(secret)
        request.parameters[secret].string_param = secret
        await status(infer_stub(s.grpc).ModelInfer(request))
        await status(vllm_stub(s.grpc).Generate(generate(secret, n=65)))

    events = logged(work, unknown_fields="refuse")
    assert secret not in json.dumps(events)
    told = "zaunk%C3%B6nig"
    assert [(event["param"], event["reason"]) for event in events] == [
        ("temperature", "it must be a number from 0 to 100"),
        (told, "it is no field of this request"),
        (told, "it is no field of this request"),
        ("model", "there is none of this name"),
        (f"messages[1].{told}", events[4]["reason"]),
        (
            "messages[0].content[0].type",
            "only text and input_text and output_text and refusal and thinking parts are supported",
        ),
        (None, "invalid_json"),
        ("Content-Type", "it must be application/json"),
        ("n", "it must be an integer from 1 to 64"),
        ("parameters", "it must be within the input sampling_parameters, where that is given"),
        ("n", "it must be an integer from 1 to 64"),
    ]
    assert events[4]["reason"].startswith("a message may have role, content")
    assert set(events[2]["others"]) == {"top_p", "logit_bias"}
    assert "others" not in events[0]


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("temperature", "temperature"),
        ("messages[3].content[0].type", "messages[3].content[0].type"),
        ("messages[0].mine", "messages[0]"),
        ("mine.messages", None),
        ("parameters[mine]", "parameters"),
        ("sampling_parameters.top_p", "sampling_parameters.top_p"),
        ("raw_input_contents of text_input", "raw_input_contents"),
        ("Content-Type", "Content-Type"),
        ("", None),
        (None, None),
    ],
)
def test_a_path_is_known_as_far_as_its_names_are_ours(path, known):
    assert known_part(path) == known
