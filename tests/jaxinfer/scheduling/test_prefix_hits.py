"""What is remembered of waiting sequences' prefixes: the plans stay those of a scheduler without memory, and a step
costs what has happened, not what waits."""

from __future__ import annotations

import random
from typing import Any

import pytest

from jaxinfer.messages import Submit
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling import page_pool
from jaxinfer.scheduling.group_hit import GroupHit
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.prefix_table import PrefixTable
from jaxinfer.scheduling.request import Sequence
from jaxinfer.scheduling.scheduler import LOOK_AHEAD, Scheduler, SchedulerLimits
from jaxinfer.scheduling.step_plan import StepResult
from tests.jaxinfer.scheduling.episodes import LAYERS, WINDOWED, check_same_plans, groups_of, run_episode
from tests.jaxinfer.scheduling.fresh import FreshWorld, look_up, look_up_groups
from tests.jaxinfer.scheduling.simulator import World

PAGE = 4
TENANTS = [("",), ("", "a"), ("", "a", "b", "c")]


@pytest.mark.parametrize("tenants", TENANTS, ids=len)
@pytest.mark.parametrize("fail_every", [0, 23])
def test_plans_are_those_of_a_scheduler_without_memory(tenants: tuple[str, ...], fail_every: int) -> None:
    hits = preemptions = 0
    for seed in range(8):
        stats = check_same_plans(seed, FreshWorld, tenants=tenants, fail_every=fail_every).scheduler.stats
        hits, preemptions = hits + stats.prefix_hits, preemptions + stats.preemptions
    assert hits > 50
    assert preemptions > 2


@pytest.mark.parametrize("layers", WINDOWED)
def test_plans_of_windowed_layers_are_those_of_a_scheduler_without_memory(layers: str) -> None:
    hits = preemptions = 0
    for seed in range(12):
        options = {"tenants": ("", "a") if seed % 2 else ("",), "fail_every": seed % 3 * 23, "layers": layers}
        stats = check_same_plans(seed, FreshWorld, **options).scheduler.stats
        hits, preemptions = hits + stats.prefix_hits, preemptions + stats.preemptions
    assert hits > 50
    assert preemptions > 2


@pytest.mark.longer
@pytest.mark.parametrize("layers", WINDOWED)
def test_many_plans_of_windowed_layers_are_those_of_a_scheduler_without_memory(layers: str) -> None:
    for seed in range(2000, 2036):
        check_same_plans(seed, FreshWorld, tenants=TENANTS[seed % 3], fail_every=seed % 3 * 20, layers=layers)


@pytest.mark.longer
@pytest.mark.parametrize("tenants", TENANTS, ids=len)
def test_many_plans_are_those_of_a_scheduler_without_memory(tenants: tuple[str, ...]) -> None:
    for seed in range(1000, 1060):
        check_same_plans(seed, FreshWorld, tenants=tenants, fail_every=seed % 3 * 20, actions=60)


class _WatchedWorld(World):
    """Compares some of the remembered prefixes with a look-up after every step, so that the gaps differ."""

    checked = 0

    def step(self) -> Any:
        plan = super().step()
        kv = self.scheduler.kv
        rng = random.Random(len(self.plans))
        for sequence in self.scheduler._tenants.waiting():
            if sequence.num_pending or rng.random() < 0.7:
                continue
            hit = kv.find_prefix(sequence, rng.choice([None, None, 1, 2]))
            if isinstance(hit, GroupHit):
                self._check_groups(hit, sequence)
                continue
            pages, nodes, unowned = look_up(kv, sequence)
            whole = hit._growth == hit.node.growth
            assert hit.pages == pages[: len(hit.pages)]
            assert hit.nodes[: len(hit.pages) + 1] == nodes[: len(hit.pages) + 1]
            assert hit._unowned == unowned[: len(hit.pages)]
            assert not whole or len(hit.pages) == len(pages)
            _WatchedWorld.checked += len(pages)
        return plan

    def _check_groups(self, hit: GroupHit, sequence: Sequence) -> None:
        length, chains = look_up_groups(self.scheduler.kv, self.limits.cache_groups, sequence)
        for chain, nodes in zip(hit._chains, chains, strict=True):
            known = len(chain.nodes)
            assert chain.nodes == nodes[:known]
            assert chain.pages == [node.page for node in nodes[1:known]]
            assert list(chain.there) == [node.page > 0 for node in nodes[1:known]]
            assert all(
                there == 0 or unowned == (self.scheduler.pool._owners[page] == 0)
                for there, unowned, page in zip(chain.there, chain.unowned, chain.pages, strict=True)
            )
        whole = all(len(chain.nodes) == len(nodes) for chain, nodes in zip(hit._chains, chains, strict=True))
        assert hit.length == length if whole else hit.length <= length
        _WatchedWorld.checked += length


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kept", [2, page_pool.Changes.KEPT], ids=["few changes kept", "all changes kept"])
def test_a_remembered_prefix_is_what_a_look_up_finds(kept: int, layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_pool.Changes, "KEPT", kept)
    _WatchedWorld.checked = 0
    for seed in range(10):
        run_episode(seed, tenants=("", "a"), kind=_WatchedWorld, fail_every=31, layers=layers)
    assert _WatchedWorld.checked > 150, "hardly anything was found, so nothing is proven"


