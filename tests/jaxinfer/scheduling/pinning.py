"""What pins promise, each as a scenario on a small pool of pages of four tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxinfer.scheduling.scheduler import SchedulerLimits
from tests.jaxinfer.scheduling.episodes import groups_of, run_episode
from tests.jaxinfer.scheduling.simulator import VOCAB, World

PAGE = 4
FIVE_MINUTES, HOUR = 300.0, 3600.0


def world(pages: int, **limits: Any) -> World:
    sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 128, **limits}
    return World(SchedulerLimits(**sizes), page_size=PAGE, num_pages=1 + pages)


def text(number: int, length: int) -> tuple[int, ...]:
    """Texts of different numbers differ from their first page on."""
    return tuple((number // VOCAB**i if i < 3 else number * i + i) % VOCAB for i in range(length))


def ask(w: World, prompt: tuple[int, ...], max_tokens: int = 1, **fields: Any) -> int:
    """Runs one request to its end: how many tokens of its prompt were cached."""
    before = w.scheduler.stats.prefix_hits
    w.submit(prompt, max_tokens=max_tokens, ignore_eos=True, **fields)
    while not w.idle:
        w.step()
    w.scheduler.check_integrity()
    return w.scheduler.stats.prefix_hits - before


def pinned(prompt: tuple[int, ...], ttl: float = FIVE_MINUTES) -> dict[str, Any]:
    return {"pins": ((len(prompt), ttl),)}


def flood(w: World, prompts: int = 12, length: int = 24) -> None:
    """Other prompts, which need all pages of the pool several times over."""
    for number in range(100, 100 + prompts):
        ask(w, text(number, length), salt=f"flood {w.clock}")


def outlives_a_flood() -> None:
    """A pinned prefix is found after it, one that is not pinned is gone."""
    w, a, b = world(16), text(1, 17), text(2, 17)
    ask(w, a, **pinned(a))
    ask(w, b)
    flood(w)
    assert (ask(w, a), ask(w, b)) == (16, 0)
    w.finish()


def ends_after_its_time() -> None:
    w, a = world(16), text(1, 17)
    ask(w, a, **pinned(a))
    w.clock += FIVE_MINUTES
    flood(w)
    assert ask(w, a) == 0
    assert w.scheduler.pins.stats == (0, 1, 1, 0)
    w.finish()


def begins_anew_with_each_hit() -> None:
    """Of its own tenant's, whether that one asks for a pin or not."""
    for again in ({}, pinned(text(1, 17))):
        w, a = world(16), text(1, 17)
        ask(w, a, **pinned(a))
        for _ in range(3):
            w.clock += 0.6 * FIVE_MINUTES
            flood(w, 4)
            assert ask(w, (*a, 3, 3), **again) == 16
        w.clock += FIVE_MINUTES
        flood(w)
        assert ask(w, a) == 0
        w.finish()


def is_not_kept_by_other_tenants() -> None:
    w, a = world(16), text(1, 17)
    ask(w, a, tenant="a", **pinned(a))
    w.clock += 0.6 * FIVE_MINUTES
    assert ask(w, a, tenant="b") == 16
    w.clock += 0.6 * FIVE_MINUTES
    flood(w)
    assert ask(w, a) == 0
    w.finish()


def makes_room_for_newer_ones_of_its_tenant() -> None:
    """The one that was not used for longest goes first."""
    w = world(32, max_pinned_ratio=0.5, max_pinned_ratio_per_tenant=0.75)  # 12 pages of one tenant
    a, b, c, d = (text(number, 17) for number in range(1, 5))
    for prompt in (a, b, c):
        ask(w, prompt, **pinned(prompt))
    assert ask(w, a) == 16  # used again
    ask(w, d, **pinned(d))
    flood(w)
    assert [ask(w, prompt) for prompt in (a, b, c, d)] == [16, 0, 16, 16]
    assert w.scheduler.pins.stats[1:] == (4, 0, 1)
    w.finish()


def leaves_other_tenants_theirs() -> None:
    """However much a tenant pins, it has its share and no more, and others keep what they have."""
    w = world(32, max_pinned_ratio=0.5, max_pinned_ratio_per_tenant=0.5)  # 8 pages of one tenant
    a, b = ([text(number + of, 17) for number in range(4)] for of in (1, 11))
    for prompt in a[:2]:
        ask(w, prompt, tenant="a", **pinned(prompt))
    for prompt in b:
        ask(w, prompt, tenant="b", **pinned(prompt))
    assert [(of.tenant, of.pins, of.pages) for of in w.scheduler.pins.by_tenant()] == [("a", 2, 8), ("b", 2, 8)]
    c = text(31, 17)
    ask(w, c, tenant="c", **pinned(c))  # all that may be pinned is
    flood(w)
    assert [ask(w, prompt) for prompt in (*a[:2], *b, c)] == [16, 16, 0, 0, 16, 16, 0]
    w.finish()


def is_shortened_to_its_share() -> None:
    w, a = world(32, max_pinned_ratio=0.25, max_pinned_ratio_per_tenant=0.5), text(1, 41)
    ask(w, a, **pinned(a))
    flood(w)
    assert ask(w, a) == 16
    w.finish()


