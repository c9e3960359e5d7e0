"""Tenants on one engine: what each gets, and how long it waits. Time is steps, the device is simulated."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.messages import Submit
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.scheduler import Scheduler, SchedulerLimits
from jaxinfer.scheduling.step_plan import Scores, StepResult
from jaxinfer.scheduling.tenant import OUTPUT_COST, PROMPT_COST
from jaxinfer.scheduling.tenants import Tenants

LIMITS = SchedulerLimits(max_num_seqs=16, max_num_batched_tokens=256, max_model_len=1024)
NO_SCORES = Scores([], [], [], [])


@dataclass
class Load:
    """A tenant's clients. rate: requests a step (Poisson); None: greedy, always `backlog` requests under way."""

    tenant: str
    rate: float | None
    prompt: tuple[int, int] = (20, 200)
    output: tuple[int, int] = (5, 60)
    weight: float = 1.0
    backlog: int = 64
    since: int = 0
    waits: list[int] = field(default_factory=list)  # steps to each first token
    served: float = 0.0
    alive: int = 0


class Engine:
    """Scheduler and a device that answers every row with a token, one step in flight."""

    def __init__(self, *loads: Load, num_pages: int = 400, seed: int = 0) -> None:
        self.scheduler = Scheduler(LIMITS, PagePool(num_pages, 16))
        self.loads = {load.tenant: load for load in loads}
        self._rng = random.Random(seed)
        self._began: dict[str, tuple[Load, int, int]] = {}
        self._first: set[str] = set()
        self._serial = 0

    def _submit(self, load: Load, now: int) -> None:
        rng = self._rng
        self._serial += 1
        name = f"r{self._serial}"
        prompt = tuple(rng.choices(range(1000), k=rng.randint(*load.prompt)))
        params = SamplingParams(max_tokens=rng.randint(*load.output), ignore_eos=True)
        self.scheduler.add(Submit(name, prompt, params, 0, 0, float(now), load.tenant, load.tenant, load.weight))
        self._began[name] = load, now, len(prompt)
        load.alive += 1

    def run(self, steps: int, *, count_from: int = 0) -> None:
        before = None
        for now in range(steps):
            for load in self.loads.values():
                if now < load.since:
                    continue
                if load.rate is None:
                    while load.alive < load.backlog:
                        self._submit(load, now)
                elif self._rng.random() < load.rate:
                    self._submit(load, now)
            plan = self.scheduler.schedule()
            if before:
                result = StepResult([[0]] * len(before.rows), NO_SCORES, NO_SCORES)
                self._take(self.scheduler.update(before, result).sequences, now, count_from)
            before = plan
        self.scheduler.check_integrity()

    def _take(self, outputs: list, now: int, count_from: int) -> None:
        for output in outputs:
            load, began, prompt = self._began[output.request_id]
            if output.request_id not in self._first:
                self._first.add(output.request_id)
                if began >= count_from:
                    load.waits.append(now - began)
                if now >= count_from:
                    load.served += PROMPT_COST * prompt
            if now >= count_from:
                load.served += OUTPUT_COST
            if output.finish_reason is not None:
                load.alive -= 1


def jain(values: list[float]) -> float:
    """1: all alike; 1/n: one has everything (Jain, Chiu, Hawe 1984)."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


def p99(values: list[int]) -> int:
    return sorted(values)[int(0.99 * (len(values) - 1))]


SHORT, LONG = {"prompt": (8, 40), "output": (5, 20)}, {"prompt": (300, 700), "output": (50, 200)}
SHAPES = {
    "alike": ({}, {}),
    "short against long": (SHORT, LONG),
    "many against few": ({"backlog": 400}, {"backlog": 20}),
    "prompts against answers": ({"prompt": (500, 900), "output": (1, 4)}, {"prompt": (5, 20), "output": (100, 300)}),
}


def greedy_pair(shape: str, num_pages: int, steps: int) -> None:
    a, b = Load("a", None, **SHAPES[shape][0]), Load("b", None, **SHAPES[shape][1])
    engine = Engine(a, b, num_pages=num_pages)
    engine.run(steps, count_from=300)
    assert jain([a.served, b.served]) >= 0.95, (a.served, b.served)


def test_two_equal_greedy_tenants_get_the_same() -> None:
    greedy_pair("alike", 400, 900)


@pytest.mark.longer
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_pages", [400, 150], ids=["enough pages", "too few pages"])
def test_two_greedy_tenants_of_any_kind_get_the_same(shape: str, num_pages: int) -> None:
    if shape == "short against long" and num_pages < 400:
        num_pages = 260  # with fewer, all pages together cannot hold as many long requests as the same service takes
    greedy_pair(shape, num_pages, 2500)


@pytest.mark.longer
def test_who_comes_later_gets_the_same_from_then_on() -> None:
    """Neither is a newcomer punished, nor does it make up for the time before."""
    a, b = Load("a", None), Load("b", None, since=1000)
    engine = Engine(a, b)
    engine.run(3000, count_from=1100)
    assert jain([a.served, b.served]) >= 0.95, (a.served, b.served)


@pytest.mark.longer
def test_weights_are_shares() -> None:
    a, b = Load("a", None, weight=3), Load("b", None)
    engine = Engine(a, b)
    engine.run(3000, count_from=300)
    assert a.served / b.served == pytest.approx(3, rel=0.1)


@pytest.mark.longer
def test_what_one_leaves_the_others_get() -> None:
    """Shares bind nobody while there is room: a greedy tenant beside a modest one loses no more than that one takes."""
    alone = Load("a", None)
    Engine(alone).run(1500, count_from=300)
    a, b = Load("a", None), Load("b", 0.02)
    Engine(a, b).run(1500, count_from=300)
    assert a.served + b.served > 0.93 * alone.served


def flooded(flood: str, num_pages: int, steps: int) -> None:
    """The victim's p99 time to first token, in steps, beside a neighbour of its own kind and beside one that floods."""
    shapes = {"alike": {}, "long prompts": LONG, "long answers": {"output": (300, 600)}, "short": SHORT}
    calm, victim = Load("b", 0.05), Load("b", 0.05)
    Engine(Load("a", 0.05), calm, num_pages=num_pages).run(steps, count_from=300)
    Engine(Load("a", None, backlog=300, **shapes[flood]), victim, num_pages=num_pages).run(steps, count_from=300)
    assert len(calm.waits) > steps / 30
    assert p99(victim.waits) <= 1.3 * p99(calm.waits), (p99(victim.waits), p99(calm.waits))
    assert sum(victim.waits) / len(victim.waits) <= 1.3 * sum(calm.waits) / len(calm.waits)


