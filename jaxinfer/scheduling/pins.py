"""Pins: prefixes whose pages stay in the prefix cache for a time, though nobody uses them.

A request may ask for pins of its own prompt's prefix. Until a pin ends its pages are not evicted before others that
nobody owns. It ends when its time is over, which begins anew with each request of its tenant that hits all of it; or
early: when its tenant's newer pins need its room (the least recently used goes first), when running requests need a
page that only pins hold (the one that would end first goes first), or when its content is taken back. So a pin costs
other tenants and running requests nothing: all pinned pages that nobody owns count as available.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from heapq import heappop, heappush, heapreplace

from jaxinfer.messages import PinStats, TenantPins
from jaxinfer.scheduling.page_pool import IntegrityError, PagePool
from jaxinfer.scheduling.prefix_table import PrefixNode

REPORT_SECONDS = 1.0  # between two reports, while the engine is busy


class Pin:
    """The prefix up to `leaf` (of the first group of layers) for one tenant. pages: of all groups, from the root on, by
    their bundles' first pages. ttl: seconds from a hit on. expires: when it ends, by the clock of its `Pins`."""

    __slots__ = ("alive", "expires", "leaf", "pages", "tenant", "ttl")

    def __init__(self, tenant: str, leaf: PrefixNode, pages: list[int], ttl: float, expires: float) -> None:
        self.tenant = tenant
        self.leaf = leaf
        self.pages = pages
        self.ttl = ttl
        self.expires = expires
        self.alive = True


class _Tenant:
    """One tenant's pins, the least recently used first. holders: how many of them hold each page. pages: all that they
    hold, each counted once."""

    __slots__ = ("holders", "pages", "pins")

    def __init__(self) -> None:
        self.pins: OrderedDict[PrefixNode, Pin] = OrderedDict()
        self.holders: dict[int, int] = {}
        self.pages = 0


