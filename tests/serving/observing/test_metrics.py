"""GET /metrics over a live server, read by Prometheus' own parser."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from serving.observing.metrics import SPECS, Buckets, Metrics
from serving.observing.setup import ObservingConfig
from tests.fakes import FakeOptions
from tests.serving.harness import collect, greedy, run, status, until
from tests.serving.http.harness import HttpServer, http_serving

FIXED = ("model_name", "engine")


class Scrape:
    """The samples of a scrape by name and further labels."""

    def __init__(self, text: str) -> None:
        self.families = list(parse(text))
        self._samples = {}
        for family in self.families:
            for sample in family.samples:
                more = {k: v for k, v in sample.labels.items() if k not in FIXED}
                self._samples[sample.name, tuple(sorted(more.items()))] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        return self._samples[f"jaxinfer:{name}" if ":" not in name else name, tuple(sorted(labels.items()))]

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self._samples}


async def scrape(s: HttpServer) -> Scrape:
    response = await s.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return Scrape(response.text)


async def quiet(s: HttpServer) -> Scrape:
    """Once every request has ended in the engine, too."""
    client = s.grpc.server.frontend
    await until(lambda: not client.recorder._live, "the engine has ended everything")
    return await scrape(s)


def test_requests_of_both_servers_count():
    async def test():
        async with http_serving(FakeOptions()) as s:
            await s.complete(prompt="hello", max_tokens=5, n=2)
            await s.chat(max_tokens=7)
            await collect(s.grpc.stub.Generate(greedy(max_tokens=3)))
            await s.refused("/v1/completions", prompt="x", max_tokens=-1)
            await status(s.grpc.stub.Generate(greedy(max_tokens=99_999, min_tokens=99_999)))
            m = await quiet(s)
            prompts = [6, 2 + len("<user>;<assistant>"), 3]
            assert m("prompt_tokens_total") == sum(prompts)
            assert m("generation_tokens_total") == 5 * 2 + 7 + 3
            assert m("request_success_total", finished_reason="length") == 3
            assert m("request_success_total", finished_reason="stop") == 0
            assert m("requests_refused_total", door="http", code="400") == 1
            assert m("requests_refused_total", door="grpc", code="INVALID_ARGUMENT") == 1
            assert m("requests_accepted_total") == 3
            assert (m("num_requests_running"), m("num_requests_waiting"), m("requests_open")) == (0, 0, 0)
            for name, count, total in (
                ("time_to_first_token_seconds", 3, None),
                ("inter_token_latency_seconds", 4 * 2 + 6 + 2, None),
                ("e2e_request_latency_seconds", 3, None),
                ("request_queue_time_seconds", 3, None),
                ("request_prefill_time_seconds", 3, None),
                ("request_decode_time_seconds", 3, None),
                ("request_inference_time_seconds", 3, None),
                ("request_prompt_tokens", 3, sum(prompts)),
                ("request_generation_tokens", 3, 20),
                ("request_max_num_generation_tokens", 3, 5 + 7 + 3),
                ("request_params_n", 3, 4),
                ("request_params_max_tokens", 3, 15),
            ):
                assert m(f"{name}_count") == m(f"{name}_bucket", le="+Inf") == count, name
                assert total is None or m(f"{name}_sum") == total, name
            assert m("tenant_tokens_total", tenant="default", kind="completion") == 20
            assert m("tenant_tokens_total", tenant="default", kind="cached") == 9
            assert m("tenant_device_seconds_total", tenant="default") == pytest.approx(0.020)

    run(test())


def test_what_runs_and_waits_is_seen_while_it_does():
    async def test():
        async with http_serving(FakeOptions(step_seconds=0.02, max_num_seqs=2)) as s:
            calls = [s.grpc.stub.Generate(greedy(max_tokens=400)) for _ in range(5)]
            await until(lambda: s.grpc.server.frontend.stats.running == 2, "two run")
            m = await scrape(s)
            assert (m("num_requests_running"), m("num_requests_waiting"), m("requests_open")) == (2, 3, 5)
            used = m("kv_pages", state="used")
            assert used == 2 * 26  # 403 tokens in pages of 16
            assert m("kv_pages", state="free") == 1000 - used
            assert m("kv_cache_usage_perc") == pytest.approx(used / 1000)
            assert m("cache_config_info", block_size="16", num_gpu_blocks="1000") == 1
            for call in calls:
                call.cancel()
            m = await quiet(s)
            assert m("request_success_total", finished_reason="abort") == 5
            assert m("kv_cache_usage_perc") <= used / 1000
            assert m("request_params_max_tokens_count") == 5

    run(test())


def test_a_scrape_does_not_wait_for_the_engine():
    async def test():
        async with http_serving(FakeOptions(hang_at_step=3)) as s:
            call = s.grpc.stub.Generate(greedy(max_tokens=50))
            await until(lambda: s.grpc.server.frontend.stats.steps == 2, "it hangs")
            begin = time.monotonic()
            for _ in range(10):
                assert (await scrape(s))("requests_open") == 1
            assert time.monotonic() - begin < 5
            call.cancel()
            s.grpc.engine.released.set()

    run(test())


@pytest.mark.parametrize("prefix", ["jaxinfer", "vllm", "both"])
def test_shared_names_have_the_prefix_that_is_asked_for(prefix):
    async def test():
        async with http_serving(observing=ObservingConfig(metrics_prefix=prefix)) as s:
            await s.complete()
            m = await quiet(s)
            own = {name for name in m.names if name.startswith("jaxinfer:")}
            vllms = {name for name in m.names if name.startswith("vllm:")}
            assert ("jaxinfer:num_requests_running" in own) == (prefix != "vllm")
            assert ("vllm:num_requests_running" in vllms) == (prefix != "jaxinfer")
            assert "jaxinfer:padded_tokens_total" in own
            assert "vllm:padded_tokens_total" not in vllms
            if prefix == "both":
                assert m("vllm:generation_tokens_total") == m("generation_tokens_total") == 8

    run(test())


def test_prometheus_gets_the_names_as_they_are():
    """Its header prefers OpenMetrics, in which prometheus_client writes other names."""
    accept = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain"

    async def test():
        async with http_serving() as s:
            await s.complete()
            response = await s.http.get("/metrics", headers={"accept": accept})
            assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            families = {family.name: family for family in parse(response.text)}
            (sample,) = families["jaxinfer:generation_tokens"].samples
            assert (sample.value, sample.labels) == (8, {"model_name": "fake", "engine": "0"})

    run(test())


def test_before_the_model_is_loaded_there_are_metrics_already():
    async def test():
        async with http_serving(FakeOptions(load_seconds=0.3), ready=False) as s:
            response = await s.http.get("/metrics")
            assert response.status_code == 200
            assert "jaxinfer:num_requests_running" in response.text
            await s.grpc.server.wait_ready()

    run(test())


def test_the_page_has_every_metric():
    page = (Path(__file__).resolve().parents[3] / "docs/operations.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9_]+)` \| (.*) \|$", page, re.MULTILINE))
    for spec in SPECS:
        kind = spec.kind + (", vLLM's" if spec.shared else "")
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        assert rows.pop(spec.name) == f"{kind} | {labels} | {spec.help}", spec.name
    assert not {name for name in rows if name.endswith(("_total", "_seconds"))}


def test_every_metric_is_exposed_and_gets_a_value():
    metrics = Metrics("both")
    text = metrics.text().decode()
    for spec in SPECS:
        assert f"# HELP jaxinfer:{spec.name}" in text
        assert (f"# HELP vllm:{spec.name}" in text) == spec.shared


def test_a_bound_belongs_to_its_bucket():
    buckets = Buckets((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        buckets.observe(value)
    assert buckets.cumulative() == [("1.0", 2), ("2.0", 4), ("+Inf", 5)]
    assert buckets.total == 14.0
