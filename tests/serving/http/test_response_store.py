"""The store of responses by itself: its limits, its time, and what a chain of responses shares."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest

from jaxinfer.config import ConfigError
from serving.http.response_store import ResponseStore, Run, StoredResponse, StoreLimits, item_ids
from tests.serving.harness import run


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run_of(*ids: str, size: int = 0) -> Run:
    return Run(msgspec.json.encode([{"id": each, "text": "x" * size} for each in ids]))


def response(name: str, before: StoredResponse | None = None, size: int = 0) -> StoredResponse:
    given, output = run_of(f"in_{name}", size=size), run_of(f"out_{name}", size=size)
    ids = item_ids((given.items(), output.items()))
    head = msgspec.json.encode({"id": name})
    return StoredResponse(name, head, () if before is None else before.runs, given, output, ids)


def counted(store: ResponseStore) -> int:
    """What it holds, counted anew."""
    responses = [each for shelf in store._shelves.values() for each in shelf.responses.values()]
    runs = {id(each): each for stored in responses for each in stored.runs}
    assert all(each.holders == sum(each in stored.runs for stored in responses) for each in runs.values())
    indexed = sum(len(shelf.by_item) for shelf in store._shelves.values())
    assert indexed <= sum(len(stored.item_ids) for stored in responses)
    return sum(stored.own_size for stored in responses) + sum(128 + len(each.data) for each in runs.values())


def test_a_response_is_found_by_its_own_tenant_alone():
    async def test() -> None:
        store = ResponseStore(StoreLimits())
        store.put("acme", response("a"))
        assert msgspec.json.decode(store.get("acme", "a").json) == {"id": "a", "output": [{"id": "out_a", "text": ""}]}
        assert store.holder("acme", "in_a").id == store.holder("acme", "out_a").id == "a"
        for tenant in ("other", ""):
            assert store.get(tenant, "a") is None
            assert store.holder(tenant, "out_a") is None
            assert not store.delete(tenant, "a")
        assert store.delete("acme", "a")
        assert store.get("acme", "a") is store.holder("acme", "out_a") is None
        assert (len(store), store.size, store._shelves) == (0, 0, {})

    run(test())


def test_a_chain_outlives_the_responses_that_it_is_made_of():
    async def test() -> None:
        store = ResponseStore(StoreLimits())
        first = response("a", size=1000)
        store.put("t", first)
        second = response("b", first, size=1000)
        store.put("t", second)
        with_both = store.size
        store.put("t", third := response("c", second, size=10))
        assert store.size - with_both < 3000  # what it goes on from is there already
        store.delete("t", "a"), store.delete("t", "b")
        assert [item["id"] for each in third.runs for item in each.items()] == [
            "in_a", "out_a", "in_b", "out_b", "in_c", "out_c",
        ]  # fmt: skip
        assert store.get("t", "c") is third
        assert store.size == counted(store) > 4000
        store.delete("t", "c")
        assert store.size == 0

    run(test())


def test_time_is_since_the_last_use():
    async def test() -> None:
        clock = Clock()
        store = ResponseStore(StoreLimits(seconds=10), clock)
        for name in "abc":
            store.put("t", response(name))
        clock.now = 6
        assert store.get("t", "a")
        assert store.holder("t", "out_c")
        clock.now = 11
        assert store.get("t", "b") is None
        assert len(store) == 2
        clock.now = 15.9
        assert store.get("t", "c")
        clock.now = 16
        assert store.get("t", "a") is None
        clock.now = 30
        assert store.metrics() == {
            "response_store_responses": 0,
            "response_store_bytes": 0,
            "response_store_evicted_total": 0,
        }

    run(test())


def test_what_nobody_asks_for_goes_too():
    async def test() -> None:
        store = ResponseStore(StoreLimits(seconds=0.02))
        store.put("t", response("a"))
        async with asyncio.timeout(5):
            while store._shelves:
                await asyncio.sleep(0.005)
        assert store.size == 0
        store.put("t", response("a"))  # the timer is set again
        async with asyncio.timeout(5):
            while store._shelves:
                await asyncio.sleep(0.005)

    run(test())


def test_the_tenant_with_most_gives_way():
    async def test() -> None:
        one = response("first", size=1000)  # a name longer than any below
        each = one.own_size + sum(128 + len(part.data) for part in one.runs)
        store = ResponseStore(StoreLimits(bytes=5 * each))
        store.put("small", response("first", size=1000))
        for i in range(20):
            assert store.put("large", response(f"{i}", size=1000))
            assert store.size == counted(store) <= 5 * each
        assert store.get("small", "first")
        assert [name for name in map(str, range(20)) if store.get("large", name)] == ["16", "17", "18", "19"]
        assert store.evicted == 16
        assert not store.put("large", response("huge", size=5 * each))
        assert store.get("large", "19")
        store = ResponseStore(StoreLimits(responses=2))
        for name in "abc":
            store.put(name, response(name))
        assert (len(store), store.get("c", "c") is not None) == (2, True)

    run(test())


def test_the_same_id_again_replaces():
    async def test() -> None:
        store = ResponseStore(StoreLimits())
        store.put("t", response("a", size=500))
        again = response("a")
        store.put("t", again)
        assert store.get("t", "a") is store.holder("t", "out_a") is again
        assert store.size == counted(store)

    run(test())


def test_its_books_are_right_after_anything():
    async def test() -> None:
        draw, clock = random.Random(5), Clock()
        store = ResponseStore(StoreLimits(bytes=40_000, seconds=50, responses=12), clock)
        names: dict[str, list[str]] = {"s": [], "t": [], "u": []}
        for i in range(1000):
            tenant = draw.choice("stu")
            clock.now += draw.random()
            known = [found for name in names[tenant][-20:] if (found := store.get(tenant, name))]
            deed = draw.random()
            if deed < 0.6:
                name = f"{tenant}{i}" if draw.random() < 0.9 or not names[tenant] else draw.choice(names[tenant])
                before = draw.choice(known) if known and draw.random() < 0.7 else None
                store.put(tenant, response(name, before, size=draw.choice((0, 10, 3000))))
                names[tenant].append(name)
            elif names[tenant]:
                store.delete(tenant, draw.choice(names[tenant]))
            assert store.size == sum(shelf.size for shelf in store._shelves.values()) == counted(store) <= 40_000
            assert len(store) == sum(len(shelf.responses) for shelf in store._shelves.values()) <= 12
        clock.now += 100
        store.metrics()
        assert (store.size, store._shelves) == (0, {})

    run(test())


@pytest.mark.parametrize("limits", [{"bytes": 0}, {"seconds": 0.0}, {"responses": -1}])
def test_limits_that_cannot_be(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(limits))} is"):
        StoreLimits(**limits)
