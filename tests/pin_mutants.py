"""Seeded faults in pins: for each of their rules a plausible mistake, which one of the scenarios must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jaxinfer.scheduling.kv_manager import KVManager
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.pins import Pins


def pinned_pages_are_evicted(patch: pytest.MonkeyPatch) -> None:
    """Nothing is kept: a pin is a note in the books."""
    patch.setattr(Pins, "make", lambda self, *pin, whole=False: pin[1].depth * self._pool.page_size)


def released_into_eviction(patch: pytest.MonkeyPatch) -> None:
    """A pinned page whose last owner leaves is put among those that are evicted."""
    release = PagePool.release

    def careless(self: Any, pages: Any) -> None:
        pins, self._pins = self._pins, [0] * self.num_pages
        release(self, pages)
        self._pins = pins

    patch.setattr(PagePool, "release", careless)


def pinned_pages_are_taken(patch: pytest.MonkeyPatch) -> None:
    """Pinned pages do not count as available, so requests wait for them."""
    count = PagePool.available.fget
    assert count is not None
    patch.setattr(PagePool, "available", property(lambda self: count(self) - self._pinned))


def unpinned_pages_are_lost(patch: pytest.MonkeyPatch) -> None:
    """A page that was pinned is not given back to those that may be evicted."""
    unpin = PagePool.unpin

    def leaking(self: Any, page: int) -> bool:
        self._cache, cache = lambda page: None, self._cache
        last = unpin(self, page)
        self._cache = cache
        return last

    patch.setattr(PagePool, "unpin", leaking)


def pins_never_end(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks at the clock."""
    patch.setattr(Pins, "expire", lambda self: 0)


def hits_do_not_count(patch: pytest.MonkeyPatch) -> None:
    """Only a request that asks for the pin makes it last longer."""
    patch.setattr(Pins, "hit", lambda self, tenant, node: None)


def asking_again_does_not_count(patch: pytest.MonkeyPatch) -> None:
    """A pin ends when its first time is over, however often it is used."""
    patch.setattr(Pins, "_use", lambda self, of, pin: of.pins.move_to_end(pin.leaf))


def everybodys_hits_count(patch: pytest.MonkeyPatch) -> None:
    """Another tenant's hit makes a pin last longer."""
    hit = Pins.hit

    def all_of_them(self: Any, tenant: str, node: Any) -> None:
        for name in self._tenants:
            hit(self, name, node)

    patch.setattr(Pins, "hit", all_of_them)


def oldest_first(patch: pytest.MonkeyPatch) -> None:
    """The pin that was made first goes first, not the one that was used least recently."""

    def use(self: Any, of: Any, pin: Any) -> None:
        pin.expires = max(pin.expires, self._clock() + pin.ttl)

    patch.setattr(Pins, "_use", use)


def no_bound_per_tenant(patch: pytest.MonkeyPatch) -> None:
    """One tenant may pin all that may be pinned."""
    patch.setattr(Pins, "_beyond", lambda self, of: self._pages > self.max_pages)


def no_bound_for_all(patch: pytest.MonkeyPatch) -> None:
    """Tenants' shares add up to more than may be pinned."""
    patch.setattr(Pins, "_beyond", lambda self, of: of.pages > self.max_pages_per_tenant)


def others_make_room(patch: pytest.MonkeyPatch) -> None:
    """A new pin ends those of other tenants."""
    fit = Pins._fit

    def greedy(self: Any, of: Any, pin: Any, whole: bool) -> None:
        for other in [pin for each in self._tenants.values() if each is not of for pin in each.pins.values()]:
            if self._beyond(of):
                self._evicted += 1
                self._end(other)
        fit(self, of, pin, whole)

    patch.setattr(Pins, "_fit", greedy)


def long_ones_do_not_fit(patch: pytest.MonkeyPatch) -> None:
    """A prefix that is longer than its tenant's share is not pinned at all."""
    fit = Pins._fit
    patch.setattr(Pins, "_fit", lambda self, of, pin, whole: fit(self, of, pin, True))


def last_gives_way_first(patch: pytest.MonkeyPatch) -> None:
    """The pin that would live longest gives way."""

    def give_way(self: Any) -> bool:
        pins = [pin for of in self._tenants.values() for pin in of.pins.values()]
        pins = [pin for pin in pins if any(not self._pool.is_owned(page) for page in pin.pages)]
        if pins:
            self._evicted += 1
            self._end(max(pins, key=lambda pin: pin.expires))
        return bool(pins)

    patch.setattr(Pins, "give_way", give_way)


def nobody_gives_way(patch: pytest.MonkeyPatch) -> None:
    """Pins are kept whatever running requests need."""
    patch.setattr(Pins, "give_way", lambda self: False)


def gives_way_for_nothing(patch: pytest.MonkeyPatch) -> None:
    """A pin ends although running requests have all of its pages."""
    give_way = Pins.give_way

    def blind(self: Any) -> bool:
        self._pool.is_owned, known = lambda page: False, self._pool.is_owned
        found = give_way(self)
        self._pool.is_owned = known
        return found

    patch.setattr(Pins, "give_way", blind)


def withdrawn_but_pinned(patch: pytest.MonkeyPatch) -> None:
    """What was withdrawn stays pinned."""
    patch.setattr(Pins, "lose", lambda self, pages: None)


def answers_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Of a session the prompt alone is pinned."""
    patch.setattr(KVManager, "pin_answer", lambda self, sequence: None)


def first_group_alone(patch: pytest.MonkeyPatch) -> None:
    """Of layers with windows nothing is pinned."""
    make = Pins.make

    def partly(self: Any, tenant: str, leaf: Any, pages: list[int], ttl: float, *, whole: bool = False) -> int:
        found: int = make(self, tenant, leaf, pages[: leaf.depth], ttl, whole=whole)
        return found

    patch.setattr(Pins, "make", partly)


PIN_MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    f.__name__: f
    for f in (
        pinned_pages_are_evicted,
        released_into_eviction,
        pinned_pages_are_taken,
        unpinned_pages_are_lost,
        pins_never_end,
        hits_do_not_count,
        asking_again_does_not_count,
        everybodys_hits_count,
        oldest_first,
        no_bound_per_tenant,
        no_bound_for_all,
        others_make_room,
        long_ones_do_not_fit,
        last_gives_way_first,
        nobody_gives_way,
        gives_way_for_nothing,
        withdrawn_but_pinned,
        answers_are_forgotten,
        first_group_alone,
    )
}