class Pins:
    """All pins of a pool. max_pages: that pins hold together, at most. max_pages_per_tenant: that one tenant's do; a
    page that several tenants pin counts for each. clock: seconds.

    A tenant never ends another one's pins by pinning: what does not fit beside those is pinned up to where it fits.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        max_pages: int,
        max_pages_per_tenant: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self.max_pages = max_pages
        self.max_pages_per_tenant = min(max_pages, max_pages_per_tenant)
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}
        self._pages = 0  # that pins hold, each counted once
        self._ends: list[tuple[float, int, Pin]] = []  # a heap with each pin once, under a time when it lived still
        self._made = self._expired = self._evicted = 0
        self._news, self._told = False, -REPORT_SECONDS
        pool.pinning = self

    def __bool__(self) -> bool:
        return bool(self._tenants)

    @property
    def stats(self) -> PinStats:
        return PinStats(self._pages, self._made, self._expired, self._evicted)

    # -- beginning -----------------------------------------------------------------------------------------------------

    def make(self, tenant: str, leaf: PrefixNode, pages: list[int], ttl: float, *, whole: bool = False) -> int:
        """Pins a prefix for `ttl` seconds, or makes its pin last that long from now; how many tokens' pages of it are
        pinned now. pages: see `Pin`. whole: it cannot be shortened to what there is room for."""
        if whole and self._sum(pages) > self.max_pages_per_tenant:
            return 0  # others would end for nothing
        of = self._tenants.get(tenant)
        pin = None if of is None else of.pins.get(leaf)
        if of is None or pin is None:
            of = self._tenants.setdefault(tenant, _Tenant())
            pin = self._begin(of, Pin(tenant, leaf, pages, ttl, self._clock() + ttl))
            self._fit(of, pin, whole)
            if not of.pins:
                self._tenants.pop(tenant, None)
            if not pin.alive:
                return 0
            self._made += 1
            heappush(self._ends, (pin.expires, self._made, pin))
        else:
            pin.ttl = max(pin.ttl, ttl)
            self._use(of, pin)
        return pin.leaf.depth * self._pool.page_size

    def _begin(self, of: _Tenant, pin: Pin) -> Pin:
        self._news = True
        pool, holders = self._pool, of.holders
        for page in pin.pages:
            holding = holders[page] = holders.get(page, 0) + 1
            if holding == 1:
                size = len(pool.bundle(page))
                of.pages += size
                self._pages += size * pool.pin(page)
        # Shorter pins of the same text that end no later are part of this one.
        node, left = pin.leaf.parent, len(of.pins)
        while node is not None and left:
            known = of.pins.get(node)
            if known is not None:
                left -= 1
                if known.ttl <= pin.ttl:
                    self._end(known)
            node = node.parent
        of.pins[pin.leaf] = pin
        return pin

    def _fit(self, of: _Tenant, pin: Pin, whole: bool) -> None:
        """Ends the tenant's other pins, the least recently used first, and then shortens the new one, until the bounds
        are kept."""
        while self._beyond(of) and next(iter(of.pins.values())) is not pin:
            self._evicted += 1
            self._end(next(iter(of.pins.values())))
        if not self._beyond(of):
            return
        if whole:
            self._end(pin)
            return
        del of.pins[pin.leaf]
        while pin.pages and self._beyond(of):
            self._let_go(of, pin.pages.pop())
            assert pin.leaf.parent is not None
            pin.leaf = pin.leaf.parent
        pin.alive = bool(pin.pages)
        if pin.alive:
            of.pins[pin.leaf] = pin

    def _beyond(self, of: _Tenant) -> bool:
        return of.pages > self.max_pages_per_tenant or self._pages > self.max_pages

    def hit(self, tenant: str, node: PrefixNode | None) -> None:
        """A request of the tenant's shares the pages up to `node`, of the first group: pins of those last longer."""
        of = self._tenants.get(tenant)
        left = 0 if of is None else len(of.pins)
        while of is not None and left and node is not None:
            pin = of.pins.get(node)
            if pin is not None:
                left -= 1
                self._use(of, pin)
            node = node.parent

    def _use(self, of: _Tenant, pin: Pin) -> None:
        self._news = True
        pin.expires = max(pin.expires, self._clock() + pin.ttl)
        of.pins.move_to_end(pin.leaf)

    # -- ending --------------------------------------------------------------------------------------------------------

    @property
    def next_end(self) -> float | None:
        """Seconds until `expire` may have something to do; None where there are no pins."""
        self._settle()
        return max(0.0, self._ends[0][0] - self._clock()) if self._ends else None

    def expire(self) -> int:
        """Ends the pins whose time is over; how many."""
        now, before = self._clock(), self._expired
        while self._settle() and self._ends[0][0] <= now:
            self._expired += 1
            self._end(heappop(self._ends)[2])
        return self._expired - before

    def _settle(self) -> bool:
        """Makes the heap's first entry that of the pin that ends first; whether there is one."""
        ends = self._ends
        while ends:
            expires, number, pin = ends[0]
            if not pin.alive:
                heappop(ends)
            elif pin.expires > expires:
                heapreplace(ends, (pin.expires, number, pin))
            else:
                return True
        return False

    def give_way(self) -> bool:
        """Ends the pin that would end first of those that hold a page that nobody owns; False where there is none."""
        passed = []
        found = False
        while not found and self._settle():
            entry = heappop(self._ends)
            found = any(not self._pool.is_owned(page) for page in reversed(entry[2].pages))
            if found:
                self._evicted += 1
                self._end(entry[2])
            else:
                passed.append(entry)
        for entry in passed:
            heappush(self._ends, entry)
        return found

    def lose(self, pages: Collection[int]) -> None:
        """Ends all pins that hold one of these pages, whose content is about to be taken back."""
        gone = set(pages)
        for of in list(self._tenants.values()):
            for pin in [pin for pin in of.pins.values() if not gone.isdisjoint(pin.pages)]:
                self._evicted += 1
                self._end(pin)

    def _end(self, pin: Pin) -> None:
        self._news = True
        of = self._tenants[pin.tenant]
        pin.alive = False
        del of.pins[pin.leaf]
        for page in reversed(pin.pages):  # so that prefixes outlive their tails
            self._let_go(of, page)
        if not of.pins and not of.pages:
            del self._tenants[pin.tenant]

    def _let_go(self, of: _Tenant, page: int) -> None:
        of.holders[page] -= 1
        if not of.holders[page]:
            del of.holders[page]
            size = len(self._pool.bundle(page))
            of.pages -= size
            self._pages -= size * self._pool.unpin(page)

    # -- told and checked ----------------------------------------------------------------------------------------------

    def report(self, *, idle: bool) -> tuple[TenantPins, ...] | None:
        """`by_tenant`, when that is news. idle: no step is in flight."""
        if not self._news or (not idle and self._clock() - self._told < REPORT_SECONDS):
            return None
        self._news, self._told = False, self._clock()
        return self.by_tenant()

    def by_tenant(self) -> tuple[TenantPins, ...]:
        """What each tenant has pinned."""
        now = self._clock()
        return tuple(
            TenantPins(
                name,
                len(of.pins),
                of.pages,
                self.max_pages_per_tenant,
                max((pin.leaf.depth for pin in of.pins.values()), default=0) * self._pool.page_size,
                max((pin.expires - now for pin in of.pins.values()), default=0.0),
            )
            for name, of in self._tenants.items()
        )

    def check_integrity(self) -> None:
        """Raises IntegrityError unless pins, pages and bounds add up."""
        pool, counts = self._pool, [0] * self._pool.num_pages
        for name, of in self._tenants.items():
            holders: dict[int, int] = {}
            for leaf, pin in of.pins.items():
                if not pin.alive or pin.leaf is not leaf or pin.tenant != name or not pin.pages:
                    raise IntegrityError(f"the pin of {name!r} up to page {leaf.depth} is not what it is kept as")
                self._check_pages(pin)
                for page in pin.pages:
                    holders[page] = holders.get(page, 0) + 1
            if holders != of.holders or self._sum(holders) != of.pages or not of.pins:
                raise IntegrityError(f"the pages that {name!r} pins do not add up")
            if of.pages > self.max_pages_per_tenant:
                raise IntegrityError(f"{name!r} pins {of.pages} pages of {self.max_pages_per_tenant}")
            for page in holders:
                counts[page] += 1
        pool.check_pins(counts)
        pages = self._sum([page for page, count in enumerate(counts) if count])
        if pages != self._pages or pages > self.max_pages:
            raise IntegrityError(f"{pages} pages are pinned, {self._pages} were counted, of {self.max_pages}")
        alive = sorted(id(pin) for of in self._tenants.values() for pin in of.pins.values())
        if sorted(id(pin) for _, _, pin in self._ends if pin.alive) != alive:
            raise IntegrityError("a pin has no end, or two")

    def _check_pages(self, pin: Pin) -> None:
        for page in pin.pages:
            node = self._pool.content_of(page)
            if node is None or node.page != page or node.depth > pin.leaf.depth:
                raise IntegrityError(f"the pin of {pin.tenant!r} up to page {pin.leaf.depth} holds page {page}, {node}")

    def _sum(self, pages: Collection[int]) -> int:
        return sum(len(self._pool.bundle(page)) for page in pages)
