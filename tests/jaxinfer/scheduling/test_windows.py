"""Layers with a sliding window: how much a sequence holds, what others find of it, and what it needs to be served."""

from __future__ import annotations

from typing import Any

import pytest

from jaxinfer.cache_groups import CacheGroups, CacheSpec
from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import Submit
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.page_pool import NULL_PAGE, PagePool
from jaxinfer.scheduling.scheduler import Scheduler, SchedulerLimits
from jaxinfer.scheduling.step_plan import NO_TOKEN, StepPlan, StepResult
from tests.jaxinfer.scheduling.simulator import World


def groups(*windows: int | None) -> CacheGroups:
    return CacheGroups.of([CacheSpec(1, 1, window) for window in windows])


def world(*windows: int | None, budget: int = 16, pages: int = 400, page_size: int = 4, **limits: Any) -> World:
    sizes = {"max_num_seqs": 4, "max_model_len": 400, "eos_token_ids": (7,), **limits}
    return World(
        SchedulerLimits(max_num_batched_tokens=budget, cache_groups=groups(*windows), **sizes),
        page_size=page_size,
        num_pages=pages,
    )


def held(scheduler: Scheduler, name: str = "r0", index: int = 0) -> list[int]:
    """Pages of a sequence in each of its page tables."""
    tables = scheduler.kv.table_columns(scheduler._requests[name].sequences[index])
    return [sum(page != NULL_PAGE for page in table) for table in tables]