def test_a_flood_holds_nobody_else_up() -> None:
    flooded("alike", 400, 1500)


@pytest.mark.longer
@pytest.mark.parametrize("flood", ["alike", "long prompts", "long answers", "short"])
@pytest.mark.parametrize("num_pages", [400, 150], ids=["enough pages", "too few pages"])
def test_no_flood_holds_anybody_else_up(flood: str, num_pages: int) -> None:
    flooded(flood, num_pages, 6000)


def test_without_tenants_a_flood_does_hold_others_up() -> None:
    """The test above can fail: the same loads as one tenant."""
    calm, victim = Load("b", 0.05), Load("b", 0.05)
    Engine(calm).run(1000, count_from=100)
    engine = Engine(Load("a", None, backlog=300), victim)
    join = engine.scheduler._tenants.join
    engine.scheduler._tenants.join = lambda name, weight, count: join("all", weight, count)  # type: ignore[method-assign]
    engine.run(1000, count_from=100)
    assert p99(victim.waits) > 5 * p99(calm.waits)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=5),
    seed=st.integers(0, 1000),
)
def test_services_of_greedy_tenants_stay_close(weights: list[float], seed: int) -> None:
    """The bound of virtual token counters: among tenants that always have work the services, by weight, differ by no
    more than a burst and what one step and the running sequences can add."""
    loads = [Load(f"t{i}", None, weight=weight, backlog=40) for i, weight in enumerate(weights)]
    engine = Engine(*loads, seed=seed)
    engine.run(200)
    services = [tenant.service for tenant in engine.scheduler._tenants.alive]
    slack = LIMITS.max_model_len + LIMITS.max_num_batched_tokens * OUTPUT_COST
    slots = LIMITS.max_num_seqs * 60 * OUTPUT_COST
    assert max(services) - min(services) <= (slack + slots) / min(weights)


def test_nobody_comes_back_with_credit_for_the_time_away() -> None:
    tenants = Tenants(burst=100)
    a = tenants.join("a", 1.0, 1)
    a.service = 5000.0
    b = tenants.join("b", 1.0, 1)
    assert b.service == 4900
    tenants.leave(a)
    tenants.leave(b)
    assert tenants.join("b", 2.0, 1).service == 4950  # an idle engine forgets nothing; a burst counts by weight
    c = tenants.join("c", 1.0, 1)
    assert c.service == 4850
    c.service = 9000.0
    assert tenants.join("c", 1.0, 1).service == 9000  # who was served more keeps it


def test_a_flooder_is_preempted_and_loses_no_token() -> None:
    from tests.jaxinfer.scheduling.simulator import World

    limits = SchedulerLimits(max_num_seqs=2, max_num_batched_tokens=16, max_model_len=64, eos_token_ids=(7,))
    world = World(limits, page_size=4, num_pages=40)
    for _ in range(4):
        world.submit((1, 2, 3, 4, 5), max_tokens=40, ignore_eos=True, tenant="a")
    for _ in range(10):
        world.step()
    late = world.submit((1, 2, 3), max_tokens=2, ignore_eos=True, tenant="b")
    world.step()
    world.step()
    assert (late, 0) in world.tokens, "it waited for the flood"
    assert world.scheduler.stats.preemptions == 1
    world.finish()
