"""How evenly experts are used, as /metrics, /debug/experts and the explanation of a request tell it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx
import jax
import pytest

from jaxinfer.expert_load import ExpertLoad
from jaxinfer.messages import SequenceAccount, SequenceOutput, StepOutputs, Submit
from jaxinfer.sampling_params import SamplingParams
from scripts.served import Served
from serving.observing.expert_load import ExpertLoads
from serving.observing.record import NOWHERE
from serving.observing.recorder import Recorder
from serving.request import PreparedRequest
from tests.fakes import FakeEngine, FakeOptions
from tests.golden_recipe import write_checkpoint
from tests.jaxinfer.resized import eight_experts_eight_heads
from tests.serving.harness import run
from tests.serving.http.harness import http_serving
from tests.serving.observing.test_explanations import quiet as ended
from tests.serving.observing.test_metrics import Scrape, quiet

LAYERS = ((0, 4), (2, 4))
EXPERTS = FakeOptions(script="dhlpa", expert_layers=LAYERS, devices=2)  # ids of d, h, l and p divide by 4; a's has 1


def load(*rows: tuple[int, ...], steps: int) -> ExpertLoad:
    return ExpertLoad(tuple(layer for layer, _ in LAYERS), rows, steps)


def test_a_model_with_experts_says_how_they_are_used():
    async def test():
        async with http_serving(EXPERTS) as s:
            before = await quiet(s)
            assert before("expert_tokens_total", expert="3") == 0
            assert "jaxinfer:expert_load_imbalance" not in before.names  # of nothing there is none
            response = await s.post("/v1/completions", prompt="hello", temperature=0, max_tokens=10)
            after = await quiet(s)
            # Layer 0: 8 of 10 tokens go to expert 0 and 2 to expert 1; in layer 2 they go to experts 2 and 3.
            assert [after("expert_tokens_total", expert=str(i)) for i in range(4)] == [8, 2, 8, 2]
            for layer in ("0", "2"):
                assert after("expert_load_imbalance", layer=layer) == 8 / 2.5
                assert after("expert_device_load_imbalance", layer=layer) == 10 / 5
            used = {
                "expert_tokens": 20,
                "imbalance": 8 / 2.5,
                "device_imbalance": 2.0,
                "layers": [{"layer": i, "imbalance": 8 / 2.5, "device_imbalance": 2.0} for i in (0, 2)],
            }
            explained = (await s.http.get(f"/debug/requests/{response.headers['x-request-id']}")).json()
            assert explained["expert_load"] == used
            counts = ([8, 2, 0, 0], [0, 0, 8, 2])
            used["layers"] = [{**layer, "tokens": row} for layer, row in zip(used["layers"], counts, strict=True)]
            found = (await s.http.get("/debug/experts")).json()
            assert found == {"expert_parallel_size": 2, "since_start": used, "last_minute": used}

    run(test())


def test_each_request_has_what_came_while_it_ran():
    async def test():
        async with http_serving(EXPERTS) as s:
            await s.complete(max_tokens=7)
            answer = await s.complete(max_tokens=5)
            await ended(s)
            found = (await s.http.get(f"/debug/requests/{answer['id'].removeprefix('cmpl-')}")).json()
            assert found["expert_load"]["expert_tokens"] == 2 * 5
            assert found["expert_load"]["layers"][0]["imbalance"] == 4 / 1.25

    run(test())


def test_a_model_without_experts_says_nothing_of_them():
    async def test():
        async with http_serving() as s:
            answer = await s.complete()
            metrics = await quiet(s)
            assert not [name for name in metrics.names if "expert" in name]
            assert (
                "expert_load" not in (await s.http.get(f"/debug/requests/{answer['id'].removeprefix('cmpl-')}")).json()
            )
            missing = await s.http.get("/debug/experts")
            assert missing.status_code == 404
            assert missing.json()["error"]["message"] == "the model 'fake' has no experts"

    run(test())


def recorder() -> Recorder:
    found = Recorder()
    found.metrics.info = FakeEngine(EXPERTS).info._replace(expert_parallel_size=1)
    return found


def begin(recording: Recorder, name: str, engine: int = 0) -> Any:
    prepared = PreparedRequest(Submit(name, (1, 2), SamplingParams(max_tokens=4), 0, 0, 0.0))
    return recording.begin(prepared, name, NOWHERE, engine)


def news(name: str | None, steps: int, told: ExpertLoad | None = None) -> StepOutputs:
    """A step's, with which a request ends."""
    account = SequenceAccount(1.0, 1, 1, 0, 3, 0.0, 0.0)
    outputs = StepOutputs(expert_load=told)
    if name is not None:
        outputs.sequences.append(SequenceOutput(name, 0, (5,), None, "length", None, 0, account))
    outputs.stats.steps = steps
    return outputs


