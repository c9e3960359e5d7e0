"""`max_logprobs`: how many alternatives a request may ask for, -1 the whole vocabulary; the default costs nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from checkpoints.load import load_model
from jaxinfer import LLM, SamplingParams, outputs
from jaxinfer.config import ConfigError, RuntimeConfig
from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import TokenLogprobs
from jaxinfer.runtime.buckets import Bucket
from jaxinfer.runtime.engine_builder import choose_sizes, make_layout, make_runner
from jaxinfer.runtime.inputs import SlotSizes
from jaxinfer.runtime.packing import Packer
from jaxinfer.runtime.runner import Runner
from jaxinfer.sampling_params import MAX_LOGPROBS
from jaxinfer.scheduling.step_plan import Admission, PlanRow, StepPlan
from jaxinfer.sharding import make_mesh
from pallas_kernels.dispatch import DeviceTarget
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.grpc_server.replies import MAX_ALTERNATIVES_PER_MESSAGE, MAX_TOKENS_PER_MESSAGE
from serving.grpc_server.replies import messages as messages_of
from tests.golden_recipe import load_case, write_checkpoint
from tests.jaxinfer.harness import SIZES

CASE = load_case("llama")
PROMPT = list(CASE.prompts[0])
GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(CASE, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(folder: Path) -> Iterator[LLM]:
    with LLM(folder, max_logprobs=-1, **SIZES) as llm:
        yield llm


@pytest.fixture(scope="module")
def usual(folder: Path) -> Iterator[LLM]:
    with LLM(folder, **SIZES) as llm:
        yield llm


def entries(llm: LLM, prompt_logprobs: int, logprobs: int) -> tuple[list[TokenLogprobs], list[TokenLogprobs]]:
    params = GREEDY.with_changes(prompt_logprobs=prompt_logprobs, logprobs=logprobs)
    (output,) = llm.generate([PROMPT], params)
    assert output.prompt_logprobs is not None
    return [e for e in output.prompt_logprobs if e is not None], output.outputs[0].logprobs or []


def test_the_whole_vocabulary(whole: LLM) -> None:
    size = whole.info.vocab_size
    assert whole.info.max_logprobs == size > MAX_LOGPROBS
    prompt, output = entries(whole, -1, -1)
    assert (len(prompt), len(output)) == (len(PROMPT) - 1, 3)
    for entry in prompt + output:
        ids, values = zip(*entry.top, strict=True)
        assert sorted(ids) == list(range(size))
        assert list(values) == sorted(values, reverse=True)
        assert np.exp(np.array(values, np.float64)).sum() == pytest.approx(1.0, abs=1e-5)  # float32 values
        assert dict(entry.top)[entry.token_id] == entry.logprob
    logits = np.asarray(CASE.logits[0][0], np.float64)
    exact = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    np.testing.assert_allclose([dict(prompt[0].top)[i] for i in range(size)], exact[:size], atol=1e-4)


def test_fewer_are_the_first_of_all(whole: LLM, usual: LLM) -> None:
    every, _ = entries(whole, -1, -1)
    for count in (0, 1, MAX_LOGPROBS):
        for llm in (whole, usual):
            prompt, output = entries(llm, count, count)
            assert [len(entry.top) for entry in prompt + output] == [count] * (len(prompt) + len(output))
            for few, all_of_them in zip(prompt, every, strict=True):
                assert [token for token, _ in few.top] == [token for token, _ in all_of_them.top[:count]]
                assert few.logprob == pytest.approx(all_of_them.logprob, abs=1e-6)


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
@pytest.mark.parametrize("count", [MAX_LOGPROBS + 1, -1])
def test_more_than_the_cap_is_refused_by_name(usual: LLM, field: str, count: int) -> None:
    with pytest.raises(
        InvalidRequest, match=rf"{field} is {count}; it must be from 0 to 20 \(the engine's max_logprobs"
    ):
        usual.generate([PROMPT], GREEDY.with_changes(**{field: count}))
    with pytest.raises(InvalidRequest, match=rf"{field} is -2; it must be an integer of 0 or more, or -1 for all"):
        SamplingParams(**{field: -2})


def test_parameters_are_resolved() -> None:
    plain = SamplingParams(logprobs=3)
    assert plain.resolve_logprobs(100, 20) is plain
    resolved = SamplingParams(logprobs=-1, prompt_logprobs=4).resolve_logprobs(100, 100)
    assert (resolved.logprobs, resolved.prompt_logprobs) == (100, 4)


@pytest.mark.parametrize("value", [0, -2, 1.5, True])
def test_the_setting_is_checked(value: Any) -> None:
    with pytest.raises(ConfigError, match=f"max_logprobs is {value!r}; it must be a positive integer, or -1"):
        RuntimeConfig(max_logprobs=value)


def test_more_than_the_vocabulary_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="max_logprobs is 100000; it must be at most"):
        LLM(folder, max_logprobs=100_000, **SIZES)


def make(folder: Path, **settings: Any) -> Runner:
    """A runner that has compiled nothing yet."""
    runtime, mesh = RuntimeConfig(**{**SIZES, **settings}), make_mesh()
    loaded = load_model(folder, dtype=runtime.dtype, mesh=mesh)
    model = dataclasses.replace(loaded, name="m")
    layout = make_layout(model, DeviceTarget.of(mesh.devices.flat[0]), runtime)
    return make_runner(model, mesh, runtime, choose_sizes(model, mesh, runtime, layout), layout)


def test_the_default_changes_no_executable(folder: Path) -> None:
    """The same buckets, and 20 columns in what a step gives; only an engine that was asked for more has more."""
    runners = [make(folder), make(folder, max_logprobs=33)]
    assert runners[0].ladder == runners[1].ladder
    for runner, columns in zip(runners, (MAX_LOGPROBS, 33), strict=True):
        drawn, _ = runner.programs.draw(runner.row_counts[0]).out_info
        tables = (drawn.scores, runner.programs.score().out_info)
        assert {leaf.shape[1] for scores in tables for leaf in jax.tree.leaves(scores) if leaf.ndim == 2} == {columns}


def test_only_as_many_columns_are_fetched_as_somebody_wants() -> None:
    packer = Packer(SlotSizes(4, 4, 8), 100, 16)

    def row(slot: int, params: SamplingParams, *, samples: bool, targets: tuple[int, ...]) -> PlanRow:
        admission = Admission(0, 4, ((1,),), 0, params, 0, 0, (), ())
        made = PlanRow("r", 0, 0, 0, slot, 0, 4, int(samples), (1, 2, 3, 4), (), admission, targets)
        packer.pack(StepPlan([made], 4), Bucket(8, 4))
        return made._replace(admission=None)

    rows = [
        row(0, SamplingParams(), samples=True, targets=()),
        row(1, SamplingParams(prompt_logprobs=0, logprobs=7), samples=False, targets=(2, 3)),
        row(2, SamplingParams(prompt_logprobs=50, logprobs=2), samples=True, targets=()),
    ]
    assert packer.most_logprobs(StepPlan(rows[:1], 4)) == (-1, -1)
    assert packer.most_logprobs(StepPlan(rows[:2], 8)) == (-1, 0)
    assert packer.most_logprobs(StepPlan(rows, 12)) == (2, 0)


@pytest.mark.parametrize("alternatives", [0, 20, 1000, 200_000])
def test_a_server_cuts_large_tables_into_messages_that_clients_accept(alternatives: int) -> None:
    entry = TokenLogprobs(5, -0.5, 1, tuple((i, -1.0) for i in range(min(alternatives, 20_000))))
    count = 8 if alternatives > 20 else 600
    piece = outputs.Delta(0, ["x"] * count, list(range(count)), [entry] * count, "length", None)

    async def collect() -> list[pb.GenerateResponse]:
        scored = outputs.Delta(outputs.PROMPT, logprobs=[entry] * count, start=1)
        return [message async for message in messages_of([scored, piece])]

    messages = asyncio.run(collect())
    assert max(message.ByteSize() for message in messages) < 4 << 20
    assert sum(len(message.prompt_logprobs.entries) for message in messages) == count
    assert sum(len(message.delta.logprobs) for message in messages) == count
    if alternatives <= 20:
        assert len(messages) == 2 * -(-count // MAX_TOKENS_PER_MESSAGE)
    assert MAX_ALTERNATIVES_PER_MESSAGE // 20 > MAX_TOKENS_PER_MESSAGE
