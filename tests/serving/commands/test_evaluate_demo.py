"""What `jaxinfer eval` says of the shipped demo, offline and behind a server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.config import RuntimeConfig
from jaxinfer.evaluation.local_source import LocalSource
from jaxinfer.evaluation.source import Source
from jaxinfer.messages import Progress
from jaxinfer.model_path import demo_path
from jaxinfer.text import load_tokenizer
from serving.commands import evaluate
from serving.engine_process import Engine, build_model_engine
from serving.server import Server, ServerConfig
from tests.serving import harness
from tests.serving.commands.background import Background

NO_CACHE = Path("/nonexistent")

# Small, so that it compiles quickly: two buckets.
SMALL = {"max_num_seqs": 8, "max_num_batched_tokens": 16, "max_model_len": 512, "num_pages": 128}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()] + ["--compilation-cache-dir=none"]
SHORT_EVAL = ["--tasks", "addition,sorting,json", "--limit", "10", "--texts", "2", "--positions", "150"]


class Engines:
    """Engines of the demo that several tests use; each is compiled once, with room for whole distributions."""

    def __init__(self) -> None:
        self.sources: dict[tuple[str, int], LocalSource] = {}

    def __call__(self, name: str, folder: Path, runtime: RuntimeConfig) -> contextlib.AbstractContextManager[Source]:
        key = (runtime.dtype, runtime.tensor_parallel_size)
        if key not in self.sources:
            self.sources[key] = evaluate.local_source(name, folder, dataclasses.replace(runtime, max_logprobs=-1))
        return contextlib.nullcontext(self.sources[key])


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    engines = Engines()
    yield engines
    for source in engines.sources.values():
        source.close()


def evaluated(engines: Engines, path: Path, *argv: str) -> dict[str, Any]:
    assert evaluate.main([*argv, *FLAGS, "--json", str(path)], hub_cache=NO_CACHE, local=engines) == 0
    return json.loads(path.read_text())


@pytest.mark.longer
@pytest.mark.timeout(240)
def test_bfloat16_is_no_worse_than_float32_beyond_noise(engines, tmp_path, capsys):
    sides = ["demo@dtype=float32", "demo@dtype=bfloat16"]
    record = evaluated(engines, tmp_path / "a.json", "--compare", *sides, *SHORT_EVAL)
    assert [record[side]["settings"]["dtype"] for side in "ab"] == ["float32", "bfloat16"]
    for name, task in record["tasks"].items():
        assert task["n"] + task["skipped"] == 10, name
        assert task["n"] > 0, name
        assert task["high"] >= 0, f"{name}: bfloat16 is worse beyond noise: {task}"
    assert record["overall"]["high"] >= 0
    divergence = record["divergence"]
    assert divergence["exact"]
    assert divergence["positions"] == 150
    assert 0 < divergence["mean_kl"] < 0.02  # rounding to 8 bits leaves a logit of 10 uncertain by some 0.04
    assert divergence["top1_agreement"]["share"] > 0.9
    a, b = (record[side]["perplexity"] for side in "ab")
    assert a["tokens"] == b["tokens"]
    assert b["per_token"] == pytest.approx(a["per_token"], rel=0.03)
    shown = capsys.readouterr().out
    assert "mean KL(A||B)" in shown
    assert "all items" in shown


@pytest.mark.longer
@pytest.mark.timeout(240)
def test_two_devices_answer_as_one(engines, tmp_path):
    sides = ["demo@dtype=float32", "demo@dtype=float32,tensor_parallel_size=2"]
    record = evaluated(engines, tmp_path / "a.json", "--compare", *sides, *SHORT_EVAL)
    assert [record[side]["settings"]["tensor_parallel_size"] for side in "ab"] == [1, 2]
    for name, task in record["tasks"].items():
        assert abs(task["difference"]) <= 1 / 10, name  # sums in another order may turn one answer that hung by 1e-6
    divergence = record["divergence"]
    assert abs(divergence["mean_kl"]) < 1e-6  # float32 log-probabilities are good to about 1e-6
    assert divergence["top1_agreement"]["share"] >= 0.995
    a, b = (record[side]["perplexity"] for side in "ab")
    assert b["per_token"] == pytest.approx(a["per_token"], rel=1e-4)


class RealThreadEngine(harness.ThreadEngine):
    """The server's engine link around a real engine, in a thread of this process."""

    def _keep(self, progress: Callable[[Progress], None]) -> Engine:
        return self._build(progress)


@pytest.mark.longer
@pytest.mark.timeout(240)
def test_a_server_gives_the_same_record_as_offline(engines, tmp_path):
    runtime = RuntimeConfig(dtype="float32", compilation_cache_dir=None, **SMALL)

    @contextlib.asynccontextmanager
    async def running() -> Any:
        server = Server(
            ServerConfig(port=0, stall_seconds=0),
            lambda: RealThreadEngine(lambda progress: build_model_engine(str(demo_path()), runtime, progress)),
            lambda: load_tokenizer(demo_path()),
            harness.Record(),
        )
        await server.start()
        await server.wait_ready()
        yield server
        await server.stop()

    background = Background(running)
    path = tmp_path / "online.json"
    asked = ["--tasks", "addition,json,tools,thinking", "--limit", "10", "--texts", "3"]
    try:
        argv = ["--server", background.running.address, *asked, "--json", str(path)]
        assert evaluate.main(argv, hub_cache=NO_CACHE) == 0
    finally:
        background.close()
    online, offline = json.loads(path.read_text()), evaluated(engines, tmp_path / "a.json", "--dtype=float32", *asked)
    for field in ("tasks", "recall_by_depth", "json_validity", "asked", "prompts"):
        assert online[field] == offline[field], field
    assert online["perplexity"] == pytest.approx(offline["perplexity"])
