"""The log: JSON lines, a line for each request, and nobody's text unless it is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from smg_grpc_proto import vllm_engine_pb2_grpc as vllm_grpc

from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.access.access import Access
from serving.engine_process import EngineProcess
from serving.frontend.engine_link import EngineLink
from serving.observing.logs import LEVELS, WITHHELD, EngineLogs, logging_to, tame_loop
from serving.observing.recorder import Recorder
from serving.observing.setup import ObservingConfig
from tests.fakes import FakeOptions, write_model
from tests.serving.gateways.harness import BOTH, generate
from tests.serving.harness import collect, greedy, run, serving, status
from tests.serving.http.harness import HttpServer, http_serving
from tests.serving.observing.test_metrics import quiet
from tests.serving.test_processes import Stream, server

# What a client sends and gets; each must be nowhere in the log.
CANARIES = (
    "kanarienvogel",
    "kanaria-stop",
    "kanaria-user",
    "kanaria-salt",
    "kanaria-model",
    "kanaria-pfad",
)
OUTPUT = "zeisig und fink "


async def drive(s: HttpServer) -> None:
    """Requests of every kind that go well or badly, all of them with canaries in them."""
    prompt, stop, user, salt, model, path = CANARIES
    await s.complete(prompt=prompt, stop=stop, user=user, cache_salt=salt)
    await s.chat(prompt, tools=[{"type": "function", "function": {"name": "f", "description": prompt}}])
    await s.events("/v1/chat/completions", messages=[{"role": "user", "content": prompt}], max_tokens=5)
    await s.post("/v1/responses", input=prompt, instructions=prompt, max_output_tokens=5)
    await s.complete(prompt=prompt, unheard_of=prompt)
    await s.post("/tokenize", prompt=prompt)
    await collect(s.grpc.stub.Generate(greedy(prompt, stop=[stop])))
    for bad in (
        {"prompt": prompt, "max_tokens": -1},
        {"prompt": prompt, "suffix": prompt},
        {"prompt": prompt, "model": model},
        {"prompt": prompt, "stop": [stop] * 99},
        {"prompt": prompt, "logit_bias": {prompt: 1}},
        {"prompt": prompt, "request_id": prompt + "é"},
        {"prompt": {prompt: prompt}},
    ):
        assert 400 <= (await s.post("/v1/completions", **bad)).status_code < 500, bad
    await s.http.post(
        "/v1/completions", content=b'{"prompt": "' + prompt.encode(), headers={"content-type": "application/json"}
    )
    await s.http.post("/v1/completions", content=prompt.encode(), headers={"content-type": prompt})
    await s.http.get("/" + path)
    await s.http.get("/debug/requests/" + path)
    await status(s.grpc.stub.Generate(greedy(prompt, stop=[stop] * 99)))
    request = greedy(prompt)
    request.model = model
    await status(s.grpc.stub.Generate(request))


async def break_things(s: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults that nobody foresaw, whose messages quote the client; in every layer that catches them."""
    prompt = CANARIES[0]
    client = s.grpc.server.frontend

    def fail(*_: object, **__: object) -> None:
        try:
            raise ValueError(f"inside: {prompt}")
        except ValueError as error:
            raise KeyError(f"cannot do {prompt!r}") from error

    with monkeypatch.context() as patch:
        patch.setattr("serving.frontend.stream.RequestStream.push", fail)  # text of one request
        assert (await s.post("/v1/completions", prompt=prompt, max_tokens=5)).status_code == 500
        await status(s.grpc.stub.Generate(greedy(prompt)))
    with monkeypatch.context() as patch:
        patch.setattr("serving.frontend.frontend.prepare", fail)
        assert (await s.post("/v1/completions", prompt=prompt)).status_code == 500  # uvicorn's traceback
        await status(s.grpc.stub.Generate(greedy(prompt)))
    with monkeypatch.context() as patch:
        patch.setattr("serving.http.completions.CompletionReply.pieces", fail)
        await s.http.post("/v1/completions", json={"prompt": prompt, "stream": True})
    client.recorder.sinks.append(fail)
    await s.complete(prompt=prompt)
    await quiet(s)
    client.recorder.sinks.remove(fail)

    async def forgotten() -> None:
        fail()

    task = asyncio.create_task(forgotten())
    await asyncio.sleep(0.01)
    del task  # asyncio's own handler is told


