"""Layers of several page tables in one pool: what a window gives back changes no bit, and no pool array is copied."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints.load import load_model
from jaxinfer.cache_groups import CacheGroups
from jaxinfer.config import RuntimeConfig
from jaxinfer.runtime.engine_builder import make_layout, make_runner
from jaxinfer.runtime.kv_cache import resolve_sizes
from jaxinfer.runtime.runner import Runner
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.step_plan import Admission, PlanRow, StepPlan, TableWrite
from jaxinfer.sharding import make_mesh
from pallas_kernels.dispatch import DeviceTarget
from tests.golden_recipe import GoldenCase, load_case, write_checkpoint

pytestmark = pytest.mark.longer

PAGE, CHUNK, STEPS = 4, 3, 12
PARAMS = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True, logprobs=5)


def make(case: GoldenCase, **settings: Any) -> Runner:
    """A runner that is not warm yet."""
    defaults: dict[str, Any] = {"page_size": PAGE, "max_num_seqs": 2, "max_num_batched_tokens": 8, "num_pages": 200}
    runtime = RuntimeConfig(dtype="float32", max_model_len=128, compilation_cache_dir=None, **{**defaults, **settings})
    mesh = make_mesh(runtime.parallel)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(case, Path(folder))
        loaded = load_model(Path(folder), dtype=runtime.dtype, mesh=mesh, quantization=None)
    model = dataclasses.replace(loaded, name=case.name)
    layout = make_layout(model, DeviceTarget.of(mesh.devices.flat[0]), runtime)
    sizes = resolve_sizes(loaded.config, runtime, layout, None, "cpu")
    return make_runner(model, mesh, runtime, sizes, layout)


@pytest.fixture(scope="module", params=["gemma2", "gemma3"])
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return load_case(request.param)


@pytest.fixture(scope="module")
def runner(case: GoldenCase) -> Runner:
    runner = make(case)
    runner.warm_up()
    return runner


class Tables:
    """Page tables of one sequence. freeing: pages behind a window go back, to be taken by whoever comes next."""

    def __init__(self, groups: CacheGroups, free: list[int], *, freeing: bool) -> None:
        self.groups, self.free, self.freeing = groups, free, freeing
        self.tables: list[list[int]] = [[] for _ in range(groups.num_tables)]
        self.first = 0  # position of the next query

    def advance(self, start: int, end: int) -> tuple[TableWrite, ...]:
        """Pages for positions up to `end`; those that no query from `start` on sees go back first."""
        writes = []
        for group in self.groups.groups:
            kept = group.spec.first_kept(start) // PAGE if self.freeing else 0
            for table in group.tables:
                pages = self.tables[table]
                for position in range(min(kept, len(pages))):
                    if pages[position]:
                        self.free.append(pages[position])
                        pages[position] = 0
                        writes.append(TableWrite(table, position, 0))
                while len(pages) * PAGE < end:
                    pages.append(self.free.pop())
                    writes.append(TableWrite(table, len(pages) - 1, pages[-1]))
        return tuple(writes)


def run(
    runner: Runner, prompts: list[tuple[int, ...]], *, freeing: bool
) -> tuple[list[list[int]], list[list[float]], int]:
    """Tokens and log-probabilities of two sequences in turn and together; and how many pages were never taken."""
    free = list(range(1, runner.sizes.num_pages))
    groups = runner.spec.config.cache_groups
    tables = [Tables(groups, free, freeing=freeing) for _ in prompts]
    done, fewest = [0] * len(prompts), len(free)
    known = [list(prompt) for prompt in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    while any(len(k) < len(p) + STEPS for k, p in zip(known, prompts, strict=True)):
        rows = []
        for slot, prompt in enumerate(prompts):
            count = min(CHUNK + slot, len(known[slot]) - done[slot])
            start, end = done[slot], done[slot] + count
            writes = tables[slot].advance(start, end)
            admission = None
            if not start:
                pages = tuple(map(tuple, tables[slot].tables))
                admission, writes = Admission(0, len(prompt), pages, 0, PARAMS, 0, 0, (), ()), ()
            draws = int(end == len(known[slot]))
            ids = tuple(known[slot][start:end])
            rows.append(PlanRow(f"r{slot}", 0, 0, 0, slot, start, count, draws, ids, writes, admission, ()))
            done[slot] = end
        result = runner.dispatch(StepPlan(rows, sum(row.length for row in rows))).result()
        fewest = min(fewest, len(free))
        assert result.scores is not None or not any(row.draws for row in rows)
        drawn = [(row.slot, tokens) for row, tokens in zip(rows, result.tokens, strict=True) if row.draws]
        for i, (slot, tokens) in enumerate(drawn):
            known[slot] += tokens
            logprobs[slot] += result.scores.top_logprobs[i]  # type: ignore[union-attr]
    return known, logprobs, fewest


def test_given_back_pages_change_no_bit(case: GoldenCase, runner: Runner) -> None:
    """They are taken again at once, by the other sequence and by other layers, and the null page holds NaN."""
    assert runner.spec.config.cache_groups.num_tables > 1
    longest = sorted(range(len(case.prompts)), key=lambda i: len(case.prompts[i]))[-2:]
    prompts = [tuple(case.prompts[i]) for i in longest]
    kept, kept_logprobs, left = run(runner, prompts, freeing=False)
    arrays = slice(None, None, runner.sizes.num_pages)  # the null page of each array that is in one for all layers
    runner._kv = jax.tree.map(lambda pages: pages.at[arrays].set(jnp.nan), runner._kv)
    freed, freed_logprobs, more_left = run(runner, prompts, freeing=True)
    assert more_left > left
    assert freed == kept
    assert freed_logprobs == kept_logprobs
    assert all(np.isfinite(np.array(rows)).all() for rows in freed_logprobs)
    for tokens, i in zip(freed, longest, strict=True):
        count = min(STEPS, len(case.greedy[i]))
        assert tokens[len(case.prompts[i]) :][:count] == list(case.greedy[i][:count])


def test_layers_of_several_tables_share_pool_arrays_in_place(case: GoldenCase) -> None:
    """A layer after another writes the array that both use: no copy of it is made."""
    runner = make(case)
    groups = runner.spec.config.cache_groups
    assert groups.depth < runner.spec.config.num_layers
    memory = runner.lower_step(runner.ladder[0], num_pages=2000).compile().memory_analysis()
    assert memory is not None
    array = 2000 * runner.layout.bytes_per_page // 2
    assert memory.temp_size_in_bytes < array // 2
    assert memory.alias_size_in_bytes >= 2 * groups.depth * array
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < array // 2