class Looks:
    """Counts what a scheduler looks at in the pool."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for kind, name in ((PrefixTable, "find"), (PagePool, "lookup")):
            monkeypatch.setattr(kind, name, self._counted(getattr(kind, name)))
        since = page_pool.Changes.since

        def counted(changes: Any, seen: int, most: int) -> Any:
            found = since(changes, seen, most)
            self.count += len(found or ())
            return found

        monkeypatch.setattr(page_pool.Changes, "since", counted)
        tokens = Sequence.tokens

        def read(sequence: Sequence, start: int, end: int) -> Any:
            self.count += (end - start) // PAGE  # whole pages of tokens
            return tokens(sequence, start, end)

        monkeypatch.setattr(Sequence, "tokens", read)

    def _counted(self, function: Any) -> Any:
        def counted(*args: Any) -> Any:
            self.count += 1
            return function(*args)

        return counted


def busy(
    waiting: int, tenants: int, waits_for: str, *, cached: int = 512, prompt: int = 1024, layers: str = "uniform"
) -> Scheduler:
    """16 rows run with one token a step; `waiting` prompts wait for slots, pages or budget, of each so many tokens
    cached."""
    rng, size = random.Random(0), PAGE
    slots = 16 if waits_for == "slots" else 64
    groups = groups_of(layers)
    limits = SchedulerLimits(slots, 16 if waits_for == "budget" else 64, 2048, cache_groups=groups)
    pool = PagePool((waiting * prompt // size + 4000) * groups.num_tables, size)
    scheduler = Scheduler(limits, pool)

    def submit(i: int, tokens: tuple[int, ...]) -> None:
        params = SamplingParams(max_tokens=1000, ignore_eos=True)
        scheduler.add(Submit(f"r{i}", tokens, params, 0, 0, float(i), "", f"t{i % tenants}"))

    for i in range(16):
        submit(i, (i + 1,))
    step(scheduler)
    for i in range(waiting):
        tokens = tuple(rng.choices(range(100), k=prompt))
        for group in range(len(groups.groups)):
            node, pages = pool.prefixes.root(("", 0, group) if group else ("", 0)), pool.allocate(cached // size)
            for j, page in enumerate(pages):
                node = pool.prefixes.child(node, tokens[j * size : (j + 1) * size])
                pool.publish(page, node)
            pool.release(reversed(pages))
        submit(100 + i, tokens)
    if waits_for == "pages":
        # 60 steps take 240, a prompt all but 6; in a group with a small window 32 and 18.
        pool.allocate(pool.available - (250 if groups.num_tables == 1 else 274))
    return scheduler


def step(scheduler: Scheduler) -> None:
    plan = scheduler.schedule()
    scheduler.update(plan, StepResult([[3]] * len(plan.rows)))


@pytest.mark.parametrize("tenants", [1, 4])
@pytest.mark.parametrize("waits_for", ["slots", "pages", "budget"])
@pytest.mark.parametrize("cached", [512, 0], ids=["half cached", "nothing cached"])
@pytest.mark.parametrize("layers", ["uniform", "half windows"])
def test_looks_do_not_grow_with_who_waits(
    layers: str, cached: int, waits_for: str, tenants: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, groups = Looks(monkeypatch), len(groups_of(layers).groups)
    found = {}
    for waiting in (20, 80):
        scheduler = busy(waiting, tenants, waits_for, cached=cached, layers=layers)
        each = []
        for _ in range(60):
            looks.count = 0
            step(scheduler)
            each.append(looks.count - 16 // 4 * groups)
        assert scheduler.num_waiting == waiting
        found[waiting] = max(each[20:]), max(each)
    steady, most = found[80]
    # Where layers have windows, whoever is next hears of each page that the 16 rows publish and leave behind.
    assert steady <= 16 + (groups > 1) * tenants * 16 * 3, f"each step looks at {steady} pages"
    assert most <= found[20][1] + 2 * LOOK_AHEAD // PAGE, found


def test_nothing_waits_for_nothing() -> None:
    """The loads of the test above are what they are called."""
    scheduler = busy(20, 1, "slots")
    scheduler.limits = SchedulerLimits(64, 2048, 2048)
    scheduler._slots += range(16, 64)
    step(scheduler)
    assert scheduler.num_waiting < 20