def test_a_request_waits_for_a_report_that_has_all_of_its_steps():
    recording = recorder()
    recording.step(news(None, 1, load((5, 5, 0, 0), (9, 1, 0, 0), steps=1)))
    record = begin(recording, "a")
    recording.step(news("a", 3, load((6, 5, 0, 0), (9, 2, 0, 0), steps=2)))  # it ends with a step that is not in it
    recording.close(record, dict)
    assert recording.explain("a")["expert_load"]["expert_tokens"] == 2  # so far
    recording.step(news(None, 4))
    recording.step(news(None, 5, load((8, 5, 0, 0), (9, 4, 0, 0), steps=4)))
    recording.step(news(None, 9, load((90, 5, 0, 0), (9, 90, 0, 0), steps=9)))
    found = recording.explain("a")["expert_load"]
    assert (found["expert_tokens"], found["imbalance"]) == (6, 4.0)
    assert record.load_before is None
    assert not recording._unloaded


def test_reports_of_one_engine_say_nothing_of_another_ones_requests():
    recording = recorder()
    recording.step(news(None, 1, load((1, 0, 0, 0), (1, 0, 0, 0), steps=1)), 0)
    record = begin(recording, "b", engine=1)
    recording.step(news("b", 2), 1)
    recording.close(record, dict)
    recording.step(news(None, 3, load((7, 0, 0, 0), (7, 0, 0, 0), steps=3)), 0)
    assert recording.explain("b")["expert_load"]["expert_tokens"] == 0
    recording.step(news(None, 2, load((1, 1, 1, 1), (2, 2, 0, 0), steps=2)), 1)
    assert recording.explain("b")["expert_load"]["layers"] == [
        {"layer": 0, "imbalance": 1.0},
        {"layer": 2, "imbalance": 2.0},
    ]
    assert recording.metrics.experts.since_start().tokens == ((8, 1, 1, 1), (9, 2, 0, 0))
    begin(recording, "c", engine=1)
    recording.step(news("c", 3), 1)
    recording.engine_ended(1, failed=True)
    assert not recording._unloaded


def test_news_of_several_steps_keep_the_report():
    first, second = news("a", 3, load((1, 0, 0, 0), (0, 0, 0, 1), steps=3)), news("b", 4)
    first.add(second)
    assert (first.expert_load.steps, first.stats.steps) == (3, 4)
    first.add(news(None, 5, load((2, 0, 0, 0), (0, 0, 0, 2), steps=5)))
    assert first.expert_load.steps == 5


def test_gauges_look_back_a_minute():
    now = 100.0
    info = FakeEngine(EXPERTS).info
    loads = ExpertLoads(lambda: info, lambda: now)

    def recent(engine: int = 0) -> tuple[int, ...]:
        return loads.recent().tokens[0]

    assert recent() == (0, 0, 0, 0)
    for seconds, first in ((0.0, 1), (0.2, 2), (0.5, 3), (30.0, 10), (50.0, 20)):
        now = 100.0 + seconds
        loads.tell(load((first, 0, 0, 0), (0, 0, 0, 0), steps=1), 0)
        assert recent() == (first, 0, 0, 0)
    assert len(loads._kept) == 3  # those within a second are one
    for seconds, wanted in ((59.9, 20), (89.9, 20), (90.0, 10), (109.9, 10), (110.0, 0), (1e6, 0)):
        now = 100.0 + seconds
        assert recent()[0] == wanted, seconds


@pytest.mark.longer
def test_a_real_server_whose_experts_lie_on_two_devices(tmp_path: Path) -> None:
    folder = write_checkpoint(eight_experts_eight_heads(), tmp_path / "model")
    programs = str(jax.config.jax_compilation_cache_dir or "none")
    flags = [
        "--expert-parallel-size=2",
        "--max-num-seqs=2",
        "--max-num-batched-tokens=8",
        "--num-pages=16",
        "--max-model-len=64",
    ]
    command = [sys.executable, "-m", "jaxinfer", "serve", str(folder), "--port=0", "--http-port=0", "--device=cpu"]
    server = Served(
        [*command, *flags, "--skip-tokenizer-init", "--dtype=float32", f"--compilation-cache-dir={programs}"]
    )
    try:
        with httpx.Client(base_url=f"http://{server.http}", timeout=60) as client:
            prompt = list(range(5, 18))
            body = {"prompt": prompt, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
            response = client.post("/v1/completions", json={**body, "return_token_ids": True})
            assert response.status_code == 200, response.text
            explained = client.get(f"/debug/requests/{response.headers['x-request-id']}").json()
            experts = client.get("/debug/experts").json()
            metrics = Scrape(client.get("/metrics").text)
    finally:
        server.stop()
    # Layer 1 alone has experts, of which a token goes to 3; the answer's last token is computed by nobody.
    tokens = 3 * (len(prompt) + 6 - 1)
    (layer,) = experts["since_start"]["layers"]
    assert (layer["layer"], sum(layer["tokens"])) == (1, tokens)
    assert layer["imbalance"] == max(layer["tokens"]) / (tokens / 8)
    devices = sum(layer["tokens"][:4]), sum(layer["tokens"][4:])
    assert layer["device_imbalance"] == max(devices) / (tokens / 2)
    assert [metrics("expert_tokens_total", expert=str(i)) for i in range(8)] == layer["tokens"]
    assert metrics("expert_load_imbalance", layer="1") == layer["imbalance"]
    assert metrics("expert_device_load_imbalance", layer="1") == layer["device_imbalance"]
    assert metrics("compilations_after_ready_total") == 0
    del layer["tokens"]
    assert explained["expert_load"] == experts["since_start"]
