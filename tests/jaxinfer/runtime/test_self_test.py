"""The start-up self-test: what it tries, what becomes of a backend that fails, and that its verdict is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxinfer.config import ModelConfig, RuntimeConfig
from jaxinfer.models.registry import model_config
from jaxinfer.runtime import self_test
from jaxinfer.runtime.self_test import Faulty, run_trials, trials
from pallas_kernels import dispatch
from pallas_kernels import trials as kinds
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention.api import OP
from tests.golden_recipe import build_config, load_case

ROOT = Path(__file__).parents[3]
ATTENTION = kinds.AttentionTrial(8, 2, 64, 16, "bfloat16", "bfloat16", 0.125, sliding_window=7, sinks=True)
FIRST = 'self-test: {"trial": 0, "op": "paged_attention", "backend": "one"'
TARGET = DeviceTarget("cpu", "cpu")


@pytest.fixture(autouse=True)
def _nothing_is_withdrawn_for_others() -> Iterator[None]:
    yield
    dispatch.restore()


def config_of(name: str) -> ModelConfig:
    return model_config(build_config(load_case(name)))


def scripted(monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    """Processes that do not try anything, one after the other."""
    left = iter(programs)

    class Next(tuple):
        def __iter__(self) -> Iterator[str]:
            return iter((sys.executable, "-u", "-c", f"import os, time\norders = input()\n{next(left)}"))

    monkeypatch.setattr(self_test, "CHILD", Next())
    monkeypatch.setattr(self_test, "SECONDS", 5.0)


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("time.sleep(60)", "it did not end within 1 s"),
        ("os.abort()", "it ended its process with SIGABRT"),
        ("raise SystemExit(3)", "its process ended with 3"),
    ],
)
def test_a_backend_that_ends_its_process_is_left_out_of_the_next(
    monkeypatch: pytest.MonkeyPatch, end: str, why: str
) -> None:
    begun = f"print('{FIRST}}}')\n"
    second = begun.replace("one", "two") + f"assert 'one' in orders\nprint('{FIRST}, \"deviation\": 0.001}}')"
    scripted(monkeypatch, begun + end, second.replace('"one", "dev', '"two", "dev'))
    if "sleep" in end:
        monkeypatch.setattr(self_test, "SECONDS", 1.0)
    verdict = run_trials([ATTENTION])
    assert verdict.faulty == (Faulty("paged_attention", "one", why),)
    assert verdict.passed == (("paged_attention", "two", 0.001),)
    assert verdict.notes() == (
        f"self-test: paged_attention does not run by one: {why}",
        "self-test: paged_attention by two is right (off by 1.0e-03 at most)",
    )


def test_what_passed_and_failed_later_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [FIRST + ', "deviation": 0.001}', FIRST.replace(": 0", ": 1") + ', "failed": "off"}']
    scripted(monkeypatch, "\n".join(f"print('{line}')" for line in lines))
    verdict = run_trials([ATTENTION] * 2)
    assert verdict.passed == ()
    assert verdict.faulty == (Faulty("paged_attention", "one", "off"),)


def test_a_process_that_ends_between_trials_is_no_kernels_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, f"print('{FIRST}, \"deviation\": 0.001}}')\nos.abort()")
    verdict = run_trials([ATTENTION])
    assert verdict.faulty == ()
    assert verdict.notes()[0] == "self-test: not all could be tried: it ended its process with SIGABRT"


def test_a_withdrawn_backend_serves_no_more() -> None:
    case = ATTENTION.prepare(TARGET).case
    assert dispatch.select(OP, TARGET, case, "xla").name == "xla"
    dispatch.withdraw("paged_attention", "xla", "it is only being tested")
    with pytest.raises(dispatch.Unsupported, match="xla: it is only being tested"):
        dispatch.select(OP, TARGET, case)
    with pytest.raises(dispatch.Unsupported, match=r"'xla' cannot serve this .*: it is only being tested"):
        dispatch.select(OP, TARGET, case, "xla")
    assert dispatch.withdrawn() == {("paged_attention", "xla"): "it is only being tested"}
    dispatch.restore()
    assert dispatch.select(OP, TARGET, case).name == "xla"


TRIALS = [
    kinds.GroupedTrial("float32"),
    *(
        pytest.param(trial, marks=pytest.mark.longer)
        for trial in (
            ATTENTION,
            kinds.AttentionTrial(4, 4, 64, 16, "bfloat16", "int8", 0.125, soft_cap=30.0),
            kinds.MatmulTrial("int4", 64, "bfloat16"),
            kinds.GroupedTrial("bfloat16", "int4", 64),
        )
    ),
]


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: type(trial).__name__)
def test_trials_tell_right_from_wrong(trial: kinds.Trial) -> None:
    assert kinds.from_plain(json.loads(json.dumps(kinds.to_plain(trial)))) == trial
    prepared = trial.prepare(TARGET)
    found = prepared.run("xla")

    def off(result: np.ndarray) -> float:
        return prepared._replace(program=lambda _: (lambda: result, ())).deviation("xla")

    assert off(found) < kinds.TOLERANCE / 3
    for wrong in (found * 1.1, found[::-1], found * float("nan")):
        assert off(wrong) > kinds.TOLERANCE


def test_a_model_has_a_trial_for_each_form_of_attention_and_of_product() -> None:
    dense = trials(config_of("llama"), RuntimeConfig(dtype="float32", page_size=16), {})
    assert [type(trial) for trial in dense] == [kinds.AttentionTrial]
    runtime = RuntimeConfig(dtype="bfloat16", quantization="int4", kv_cache_dtype="int8", page_size=16)
    experts = trials(config_of("qwen3_moe"), runtime, {})
    assert [type(trial) for trial in experts] == [kinds.AttentionTrial, kinds.MatmulTrial, kinds.GroupedTrial]
    assert experts[0].kv_dtype == "int8"
    assert {trial.kind for trial in experts[1:]} == {"int4"}


def test_a_verdict_is_kept_and_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config, calls = config_of("llama"), []
    faulty = self_test.Verdict((), (Faulty("paged_attention", "mosaic_gpu", "it lies"),))

    def run(*arguments: object) -> self_test.Verdict:
        calls.append(arguments)
        return faulty

    monkeypatch.setattr(self_test, "devices_are_open", lambda: False)
    monkeypatch.setattr(self_test, "_is_an_accelerator", lambda runtime: True)
    monkeypatch.setattr(self_test, "run_trials", run)
    runtime = RuntimeConfig(compilation_cache_dir=tmp_path)
    first = self_test.self_test(config, runtime, {})
    assert first == ("self-test: paged_attention does not run by mosaic_gpu: it lies",)
    dispatch.restore()
    assert self_test.self_test(config, runtime, {}) == first
    assert ("paged_attention", "mosaic_gpu") in dispatch.withdrawn()
    assert len(calls) == 1
    self_test.self_test(config, RuntimeConfig(compilation_cache_dir=tmp_path, self_test="on"), {})
    assert len(calls) == 2
    (kept,) = tmp_path.glob("self-test-*.json")
    kept.write_text("{")
    self_test.self_test(config, runtime, {})
    assert len(calls) == 3
    assert self_test.self_test(config, RuntimeConfig(self_test="off"), {}) == ()


def test_a_cpu_is_not_tried_unasked_and_an_open_device_not_at_all() -> None:
    jax.devices()
    config = config_of("llama")
    assert self_test.self_test(config, RuntimeConfig(device="cpu"), {}) == ()
    (note,) = self_test.self_test(config, RuntimeConfig(self_test="on"), {})
    assert note == "self-test: left out, JAX has opened the device already"


@pytest.mark.longer
def test_an_engine_serves_beside_kernels_that_lie_hang_and_abort() -> None:
    command = [sys.executable, "-m", "tests.jaxinfer.runtime.faulty_kernels", "serve"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=True, env=os.environ)
    answer = json.loads(done.stdout.splitlines()[-1])
    told = [note.removeprefix("self-test: ") for note in answer["notes"] if note.startswith("self-test: ")]
    assert told[:4] == [
        "paged_attention does not run by lying: its result is off by 0.1 of the largest number",
        "paged_attention does not run by hanging: it did not end within 15 s",
        "paged_attention does not run by aborting: it ended its process with SIGABRT",
        "paged_attention does not run by broken: NotImplementedError: no such instruction",
    ]
    assert len(answer["tokens"]) == 4