def never_lets_anybody_wait() -> None:
    """With every page pinned a request runs at once and nobody is preempted; the pin that would end first gives way."""
    w = world(16, max_pinned_ratio=1.0, max_pinned_ratio_per_tenant=1.0)
    prompts = [text(number, 16) for number in range(1, 5)]
    for prompt, ttl in zip(prompts, (HOUR, FIVE_MINUTES, HOUR, HOUR), strict=True):
        ask(w, prompt, pins=((16, ttl),))
    assert w.scheduler.refresh_stats().pinned_pages == 16
    w.submit(text(50, 12), max_tokens=3, ignore_eos=True)
    assert [row.length for row in w.step().rows] == [12]
    w.finish_requests()
    assert w.scheduler.stats.preemptions == 0
    assert [ask(w, (*prompts[i], 3)) for i in (0, 2, 3)] == [16, 16, 16]
    assert w.scheduler.pins.stats.evicted == 1
    w.submit(text(51, 61), max_tokens=1)  # needs all of them
    assert [row.length for row in w.step().rows] == [61]
    w.finish_requests()
    assert w.scheduler.stats.preemptions == 0
    assert w.scheduler.pins.stats.pages == 0
    w.finish()


def does_not_give_way_for_nothing() -> None:
    """A pin whose pages a running request has gives none, so another one does."""
    w = world(16, max_pinned_ratio=1.0, max_pinned_ratio_per_tenant=1.0)
    a, b = text(1, 17), text(2, 17)
    ask(w, a, **pinned(a))
    ask(w, b, **pinned(b, HOUR))
    w.submit((*a, 1), max_tokens=12, ignore_eos=True)
    w.step()
    w.submit(text(50, 32), max_tokens=1)
    w.step()
    assert [pin.leaf.depth * PAGE for of in w.scheduler.pins._tenants.values() for pin in of.pins.values()] == [16]
    w.finish_requests()
    flood(w, 3)
    assert ask(w, a) == 16
    w.finish()


def is_lost_with_its_content() -> None:
    """What a failed request computed is pinned no more; what is forgotten neither."""
    w, a = world(32), text(1, 17)
    ask(w, a, **pinned(a))
    w.device.fail_every = 1
    ask(w, (*a, 1))
    assert w.scheduler.pins.stats == (0, 1, 0, 1)
    w.device.fail_every = 0
    ask(w, a, **pinned(a))
    w.scheduler.pool.clear_cache()
    assert w.scheduler.pins.stats == (0, 2, 0, 2)
    assert ask(w, a) == 0
    w.finish()


def keeps_the_answer() -> None:
    """The next turn of a conversation finds prompt and answer."""
    w, a = world(32), text(1, 18)
    ask(w, a, 12, pin_answer=FIVE_MINUTES)
    ((_, tokens),) = w.tokens.items()
    flood(w)
    assert ask(w, (*a, *tokens, 1, 2)) == 28
    w.finish()


def keeps_what_windows_need() -> None:
    """Layers with windows need their last pages alone, and those too."""
    for pin, cached in ((pinned(text(1, 32)), 32), ({}, 0)):
        w, a = world(48, cache_groups=groups_of("half windows"), max_num_batched_tokens=8), text(1, 37)
        ask(w, a, **pin)
        flood(w)
        assert ask(w, a[:33]) == cached
        w.finish()


def is_not_made_where_windows_cannot_be_shortened() -> None:
    """What is too long for its tenant's share ends no other pin."""
    w = world(48, cache_groups=groups_of("half windows"), max_num_batched_tokens=8, max_pinned_ratio=0.5)
    a, b = text(1, 17), text(2, 61)
    ask(w, a, **pinned(a))
    ask(w, b, **pinned(b))
    assert w.scheduler.pins.stats[1:] == (1, 0, 0)
    flood(w)
    assert ask(w, a) == 16
    w.finish()


def plans_are_the_same_without() -> None:
    """Where no prompt shares anything, pins change no plan but the numbers of pages."""
    pins = 0
    for seed in range(20):
        worlds = []
        for ratio in (0.0, 1.0):
            w = world(20, max_pinned_ratio=ratio, max_pinned_ratio_per_tenant=1.0, max_num_batched_tokens=16)
            for i in range(12):
                length = (seed * 7 + i * 5) % 30 + 1
                w.submit(text(i, length), max_tokens=seed % 9 + 1, salt=str(i), pins=((length, 9.0),), pin_answer=2.0)
                for _ in range(seed % 4):
                    w.step()
            w.finish()
            worlds.append(w)
        plans = [[[(r.request_id, r.start, r.length, r.draws) for r in p.rows] for p in w.plans] for w in worlds]
        assert plans[0] == plans[1]
        pins += worlds[1].scheduler.pins.stats.made
    assert pins > 60


def books_add_up() -> None:
    for seed in range(30):
        layers = ("uniform", "half windows", "two windows")[seed % 3]
        run_episode(seed, tenants=("", "a", "b"), pinning=0.7, fail_every=seed % 2 * 23, layers=layers)


SCENARIOS: dict[str, Callable[[], None]] = {
    f.__name__: f
    for f in (
        outlives_a_flood,
        ends_after_its_time,
        begins_anew_with_each_hit,
        is_not_kept_by_other_tenants,
        makes_room_for_newer_ones_of_its_tenant,
        leaves_other_tenants_theirs,
        is_shortened_to_its_share,
        never_lets_anybody_wait,
        does_not_give_way_for_nothing,
        is_lost_with_its_content,
        keeps_the_answer,
        keeps_what_windows_need,
        is_not_made_where_windows_cannot_be_shortened,
        plans_are_the_same_without,
        books_add_up,
    )
}
