"""Every expert's tokens are counted: as the router, computed by hand, deals them, however the steps are cut."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from jaxinfer.config import MoeConfig, RouterConfig
from jaxinfer.expert_load import ExpertLoad
from jaxinfer.models.layers.moe import Moe
from jaxinfer.models.registry import model_config
from jaxinfer.runtime.expert_counts import SECONDS, ExpertCounts
from jaxinfer.runtime.step import StepSpec
from jaxinfer.sampling_params import SamplingParams
from tests.golden_recipe import GoldenCase, build_config, build_tensors, load_case
from tests.jaxinfer.harness import Harness, build
from tests.jaxinfer.models.dense import Batch, DenseModel
from tests.jaxinfer.resized import eight_experts_eight_heads

PROMPTS = ([*range(3, 24)], [7, 90, 11, 5, 60], [*range(40, 53)])
PARAMS = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)


def chosen_by_hand(router: RouterConfig, scores: np.ndarray, correction: np.ndarray | None) -> np.ndarray:
    """(T, k) from the router's product (T, E) float64."""
    if router.scoring == "sigmoid":
        scores = 1 / (1 + np.exp(-scores))  # softmax keeps the order
    if correction is not None:
        scores = scores + correction
    grouped = scores.reshape(len(scores), router.groups, -1)
    of_groups = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
    best = np.argsort(-of_groups, axis=1)[:, : router.groups_kept]
    kept = np.zeros(of_groups.shape, bool)
    np.put_along_axis(kept, best, True, axis=1)
    ranked = np.where(kept[:, :, None], grouped, -np.inf).reshape(scores.shape)
    return np.argsort(-ranked, axis=1, kind="stable")[:, : router.experts_per_token]