async def session(monkeypatch: pytest.MonkeyPatch, *, content: bool) -> None:
    tame_loop(asyncio.get_running_loop())
    options = FakeOptions(script=OUTPUT)
    async with http_serving(options, tool_call_parser="hermes", observing=ObservingConfig(log_content=content)) as s:
        await drive(s)
        await break_things(s, monkeypatch)
        await quiet(s)


@pytest.fixture(autouse=True)
def quiet_client() -> Iterator[None]:
    """The client runs in this process, too, and its loggers quote what it sends."""
    loggers = [logging.getLogger(name) for name in ("httpx", "httpcore")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


def logged(monkeypatch: pytest.MonkeyPatch, **settings: object) -> str:
    stream = io.StringIO()
    content = bool(settings.get("content"))
    with logging_to(stream, **settings):  # type: ignore[arg-type]
        run(session(monkeypatch, content=content))
    return stream.getvalue()


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("level", LEVELS)
def test_no_level_shows_what_clients_send_and_get(monkeypatch, capfd, level, form):
    text = logged(monkeypatch, form=form, level=level)
    printed = capfd.readouterr()
    for where in (text, printed.out, printed.err):
        for canary in (*CANARIES, *OUTPUT.split(), "fink"):
            assert canary not in where, canary
    # The faults are there all the same.
    assert text.count(WITHHELD) >= 10
    assert "in break_things" not in text  # frames of what failed, not of this test
    assert "in fail" in text
    assert "KeyError" in text
    assert ('"request"' if form == "json" else ": request ") in text or level in ("warning", "error")


def test_content_is_there_when_it_is_asked_for(monkeypatch):
    text = logged(monkeypatch, form="json", content=True)
    events = [json.loads(line) for line in text.splitlines()]
    (first,) = [e for e in events if e.get("endpoint") == "/v1/completions" and e["message"] == "request"][:1]
    assert first["prompt"] == CANARIES[0]
    assert first["outputs"] == [OUTPUT[:8]]
    chat = next(e for e in events if e.get("endpoint") == "/v1/chat/completions")
    assert CANARIES[0] in chat["prompt"]  # as the template rendered it
    assert any(CANARIES[4] in e.get("reason", "") for e in events)
    assert f"cannot do '{CANARIES[0]}'" in text
    assert WITHHELD not in text


def test_a_line_for_each_request_of_both_servers(monkeypatch):
    stream = io.StringIO()

    async def test():
        async with http_serving(FakeOptions()) as s:
            await s.complete(request_id="one", n=2, max_tokens=5)
            request = greedy(max_tokens=3)
            request.request_id = "two"
            await collect(s.grpc.stub.Generate(request))
            await s.refused("/v1/completions", prompt="x", max_tokens=-1)
            await quiet(s)

    with logging_to(stream, form="json"):
        run(test())
    lines = map(json.loads, stream.getvalue().splitlines())
    one, two, three = (line for line in lines if line["logger"] == "serving.access")
    times = [one.pop(name) for name in ("queue_ms", "first_token_ms", "total_ms")]
    assert 0 <= times[0] <= times[1] <= times[2]
    assert one.pop("time").endswith("+00:00")
    assert one == {
        "level": "info",
        "logger": "serving.access",
        "message": "request",
        "request_id": "one",
        "door": "http",
        "endpoint": "/v1/completions",
        "tenant": "default",
        "finish_reason": "length",
        "n": 2,
        "prompt_tokens": 3,
        "cached_tokens": 3,
        "completion_tokens": 10,
        "device_ms": 10.0,
    }
    assert (two["request_id"], two["door"], two["completion_tokens"]) == ("two", "grpc", 3)
    assert (three["message"], three["code"], three["door"]) == ("refused", "400", "http")


def test_refused_calls_for_tokens_and_texts_have_a_line_too(monkeypatch):
    stream = io.StringIO()

    async def test():
        async with http_serving(FakeOptions()) as s:
            await s.post("/tokenize", prompt="x")
            await s.refused("/tokenize", prompt="x", messages=[])
            await s.refused("/detokenize", tokens=[-1])
            assert (await s.http.post("/detokenize", content=b"{}")).status_code == 415
            await status(s.grpc.stub.Tokenize(pb.TokenizeRequest()))
            await status(s.grpc.stub.Detokenize(pb.DetokenizeRequest(token_ids=[1 << 31])))

    with logging_to(stream, form="json"):
        run(test())
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(e["message"], e["door"], e["endpoint"], e["code"], e["param"]) for e in events] == [
        ("refused", "http", "/tokenize", "400", "prompt"),
        ("refused", "http", "/detokenize", "400", "tokens"),
        ("refused", "http", "/detokenize", "415", "Content-Type"),
        ("refused", "grpc", "Tokenize", "INVALID_ARGUMENT", "prompt"),
        ("refused", "grpc", "Detokenize", "INVALID_ARGUMENT", "token_ids"),
    ]


