"""The suite can fail: every seeded fault is noticed within a few hundred random episodes, and none without a fault."""

from __future__ import annotations

import pytest

from jaxinfer.scheduling.step_plan import NULL_PAGE
from tests.jaxinfer.scheduling.episodes import LAYERS, WINDOWED, check_same_plans, run_episode
from tests.jaxinfer.scheduling.fresh import FreshWorld
from tests.mutants import MUTANTS, OF_GROUPS, OF_GUIDES, OF_MEMORY, OF_TENANTS

EPISODES = 300  # in which a fault must show
QUIET = 120  # of each kind without a fault


@pytest.mark.parametrize("name", MUTANTS)
def test_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_fault(name, WINDOWED if name in OF_GROUPS else ["uniform"], monkeypatch)


@pytest.mark.longer
@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in OF_GROUPS])
def test_fault_is_caught_with_windows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_fault(name, WINDOWED, monkeypatch)


def test_grammars_force_tokens() -> None:
    forced = preemptions = errors = 0
    for seed in range(100):
        world = run_episode(
            seed, tenants=("", "a"), guided=0.7, fail_every=seed % 3 * 23, layers=list(LAYERS)[seed % 7]
        )
        forced += world.scheduler.stats.forced_tokens
        preemptions += world.scheduler.stats.preemptions
        errors += sum(reason == "error" for reason in world.ended.values())
    assert forced > 300
    assert preemptions > 10
    assert errors > 10


def find_fault(name: str, layers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plays episodes with a seeded fault, the layers being each of the given ones in turn, until it is noticed."""
    MUTANTS[name](monkeypatch)
    for seed in range(EPISODES):
        of = layers[seed % len(layers)]
        try:
            if name in OF_MEMORY:
                check_same_plans(seed, FreshWorld, tenants=("", "a"), fail_every=29, layers=of)
            else:
                tenants = ("", "a") if name in OF_TENANTS else ("",)
                run_episode(seed, tenants=tenants, layers=of, guided=0.7 if name in OF_GUIDES else 0.0)
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
    ("tenants", "layers"),
    [
        pytest.param(("",), "uniform", id="one tenant"),
        pytest.param(("", "a", "b"), "uniform", id="three tenants", marks=pytest.mark.longer),
        *(pytest.param(("", "a"), layers, id=layers, marks=pytest.mark.longer) for layers in list(LAYERS)[1:]),
    ],
)
def test_no_fault_no_alarm(tenants: tuple[str, ...], layers: str) -> None:
    preemptions = hits = left = 0
    for seed in range(QUIET):
        world = run_episode(seed, tenants=tenants, layers=layers)
        preemptions += world.scheduler.stats.preemptions
        hits += world.scheduler.stats.prefix_hits
        left += sum(write.page == NULL_PAGE for plan in world.plans for row in plan.rows for write in row.writes)
    assert preemptions > 40, "the episodes hardly ever preempt, so they prove little"
    assert hits > 400, "the episodes hardly ever hit the prefix cache, so they prove little"
    assert (left > 400) == (layers != "uniform"), "pages are hardly ever left behind, so windows prove little"
