"""Whose grammar is compiled next, by a clock that only compiling moves."""

from __future__ import annotations

import heapq

import pytest

from jaxinfer.constraints.turns import Turns

THREADS, EACH = 4, 2


def finished(arrivals: list[tuple[float, str, float]]) -> dict[str, list[float]]:
    """When each tenant's grammars are compiled. arrivals: (when, tenant, seconds that compiling takes)."""
    turns: Turns[float] = Turns(EACH)
    coming, running, now = sorted(arrivals), list[tuple[float, str]](), 0.0
    ends: dict[str, list[float]] = {tenant: [] for _, tenant, _ in arrivals}
    while coming or running:
        now = min(coming[0][0] if coming else float("inf"), running[0][0] if running else float("inf"))
        while coming and coming[0][0] <= now:
            _, tenant, seconds = coming.pop(0)
            turns.put(tenant, seconds)
        while running and running[0][0] <= now:
            _, tenant = heapq.heappop(running)
            ends[tenant].append(now)
            turns.done(tenant)
        while len(running) < THREADS and (turn := turns.take()) is not None:
            tenant, seconds = turn
            heapq.heappush(running, (now + seconds, tenant))
    return ends


def test_a_tenant_with_many_grammars_holds_up_nobody() -> None:
    ends = finished([(0.0, "greedy", 1.0)] * 64 + [(5.5, "other", 0.25), (5.6, "third", 0.25)])
    assert ends["other"] == [5.75], "at once: the greedy one has two of four places"
    assert ends["third"] == [5.85]
    assert max(ends["greedy"]) == 32.0


def test_many_tenants_take_turns() -> None:
    """Two greedy ones have all places; whoever comes waits for one of theirs, not for what they have sent before."""
    ends = finished([(0.0, "a", 1.0)] * 30 + [(0.0, "b", 1.0)] * 30 + [(0.5, "c", 0.5), (0.5, "d", 0.5)])
    assert ends["c"] == ends["d"] == [1.5]
    crowd = finished([(0.0, f"t{i}", 1.0) for i in range(12) for _ in range(8)])
    assert {len(found) for found in crowd.values()} == {8}
    assert max(found[0] for found in crowd.values()) == 3.0, "everyone's first before anyone's second"
    assert max(found[1] for found in crowd.values()) == 6.0


@pytest.mark.parametrize("count", [1, 2, 9])
def test_all_are_compiled_in_their_tenants_order(count: int) -> None:
    turns: Turns[int] = Turns(EACH)
    for i in range(count):
        turns.put("a", i)
    found = []
    while (turn := turns.take()) is not None:
        found.append(turn[1])
        if len(found) >= EACH:
            turns.done("a")
    assert found == list(range(count))
