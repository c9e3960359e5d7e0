"""The suite can fail: every seeded fault is noticed within a few hundred random episodes, and none without a fault."""

from __future__ import annotations

import pytest

from tests.jaxinfer.scheduling.episodes import check_same_plans, run_episode
from tests.jaxinfer.scheduling.fresh import FreshWorld
from tests.mutants import MUTANTS, OF_MEMORY, OF_TENANTS

EPISODES = 300


@pytest.mark.parametrize("name", MUTANTS)
def test_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    for seed in range(EPISODES):
        try:
            if name in OF_MEMORY:
                check_same_plans(seed, FreshWorld, tenants=("", "a"), fail_every=29)
            else:
                run_episode(seed, tenants=("", "a") if name in OF_TENANTS else ("",))
        except Exception:  # a fault may show as a wrong token, a broken book or a crash: each of them is noticed
            return
    pytest.fail(f"{name} survived {EPISODES} episodes")


def test_rows_may_draw_no_token_or_several() -> None:
    several = preemptions = 0
    for seed in range(40):
        world = run_episode(seed, tenants=("", "a"), draws=1 + seed % 3, fail_every=seed % 4 * 11)
        several += sum(row.draws > 1 for plan in world.plans for row in plan.rows)
        preemptions += world.scheduler.stats.preemptions
    assert several > 300
    assert preemptions > 10


@pytest.mark.parametrize(
    "tenants",
    [pytest.param(("",), id="one tenant"), pytest.param(("", "a", "b"), id="three tenants", marks=pytest.mark.longer)],
)
def test_no_fault_no_alarm(tenants: tuple[str, ...]) -> None:
    preemptions = hits = 0
    for seed in range(EPISODES):
        world = run_episode(seed, tenants=tenants)
        preemptions += world.scheduler.stats.preemptions
        hits += world.scheduler.stats.prefix_hits
    assert preemptions > 100, "the episodes hardly ever preempt, so they prove little"
    assert hits > 1000, "the episodes hardly ever hit the prefix cache, so they prove little"