@pytest.mark.parametrize("chunk", [64, 512, 2048, 300])
def test_what_a_sequence_of_8192_tokens_holds(chunk: int) -> None:
    scheduler = Scheduler(SchedulerLimits(2, chunk, 8192, cache_groups=groups(512, None, 512, 512)), PagePool(600, 64))
    params = SamplingParams(max_tokens=600, ignore_eos=True)
    scheduler.add(Submit("r0", tuple(range(7592)), params, 0, 0, 0.0))
    before: StepPlan | None = None
    steps = 0
    while scheduler.has_unfinished:
        plan = scheduler.schedule()
        if plan:
            *windowed, whole = sorted(held(scheduler))
            (row,) = plan.rows
            assert whole == -(-(row.start + row.length) // 64)
            assert len(windowed) == 3
            most = 10 if row.length == 1 else 512 // 64 + -(-chunk // 64) + 2
            assert max(windowed) <= most, f"{windowed} pages in a row from {row.start} on"
            steps += 1
        if before:
            scheduler.update(before, StepResult([[3]] * len(before.rows)))
        before = plan
    assert steps == -(-7592 // chunk) + 599
    assert scheduler.pool.available == scheduler.pool.usable_pages


@pytest.mark.parametrize("windows", [(None, 12), (12,), (None, 9, 20), (6, 6, 6, None)])
@pytest.mark.parametrize("length", [41, 57, 80, 99])
def test_a_prefix_is_found_wherever_it_ends(windows: tuple[int | None, ...], length: int) -> None:
    """Also within a chunk, whose pages were left behind before their step had returned."""
    w = world(*windows, budget=32)
    prompt = tuple(i * i % 13 for i in range(100))
    w.submit(prompt, max_tokens=30, ignore_eos=True)
    w.finish()
    before = w.scheduler.stats.prefix_hits
    w.submit((*prompt[:length], 11, 12, 11), max_tokens=3, ignore_eos=True)
    w.finish()
    assert w.scheduler.stats.prefix_hits - before == length // 4 * 4
    admission = next(r.admission for plan in reversed(w.plans) for r in plan.rows if r.admission is not None)
    for table, spec in zip(admission.tables, w.device.specs, strict=True):
        first = spec.first_kept(length // 4 * 4) // 4
        assert [page == NULL_PAGE for page in table[: length // 4]] == [i < first for i in range(length // 4)]


def test_siblings_find_the_prompt_that_the_first_one_computed() -> None:
    w = world(None, 8, budget=16)
    w.submit(tuple(range(12)) * 5, n=4, max_tokens=9, ignore_eos=True)
    w.finish()
    assert w.scheduler.stats.prefix_hits == 3 * 56


def test_a_hit_needs_the_last_window_of_every_group() -> None:
    """Without a page of it the prefix is shorter, although the layers without a window have all of theirs."""
    w = world(None, 8)
    prompt = tuple(i * 5 % 13 for i in range(60))
    w.submit(prompt, max_tokens=1, ignore_eos=True)
    w.finish()
    kv, pool = w.scheduler.kv, w.scheduler.pool
    w.submit((*prompt, 1), max_tokens=1, ignore_eos=True)
    sequence = w.scheduler._requests["r1"].sequences[0]
    assert kv.find_prefix(sequence).length == 15
    node = kv.root(sequence, 1)
    for i in range(14):
        node = pool.prefixes.find(node, prompt[4 * i : 4 * i + 4]) or node
    pool.withdraw_content(node)  # positions 52 to 55
    assert kv.find_prefix(sequence).length == 13
    assert kv.find_prefix(sequence).unowned() == [13, 2]
    w.finish()
    assert w.scheduler.stats.prefix_hits == 52


def test_windows_alone_bound_what_a_sequence_needs() -> None:
    """A pool that could not hold a text without windows serves it with them."""
    sizes = {"pages": 12, "budget": 8, "max_num_seqs": 2}
    with pytest.raises(InvalidRequest, match="prompt and output need 50 pages of 4 tokens, the pool has 11"):
        world(None, **sizes).submit((1,) * 100, max_tokens=101)
    w = world(8, **sizes)
    for seed in range(3):
        w.submit(tuple((i + seed) % 13 for i in range(100)), max_tokens=101, ignore_eos=True, seed=seed)
    w.finish()
    with pytest.raises(InvalidRequest, match="need 55 pages of 4 tokens, the pool has 11"):
        world(None, 8, **sizes).submit((1,) * 100, max_tokens=101)


def test_a_pool_holds_more_sequences_with_windows() -> None:
    running = {}
    for windows in ((None,) * 4, (None, 16, 16, 16)):
        tables = groups(*windows).num_tables
        w = world(*windows, pages=1 + 120 // tables * tables if tables > 1 else 31, max_num_seqs=16, max_model_len=200)
        for seed in range(16):
            w.submit(tuple((i * seed + i) % 13 for i in range(60)), max_tokens=60, ignore_eos=True, seed=seed)
        for _ in range(150):
            w.step()
            running[windows] = max(running.get(windows, 0), len(w.scheduler._running))
        w.finish()
    few, many = running.values()
    assert many > 1.5 * few, running


def test_nobody_finds_what_a_failed_request_left_behind() -> None:
    scheduler = Scheduler(SchedulerLimits(2, 16, 400, cache_groups=groups(None, 8, 8, 8)), PagePool(400, 4))
    scheduler.add(Submit("r0", tuple(range(100)), SamplingParams(max_tokens=20, ignore_eos=True), 0, 0, 0.0))
    before: StepPlan | None = None
    cached = steps = 0
    while scheduler.has_unfinished:
        plan = scheduler.schedule()
        if before:
            steps += 1
            scheduler.update(before, StepResult([[NO_TOKEN if steps == 12 else 3]]))
            cached = max(cached, scheduler.pool.num_cached)
        scheduler.check_integrity()
        before = plan
    assert cached > 20
    assert scheduler.pool.num_cached == 0
    assert scheduler.pool.available == scheduler.pool.usable_pages


def test_a_window_as_long_as_the_context_is_none() -> None:
    """Nothing is ever left behind, so that nothing is kept track of."""
    w = world(400, None, max_model_len=399)
    assert not w.scheduler.kv.windows
    assert world(398, None, max_model_len=399).scheduler.kv.windows == ()
    assert len(world(395, None, max_model_len=399).scheduler.kv.windows) == 1


def test_bundles_are_taken_and_given_back_whole() -> None:
    pool = PagePool(12, 4)
    single = pool.allocate(2)
    first, second = pool.allocate_bundles(2, 4)
    assert len({*single, *pool.bundle(first), *pool.bundle(second)}) == 10
    assert pool.available == 1
    pool.check_integrity([[first, second, *single]])
    pool.publish(first, pool.prefixes.child(pool.prefixes.root(""), (1, 2, 3, 4)))
    pool.release([first])
    assert (pool.available, pool.num_cached) == (5, 4)
    pool.retain([first])
    assert (pool.available, pool.num_cached) == (1, 0)
    pool.release([first, second])
    pool.check_integrity([single])
    taken = pool.allocate(6)  # five are free, and of the bundle that is evicted one is wanted
    assert (pool.available, pool.num_cached) == (3, 0)
    pool.check_integrity([single, taken])
    pool.release([*taken, *single])
    assert pool.available == pool.usable_pages
