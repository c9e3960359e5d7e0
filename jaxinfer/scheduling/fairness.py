"""The fairness policy: who is next, and who gives way. Tenants' services decide, and with one tenant the order alone.

Planning asks it and obeys; nothing else in a step depends on tenants.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Protocol

from jaxinfer.scheduling.kv_manager import KVManager
from jaxinfer.scheduling.limits import SchedulerLimits
from jaxinfer.scheduling.request import Sequence
from jaxinfer.scheduling.tenant import Tenant
from jaxinfer.scheduling.tenants import Tenants, Turns, pages_of, slots_of


class Room(Protocol):
    """What the policy must know of slots and pages."""

    limits: SchedulerLimits
    kv: KVManager

    @property
    def free_slots(self) -> Collection[int]: ...

    @property
    def running(self) -> list[Sequence]: ...

    def reserved(self, prefilling: Iterable[Sequence]) -> int:
        """Pages that running sequences, those of them that are behind above all, are about to need."""
        ...

    def headroom(self, running: int) -> int:
        """Pages left free for so many running sequences to grow into."""
        ...

    def missing(self, sequence: Sequence) -> int:
        """The available pages that a waiting sequence's admission takes."""
        ...


class Fairness:
    """Virtual token counters (see `Tenants`) as a policy of one scheduler."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    @property
    def contended(self) -> bool:
        """Whether more than one tenant has requests; else there is nobody to make way for."""
        return self._tenants.contended

    def turns(self, prefilling: Iterable[Sequence]) -> Turns:
        """Who is next in a step, one after the other; behind: running sequences that it must serve, by order."""
        return self._tenants.turns(prefilling)

    def all_wait(self, sequence: Sequence, usable: int) -> bool:
        """Whether nobody who waits may come in before a sequence whose turn it is and which does not fit into the
        `usable` pages now; else other tenants may.

        In order: nobody overtakes, so that a long prompt is not starved by short ones. Other tenants may while this
        one, though it was served least, has its share of the pages.
        """
        return self._tenants.below_share(sequence.request.tenant, usable)

    def first_in_line(self, most: int) -> list[Sequence]:
        """Who comes in next, as things stand: of up to `most` tenants one each."""
        return self._tenants.first_in_line(most)

    def victim(self, running: list[Sequence], planned: Collection[Sequence]) -> Sequence:
        """Who gives its pages to those that grow: the last one, of the tenant that was served most. planned: sequences
        that cannot any more in this step."""
        last = (sequence for sequence in reversed(running) if sequence not in planned)
        if self._tenants.contended:
            return max(last, key=lambda sequence: (sequence.request.tenant.service, sequence.order))
        return next(last)

    def make_way(self, room: Room, may_start: Callable[[Sequence], bool]) -> Iterator[Sequence]:
        """Whom to preempt, each before the next is asked for, so that tenants that wait with less than their share of
        slots and pages can come in: those who have more than their own and were served more. A tenant that floods the
        engine thus holds nobody else up for longer than a step."""
        kv, pool, all_slots = room.kv, room.kv.pool, room.limits.max_num_seqs
        limits = ((all_slots, slots_of), (pool.usable_pages, pages_of))
        slots, available = len(room.free_slots), pool.available
        # Pages for those whom way is made for in this step: at most so many. Prefixes make them less, and are looked up
        # only where that matters; `counted` holds whose prefix was not.
        needed, counted = 0, list[Sequence]()
        reserved: int | None = None  # pages that are spoken for
        for tenant in self._tenants.least_served():
            most = self._tenants.share(tenant, pool.usable_pages) - tenant.pages
            for sequence in self._next_to_start(tenant, all_slots, may_start):
                wanted = kv.needs(sequence.num_tokens)
                if wanted > most:
                    break
                reserved = room.reserved(room.running) if reserved is None else reserved
                needed += wanted
                counted.append(sequence)
                while not slots or needed + reserved > available:
                    victim = self._tenants.over_share(tenant, room.running, *limits[bool(slots)])
                    if not slots and victim is None:
                        return
                    if counted:
                        needed -= sum(kv.needs(s.num_tokens) - room.missing(s) for s in counted)
                        counted.clear()
                        if slots:
                            continue
                    if victim is None:
                        return
                    running = len(room.running)
                    reserved += room.headroom(running - 1) - room.headroom(running)
                    reserved -= kv.lacks(victim, victim.num_tokens)
                    yield victim
                    slots, available = slots + 1, pool.available
                slots, most = slots - 1, most - wanted

    def _next_to_start(
        self, tenant: Tenant[Sequence], slots: int, may_start: Callable[[Sequence], bool]
    ) -> list[Sequence]:
        """Those of a tenant's waiting sequences that could start, as many as its share of `slots` has room for."""
        room = self._tenants.share(tenant, slots) - tenant.running
        return list(islice(filter(may_start, tenant.waiting), max(0, room)))
