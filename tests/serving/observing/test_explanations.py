"""GET /debug/requests/{id}, and the spans of OpenTelemetry."""

from __future__ import annotations

import dataclasses

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serving.commands import serve
from serving.observing import recorder as recording
from serving.observing import tracing
from serving.observing.setup import ObservingConfig
from serving.observing.tracing import Tracer, TracingError
from tests.fakes import FakeOptions
from tests.serving.harness import collect, greedy, run, until
from tests.serving.http.harness import HttpServer, http_serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


async def quiet(s: HttpServer) -> None:
    await until(lambda: not s.grpc.server.frontend.recorder._live, "the engine has ended everything")


def test_a_finished_request_is_explained():
    async def test():
        async with http_serving(FakeOptions(step_seconds=0.01)) as s:
            response = await s.post("/v1/completions", prompt="hello", temperature=0, max_tokens=5, n=2)
            name = response.headers["x-request-id"]
            assert (await s.http.get(f"/debug/requests/{name}/")).status_code == 200  # as without the slash
            await quiet(s)
            found = (await s.http.get(f"/debug/requests/{name}")).json()
            seconds = found.pop("seconds")
            phases = [seconds[phase] for phase in ("check", "queue", "prefill", "decode", "close")]
            assert sum(phases) == pytest.approx(seconds["total"])
            assert min(phases) >= 0
            assert seconds["decode"] >= 0.03
            assert seconds["check"] + seconds["queue"] + seconds["prefill"] == pytest.approx(seconds["to_first_token"])
            assert seconds["device"] == pytest.approx(0.010)
            assert found.pop("arrived") > 1e9
            assert found == {
                "request_id": name,
                "state": "finished",
                "model": "fake",
                "door": "http",
                "endpoint": "/v1/completions",
                "tenant": "default",
                "n": 2,
                "max_tokens": 5,
                "prompt_tokens": 6,
                "cached_tokens": 3,
                "completion_tokens": 10,
                "finish_reason": "length",
                "prefill_chunks": 2,
                "pages": 2,
                "preemptions": 0,
                "computed_tokens": 22,
                "padding_share": pytest.approx(10 / 32),
            }

    run(test())


def test_a_running_request_is_explained_and_an_unknown_one_is_not():
    async def test():
        async with http_serving(FakeOptions(step_seconds=0.01)) as s:
            request = greedy(max_tokens=500)
            request.request_id = "mine"
            call = s.grpc.stub.Generate(request)
            await until(lambda: s.grpc.server.frontend.stats.generated_tokens > 2, "it runs")
            found = (await s.http.get("/debug/requests/mine")).json()
            assert (found["state"], found["door"]) == ("alive", "grpc")
            assert found["completion_tokens"] > 0
            assert found["seconds"]["total"] > found["seconds"]["to_first_token"] > 0
            call.cancel()
            await quiet(s)
            found = (await s.http.get("/debug/requests/mine")).json()
            assert (found["state"], found["finish_reason"]) == ("finished", "abort")
            missing = await s.http.get("/debug/requests/other")
            assert missing.status_code == 404
            assert missing.json()["error"]["code"] == "request_not_found"

    run(test())


def test_a_stop_string_ends_the_tokens_that_count():
    async def test():
        async with http_serving(FakeOptions(script="abcdef")) as s:
            answer = await s.complete(max_tokens=50, stop="cd")
            await quiet(s)
            found = (await s.http.get(f"/debug/requests/{answer['id'].removeprefix('cmpl-')}")).json()
            assert found["finish_reason"] == "stop"
            assert found["completion_tokens"] == answer["usage"]["completion_tokens"] == 4

    run(test())


def test_only_the_last_requests_are_kept():
    async def test():
        async with http_serving() as s:
            s.grpc.server.frontend.recorder._most_recent = 3
            for i in range(10):
                await s.complete(request_id=f"r{i}")
            await quiet(s)
            codes = [(await s.http.get(f"/debug/requests/r{i}")).status_code for i in range(10)]
            assert codes == [404] * 7 + [200] * 3
            assert recording.RECENT == 1000

    run(test())


def exporter(s: HttpServer) -> InMemorySpanExporter:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    s.grpc.server.frontend.recorder.sinks.append(Tracer(provider))
    return kept