def test_a_refusal_over_a_gateway_names_the_field_as_its_client_does():
    stream = io.StringIO()

    async def test():
        async with serving(gateways=BOTH, with_tokenizer=False) as s:
            error = await status(vllm_grpc.VllmEngineStub(s.channel).Generate(generate("hi")))
            assert (error.details() or "").startswith("input is 'text'; ")

    with logging_to(stream, form="json"):
        run(test())
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(e["message"], e["door"], e["param"]) for e in events] == [("refused", "vllm", "input")]


def test_a_line_of_text_is_one_line():
    stream = io.StringIO()
    with logging_to(stream, form="text"):
        logging.getLogger("serving").warning("hello", extra={"fields": {"user": "a\n2026 ERROR forged"}})
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith('WARNING serving: hello user="a\\n2026 ERROR forged"\n')


def test_errors_of_the_operating_system_keep_their_words():
    stream = io.StringIO()
    with logging_to(stream, form="json"):
        try:
            Path("/nonexistent").read_text()
        except OSError:
            logging.getLogger("serving").exception("no file")
    assert "No such file or directory" in json.loads(stream.getvalue())["traceback"]


def test_a_reader_that_stands_still_does_not_stop_the_server(monkeypatch):
    class Stuck(io.StringIO):
        released = False

        def write(self, text: str) -> int:
            while not self.released:
                time.sleep(0.001)
            return super().write(text)

    monkeypatch.setattr("serving.observing.logs._MAX_QUEUED", 10)
    stream = Stuck()
    with logging_to(stream, form="text"):
        begin = time.monotonic()
        for i in range(50):
            logging.getLogger("serving").warning("line %d", i)
        assert time.monotonic() - begin < 1
        stream.released = True
        time.sleep(0.05)
        logging.getLogger("serving").warning("the last")
    text = stream.getvalue()
    assert "lines of the log are lost" in text
    assert "the last" in text


def test_the_process_writes_json_where_there_is_no_terminal(tmp_path):
    model = write_model(tmp_path / "tiny")
    with server(model) as s:
        Stream(s.address(), greedy(CANARIES[0], max_tokens=3)).ended()
        deadline = time.monotonic() + 10
        events: list[dict[str, object]] = []
        while not events and time.monotonic() < deadline:
            for line in list(s.lines):
                with contextlib.suppress(ValueError):
                    events.append(json.loads(line))
            time.sleep(0.01)
    assert [(e["message"], e["door"], e["finish_reason"]) for e in events] == [("request", "grpc", "length")]
    assert CANARIES[0] not in s.output


def warn(progress: object) -> object:
    """As an engine's build; it logs, as jax does."""
    logging.getLogger("jax").warning("a warning of the engine's")
    return FakeOptions().build(lambda _: None)


def test_the_engines_process_logs_in_the_same_form(capfd):
    async def test():
        engine = EngineProcess.started(EngineLogs(warn, "json", "info", content=False))
        link = EngineLink(engine, 0, lambda _: None, Recorder(), Access())
        await link.connect()
        await link.ready
        link.shutdown()
        assert await engine.wait(10) == 0
        await link.disconnect()

    run(test())
    (line,) = capfd.readouterr().err.splitlines()
    event = json.loads(line)
    assert (event["logger"], event["message"]) == ("jax", "a warning of the engine's")
