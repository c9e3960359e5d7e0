"""`jaxinfer bench`: what is refused by name, and a whole run against a server over both protocols."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxinfer.messages import Submit
from serving.bench.records import ServerTrouble
from serving.bench.startup import seconds_to_ready
from serving.commands import bench
from tests.fakes import FakeOptions
from tests.serving import harness
from tests.serving.commands.background import Background

NO_CACHE = Path("/nonexistent")


def call(*argv: str) -> int:
    try:
        return bench.main(argv, hub_cache=NO_CACHE)
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code


@pytest.fixture(scope="module")
def server() -> Iterator[Background]:
    options = FakeOptions(step_seconds=0.002, max_num_seqs=16)
    background = Background(lambda: harness.serving(options, name="the-fake", http_port=0))
    yield background
    background.close()


SMALL = ("--num-prompts", "4", "--input-len", "5", "--output-len", "6", "--ignore-eos")


def test_rates_over_grpc(server, tmp_path, capsys):
    argv = ["serve", "--url", f"grpc://{server.address}", "--rate", "200,inf", "--goodput", "ttft:60000", "e2el:60000"]
    argv += ["--save-detailed", "--result-dir", str(tmp_path), "--result-filename", "r.json", "--metadata", "host=here"]
    assert call(*argv, *SMALL, "--seed", "3") == 0
    shown = capsys.readouterr().out
    assert "the-fake at grpc://" in shown
    assert "p50 / p90 / p99" in shown
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["metadata"] == {"host": "here"}
    assert record["settings"]["random_input_len"] == 5
    assert [run["request_rate"] for run in record["runs"]] == [200, "inf"]
    for run in record["runs"]:
        assert (run["completed"], run["failed"], run["good_share"]) == (4, 0, 1)
        assert (run["total_input_tokens"], run["total_output_tokens"]) == (20, 24)
        assert 0 < run["p50_ttft_ms"] <= run["p99_ttft_ms"] <= run["p99_e2el_ms"]
        assert [len(request["token_times"]) > 0 for request in run["requests"]] == [True] * 4
    prompts = [message.prompt_token_ids for message in server.running.received(Submit)]
    assert len(set(prompts)) == len(prompts) == 9  # the warm-up's and each rate's are their own


def test_conversations_over_http_and_pictures(server, tmp_path, capsys):
    pytest.importorskip("aiohttp")
    pytest.importorskip("matplotlib")
    url = f"http://{server.running.server.http_address}"
    argv = ["serve", "--url", url, "--dataset", "chat-turns", "--num-turns", "2", "--plot", "--plot-timeline"]
    argv += ["--result-dir", str(tmp_path), "--result-filename", "c.json", "--percentile-metrics", "ttft,itl"]
    assert call(*argv, *SMALL, "--metric-percentiles", "50") == 0
    shown = capsys.readouterr().out
    assert "turn 2" in shown
    assert "8 / 0" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.png", "c.timeline-inf.png"]


def test_a_request_that_fails_is_told_and_ends_with_1(server, capsys):
    assert call("serve", "--url", f"grpc://{server.address}", *SMALL, "--num-warmups", "0", "--vocab-size", "9999") == 1
    assert "failed: INVALID_ARGUMENT" in capsys.readouterr().out
    assert call("serve", "--url", f"grpc://{server.address}", *SMALL, "--vocab-size", "9999") == 1
    assert "bench serve: error: a request of the warm-up failed: INVALID_ARGUMENT" in capsys.readouterr().err


GRPC, HTTP = ("--url", "grpc://localhost:1"), ("--url", "http://localhost:1")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serve"], "bench serve: error: missing: --url"),
        (["srve"], "COMMAND is 'srve'; it must be one of serve, throughput, latency, startup; did you mean serve?"),
        (["serve", "--url", "localhost:1"], "--url is 'localhost:1'; it must be grpc://HOST:PORT"),
        (["serve", "--url", "http://a:1/v1"], "without a path"),
        (["serve", "--url", "grpc://a:70000"], "--url is 'grpc://a:70000'"),
        (["serve", *GRPC, "--rate", "1,0"], "--rate/--request-rate is '1,0'; it must be numbers above 0"),
        (["serve", *GRPC, "--rate", "2,2"], "it must have each rate once"),
        (["serve", *GRPC, "--burstiness", "nan"], "--burstiness is 'nan'"),
        (["serve", *GRPC, "--num-prompts", "0"], "--num-prompts is '0'; it must be a whole number of at least 1"),
        (["serve", *GRPC, "--goodput", "itl:3"], "--goodput is 'itl:3'; it must be like ttft:500"),
        (["serve", *GRPC, "--goodput", "ttft:x"], "--goodput is 'ttft:x'"),
        (["serve", *GRPC, "--percentile-metrics", "ttft,foo"], "it must be some of ttft, tpot, itl, e2el"),
        (["serve", *GRPC, "--metric-percentiles", "101"], "numbers from 0 to 100"),
        (["serve", *GRPC, "--random-range-ratio", "1"], "at least 0 and below 1"),
        (["serve", *GRPC, "--metadata", "x"], "it must be KEY=VALUE"),
        (["serve", *HTTP, "--extra-body", "[]"], "it must be a JSON object"),
        (["serve", *GRPC, "--extra-body", "{}"], "--extra-body is of OpenAI's interface"),
        (["serve", *GRPC, "--endpoint", "/v1/completions"], "--endpoint is of OpenAI's interface"),
        (["serve", *GRPC, "--result-dir", "/nonexistent"], "--result-dir is '/nonexistent'"),
        (["serve", *GRPC, "--result-filename", "a/b"], "--result-filename is 'a/b'"),
        (["serve", *GRPC, "--num-promts", "3"], "no option --num-promts; did you mean --num-prompts?"),
        (["serve", *GRPC], "UNAVAILABLE"),
        (["throughput", "--input-len", "9999"], "together they must be at most 2048, the context"),
        (["latency", "--output-json", "/nonexistent/a"], "--output-json is '/nonexistent/a'"),
        (["latency", "--model", "/nonexistent"], "/nonexistent"),
        (["startup", "--num-iters-cold", "0", "--num-iters-warm", "0"], "there is nothing to measure"),
        (["startup", "--compilation-cache-dir", "x"], "--compilation-cache-dir cannot be given"),
    ],
)
def test_what_cannot_be_is_refused(argv, said, capsys):
    assert call(*argv) == (1 if said == "UNAVAILABLE" else 2)
    told = capsys.readouterr()
    assert not told.out
    assert told.err.startswith("jaxinfer bench")
    assert said in told.err
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--endpoint", "/v1/completions", "--dataset", "chat-turns"), "chat-turns needs /v1/chat/completions"),
        (("--tls-ca", "x"), "--tls-ca goes with https:// or grpc://"),
        (("--dataset", "/nonexistent"), "no server answers at http://localhost:1"),
    ],
)
def test_what_http_cannot_have(options, said, capsys):
    pytest.importorskip("aiohttp")
    assert call("serve", *HTTP, *options) in (1, 2)
    assert said in capsys.readouterr().err


def test_without_aiohttp_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert call("serve", *HTTP) == 2
    assert "pip install 'jaxinfer[bench]'" in capsys.readouterr().err


OFFLINE = ("--input-len", "8", "--output-len", "4", "--max-model-len", "64", "--max-num-seqs", "2")
OFFLINE += ("--max-num-batched-tokens", "8")


@pytest.mark.longer
def test_throughput_of_the_demo(tmp_path, capsys):
    assert call("throughput", *OFFLINE, "--num-prompts", "3", "--output-json", str(tmp_path / "o.json")) == 0
    found = json.loads((tmp_path / "o.json").read_text())
    assert (found["num_requests"], found["total_num_tokens"]) == (3, 36)
    assert found["tokens_per_second"] == pytest.approx(36 / found["elapsed_time"])
    assert found["compilations_after_ready"] == 0
    assert "of the computed tokens" in capsys.readouterr().out


@pytest.mark.longer
def test_latency_of_the_demo(tmp_path, capsys):
    argv = ("--batch-size", "2", "--num-iters", "3", "--num-iters-warmup", "1")
    assert call("latency", *OFFLINE, *argv, "--output-json", str(tmp_path / "o.json")) == 0
    found = json.loads((tmp_path / "o.json").read_text())
    assert len(found["latencies"]) == 3
    assert min(found["latencies"]) <= found["percentiles"]["50"] <= found["percentiles"]["99"]
    assert "output tokens per second" in capsys.readouterr().out


@pytest.mark.longer
def test_startup_of_the_demo(tmp_path, capsys):
    small = ("--max-model-len", "64", "--max-num-seqs", "2", "--max-num-batched-tokens", "8")
    argv = ("--num-iters-cold", "0", "--num-iters-warm", "1", "--output-json", str(tmp_path / "s.json"))
    assert call("startup", *argv, *small) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert list(found) == ["avg_warm_startup_time", "warm_startup_times", "warm_startup_percentiles"]
    assert len(found["warm_startup_times"]) == 1
    assert "filled cache  median" in capsys.readouterr().out


def test_a_server_that_cannot_start_is_told():
    with pytest.raises(ServerTrouble, match=r"no option --portt"):
        seconds_to_ready(["--portt", "1"], Path("/nonexistent"))