def test_a_span_for_each_request_of_both_servers():
    async def test():
        async with http_serving(FakeOptions(step_seconds=0.01)) as s:
            kept = exporter(s)
            body = {"prompt": "hello", "temperature": 0, "max_tokens": 5}
            await s.http.post("/v1/completions", json=body, headers={"traceparent": TRACEPARENT})
            await collect(s.grpc.stub.Generate(greedy(), metadata=(("traceparent", TRACEPARENT),)))
            await s.complete()
            await quiet(s)
            first, second, third = kept.get_finished_spans()
            for span in (first, second):
                assert f"{span.context.trace_id:032x}" == TRACE
                assert f"{span.parent.span_id:016x}" == PARENT
            assert third.parent is None
            assert (first.name, second.name) == ("/v1/completions", "Generate")
            assert [event.name for event in first.events] == ["queue", "prefill", "decode"]
            times = [first.start_time, *(event.timestamp for event in first.events), first.end_time]
            assert times == sorted(times)
            assert first.end_time - first.events[-1].timestamp >= 30_000_000
            assert first.attributes["gen_ai.usage.input_tokens"] == 6
            assert first.attributes["gen_ai.usage.output_tokens"] == 5
            assert first.attributes["gen_ai.response.finish_reasons"] == ("length",)

    run(test())


def test_a_request_that_fails_or_never_starts_has_a_span_too():
    async def test():
        async with http_serving(FakeOptions(step_seconds=0.1, crash_at_step=4, max_num_seqs=1)) as s:
            kept = exporter(s)
            calls = [s.grpc.stub.Generate(greedy(max_tokens=50)) for _ in range(2)]
            await until(lambda: s.grpc.server.frontend.open_requests == 2, "both are there")
            for call in calls:
                with pytest.raises(Exception, match="the fake engine crashes"):
                    await collect(call)
            await quiet(s)
            spans = kept.get_finished_spans()
            assert [span.status.status_code.name for span in spans] == ["ERROR", "ERROR"]
            assert ["decode" in [event.name for event in span.events] for span in spans].count(True) == 1
            for span in spans:
                times = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
                assert times == sorted(times)

    run(test())


def test_a_broken_context_is_no_error_and_no_parent():
    async def test():
        async with http_serving() as s:
            kept = exporter(s)
            body = {"prompt": "hello", "temperature": 0, "max_tokens": 5}
            response = await s.http.post("/v1/completions", json=body, headers={"traceparent": "00-zz-yy-01"})
            assert response.status_code == 200
            await quiet(s)
            assert [span.parent for span in kept.get_finished_spans()] == [None]

    run(test())


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingError, match=r"pip install 'jaxinfer\[otel\]'"):
        Tracer.sending_to("http://localhost:1")
    assert tracing.TRACE_HEADERS == ("traceparent", "tracestate")


@pytest.mark.parametrize(
    "endpoint",
    ["http://localhost:4317", "https://c.example", "http://[::1]:4317/", "grpc://c:4317", "c:4317", "unix:///tmp/otel"],
)
def test_addresses_of_collectors(endpoint):
    assert tracing.is_endpoint(endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        *(
            "",
            "junk",
            "http://",
            "http://:4317",
            "http://c:port",
            "http://c:70000",
            "http://c:0",
            "c:",
            ":4317",
            "unix:",
        ),
        *("http://c:4318/v1/traces", "ftp://c:21", "http://c :4317", "http://c:4317?x=1"),
    ],
)
def test_what_is_no_collectors_address_is_refused_before_anything_starts(endpoint, capsys):
    with pytest.raises(TracingError, match=r"otlp_endpoint is .*gRPC address"):
        Tracer.sending_to(endpoint)
    with pytest.raises(SystemExit):
        serve.make_parser("jaxinfer").parse_args(["--otlp-traces-endpoint", endpoint])
    assert f"--otlp-traces-endpoint is {endpoint!r}; it must be the gRPC address" in capsys.readouterr().err


def test_a_collector_that_is_not_there_does_not_hold_up_the_end(monkeypatch, caplog):
    monkeypatch.setattr(tracing, "_CLOSE_SECONDS", 0.2)

    async def test():
        async with http_serving(observing=ObservingConfig(otlp_endpoint="http://localhost:1")) as s:
            await s.complete()
            await quiet(s)

    run(test())
    assert "the last traces are lost" in caplog.text


def test_what_is_recorded_holds_no_text():
    """A record has no field for it, but for the one that the operator must ask for."""
    names = {field.name for field in dataclasses.fields(recording.RequestRecord)}
    assert names & {"text", "prompt", "outputs", "token_ids"} == set()
    assert recording.Recorder().log_content is False