def counted_by_hand(case: GoldenCase, texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Tokens of each expert of each layer that has them, when every token of the texts is computed once."""
    config = model_config(build_config(case))
    model = DenseModel(config, build_tensors(case))
    seen: list[jax.Array] = []
    plain = Moe.__call__

    def keeps_its_input(self: Moe, x: jax.Array, *args: Any) -> Any:
        seen.append(x)
        return plain(self, x, *args)

    def inputs(params: Any, batch: Batch) -> list[jax.Array]:
        Moe.__call__ = keeps_its_input  # type: ignore[method-assign]
        try:
            model.apply(params, batch)
        finally:
            Moe.__call__ = plain  # type: ignore[method-assign]
        return seen

    rows = sum(map(len, texts))
    found = jax.jit(inputs)(model.params, Batch.of(texts, config.longrope_border))
    counts = []
    for (layer, experts), x in zip(config.expert_layers, found, strict=True):
        part, weights = config.layers[layer].feed_forward, model.params["layers"][layer]["moe"]
        assert isinstance(part, MoeConfig)
        wide = {name: np.asarray(array, np.float64) for name, array in weights["router"].items()}
        scores = np.asarray(x, np.float64)[:rows] @ wide["weight"].T + wide.get("bias", 0.0)
        correction = np.asarray(weights["correction"], np.float64) if part.router.correction else None
        chosen = chosen_by_hand(part.router, scores, correction)
        counts.append(np.bincount(chosen.ravel(), minlength=experts).tolist())
    return counts


def serve(engine: Harness) -> tuple[ExpertLoad, list[list[int]]]:
    """The load of PROMPTS, all at once, and the texts whose tokens were computed: all but each answer's last."""
    names = [engine.submit(prompt, PARAMS) for prompt in PROMPTS]
    engine.run()
    counts = engine.loop.runner.expert_counts
    return counts.now(), [[*p, *engine.heard[n, 0].tokens[:-1]] for p, n in zip(PROMPTS, names, strict=True)]


@functools.cache
def one_device(name: str, chunk: int = 7) -> tuple[ExpertLoad, list[list[int]]]:
    engine = build(load_case(name))
    engine.chunk_by(chunk)  # of programs for 8 tokens: every step has padding
    return serve(engine)


@pytest.mark.parametrize(
    "name", ["qwen3_moe", *(pytest.param(name, marks=pytest.mark.longer) for name in ("glm4_moe", "gpt_oss"))]
)
def test_counts_are_those_of_the_router(name: str) -> None:
    case = load_case(name)
    config = model_config(build_config(case))
    load, texts = one_device(name)
    assert [list(row) for row in load.tokens] == counted_by_hand(case, texts)
    assert load.layers == tuple(layer for layer, _ in config.expert_layers)
    parts = [layer.feed_forward for layer in config.layers]
    each = sum(part.router.experts_per_token for part in parts if isinstance(part, MoeConfig))
    assert load.total == each * sum(map(len, texts))


@pytest.mark.longer
def test_layers_one_after_the_other_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    looped = one_device("glm4_moe")
    monkeypatch.setattr(StepSpec, "looped", property(lambda _: False))
    unrolled = build(load_case("glm4_moe"))
    unrolled.chunk_by(8)
    load, texts = serve(unrolled)
    assert (load.tokens, texts) == (looped[0].tokens, looped[1])


@pytest.mark.longer
def test_several_devices_count_what_one_does() -> None:
    case = eight_experts_eight_heads()
    one, many = build(case), build(case, tensor_parallel_size=2, expert_parallel_size=4)
    load, texts = serve(one)
    assert serve(many) == (load, texts)
    assert many.loop.runner.compilations == 0
    assert [list(row) for row in load.tokens] == counted_by_hand(case, texts)


def test_asking_compiles_nothing_and_what_is_cached_is_not_computed() -> None:
    engine = build(load_case("qwen3_moe"))
    counts = engine.loop.runner.expert_counts
    assert counts.now() == ExpertLoad.zeros(engine.loop.info.expert_layers)
    load, texts = serve(engine)
    again, _ = serve(engine)
    computed = engine.loop.scheduler.refresh_stats().scheduled_tokens
    assert computed < 2 * sum(map(len, texts))  # of the longest prompt a page was cached
    assert again.total * sum(map(len, texts)) == load.total * computed
    assert again.steps == engine.loop.scheduler.stats.steps
    assert engine.loop.runner.compilations == 0


def test_a_dense_model_counts_nothing() -> None:
    runner = build(load_case("llama")).loop.runner
    assert runner.expert_counts is None
    assert runner.programs.abstract_expert_tokens() is None


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Busy:
    """An array of a step in flight."""

    def __init__(self, values: list[list[int]]) -> None:
        self.values, self.done, self.sent = np.array(values, np.uint32), False, False

    def copy_to_host_async(self) -> None:
        self.sent = True

    def is_ready(self) -> bool:
        return self.done

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values


def test_a_busy_engine_tells_once_a_second_and_waits_for_nothing() -> None:
    clock = Clock()
    counts = ExpertCounts([(1, 2), (2, 3)], lambda zeros: zeros, clock)  # type: ignore[arg-type,return-value]
    counts.restart()
    assert counts.array.shape == (2, 3)

    def step(values: list[list[int]]) -> Busy:
        counts.array = Busy(values)
        counts.stepped()
        return counts.array

    assert counts.report(idle=True) is None
    first = step([[1, 2, 0], [3, 0, 4]])
    assert counts.report(idle=False) is None
    assert first.sent
    assert not np.any(counts.array)  # what the next step adds to
    second = step([[10, 0, 0], [0, 0, 10]])
    assert counts.report(idle=False) is None  # the first one is still computed
    first.done = True
    assert counts.report(idle=False) == ExpertLoad((1, 2), ((1, 2), (3, 0, 4)), 1)
    assert counts.array is second
    clock.now += 0.9 * SECONDS
    assert counts.report(idle=False) is None
    assert not second.sent
    clock.now += 0.2 * SECONDS
    assert counts.report(idle=False) is None
    assert second.sent
    assert counts.report(idle=True) == ExpertLoad((1, 2), ((11, 2), (3, 0, 14)), 2)
    assert counts.report(idle=True) is None
    step([[2**32 - 1, 0, 0], [0, 0, 0]])
    assert counts.report(idle=True).tokens[0] == (2**32 + 10, 2)  # the sums are wider than the device's numbers
    assert counts.now().steps == 3
