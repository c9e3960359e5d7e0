"""Fair shares of a busy engine: how much each tenant was served, and whose turn it is.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", arXiv:2401.00588): every tenant has
a counter of the tokens computed for it, divided by its weight, and whoever has the lowest goes next. A tenant that was
away does not come back with credit for the time: its counter is lifted to the others' lowest, less `burst`. That
allowance is ours: without it the second half of a long prompt would wait its turn behind a tenant that floods the
engine, although its sender has hardly used it.

Within a tenant the order is `Request.order`, and where only one tenant has requests nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import nsmallest

from jaxinfer.scheduling.request import Request, Sequence
from jaxinfer.scheduling.tenant import Tenant


class Tenants:
    """Every tenant that ever had a request, and their waiting sequences. burst: see above, in prompt tokens' worth."""

    def __init__(self, burst: float) -> None:
        self._burst = burst
        self._all: dict[str, Tenant[Sequence]] = {}
        self.alive: list[Tenant[Sequence]] = []  # those with requests
        self.num_waiting = 0  # sequences
        self._weights: float | None = 0.0  # of those alive together; None: to be added up anew
        self._parked: dict[int, Request] = {}  # by id(): those with parked sequences
        self._last = 0.0  # service of whoever left the engine idle

    # -- coming and going -----------------------------------------------------------------------------------------

    def join(self, name: str, weight: float, sequences: int) -> Tenant[Sequence]:
        """A request of so many sequences arrives. Its tenant's newest weight holds."""
        tenant = self._all.get(name)
        if tenant is None:
            tenant = self._all[name] = Tenant(name)
        tenant.weight = weight
        self._weights = None
        others = [other.service for other in self.alive if other is not tenant]
        if others or not tenant.alive:
            least = min(others) if others else self._last
            tenant.service = max(tenant.service, least - self._burst / weight)
        if not tenant.alive:
            self.alive.append(tenant)
        tenant.alive += sequences
        return tenant

    def leave(self, tenant: Tenant[Sequence]) -> None:
        """One of its sequences has ended."""
        tenant.alive -= 1
        if not tenant.alive:
            self.alive.remove(tenant)
            self._weights = None
            self._last = max(self._last, tenant.service)

    @property
    def contended(self) -> bool:
        """More than one tenant has requests."""
        return len(self.alive) > 1

    def share(self, tenant: Tenant[Sequence], total: int) -> int:
        """The part of `total` slots or pages that is the tenant's among those that have requests; at least one."""
        if self._weights is None:
            self._weights = sum(other.weight for other in self.alive)
        return max(1, int(total * tenant.weight / self._weights))

    def below_share(self, tenant: Tenant[Sequence], total: int) -> bool:
        """Whether the tenant holds less than its share of `total` pages."""
        return tenant.pages < self.share(tenant, total)

    def over_share(
        self, tenant: Tenant[Sequence], running: list[Sequence], total: int, held: Callable[[Tenant[Sequence]], int]
    ) -> Sequence | None:
        """The last running sequence of whoever holds more than its share of `total` and was served more than `tenant`;
        of several such tenants, of the one that was served most. None: there is none."""
        over = [
            other for other in self.alive if other.service > tenant.service and held(other) > self.share(other, total)
        ]
        if not over:
            return None
        most = max(over, key=lambda other: other.service)
        return next(sequence for sequence in reversed(running) if sequence.request.tenant is most)

    # -- who waits ------------------------------------------------------------------------------------------------

    def enqueue(self, sequence: Sequence) -> None:
        sequence.request.tenant.waiting.add(sequence)
        self.num_waiting += 1

    def dequeue(self, sequence: Sequence) -> None:
        """It waits no longer, parked or not."""
        request = sequence.request
        if sequence in request.parked:
            request.parked.remove(sequence)
            if not request.parked:
                del self._parked[id(request)]
        else:
            request.tenant.waiting.remove(sequence)
        self.num_waiting -= 1

    def park(self, sequences: list[Sequence]) -> None:
        """Sequences of one request that wait and cannot start before `unpark`: until then nobody looks at them."""
        request = sequences[0].request
        request.parked = sequences
        self._parked[id(request)] = request
        self.num_waiting += len(sequences)

    def unpark(self, request: Request) -> None:
        request.tenant.waiting.update(request.parked)
        request.parked = []
        del self._parked[id(request)]

    def waiting(self) -> Iterator[Sequence]:
        """All of them, in no order."""
        for tenant in self.alive:
            yield from tenant.waiting
        for request in self._parked.values():
            yield from request.parked

    def least_served(self) -> list[Tenant[Sequence]]:
        """Those with waiting sequences, the least served first."""
        return sorted((tenant for tenant in self.alive if tenant.waiting), key=_turn)

    def first_in_line(self, most: int) -> list[Sequence]:
        """Who waits longest of each of the least served tenants, in the order of their turns."""
        tenants = nsmallest(most, (tenant for tenant in self.alive if tenant.waiting), key=_turn)
        return [tenant.waiting[0] for tenant in tenants]

    def turns(self, prefilling: Iterable[Sequence]) -> Turns:
        """prefilling: running sequences that a step must serve, by order."""
        return Turns(self.alive, prefilling)


def slots_of(tenant: Tenant[Sequence]) -> int:
    return tenant.running


def pages_of(tenant: Tenant[Sequence]) -> int:
    return tenant.pages


def _turn(tenant: Tenant[Sequence]) -> tuple[float, int]:
    return tenant.service, tenant.running


class _Queue:
    """One tenant's turn in a step: its `prefilling`, then its waiting sequences, each by order."""

    __slots__ = ("next_prefilling", "next_waiting", "open", "prefilling", "tenant")

    def __init__(self, tenant: Tenant[Sequence]) -> None:
        self.tenant = tenant
        self.prefilling: list[Sequence] = []
        self.next_prefilling = self.next_waiting = 0
        self.open = True  # its waiting sequences may still come in this step

    @property
    def empty(self) -> bool:
        if self.next_prefilling < len(self.prefilling):
            return False
        return not self.open or self.next_waiting >= len(self.tenant.waiting)


class Turns:
    """Deals out one step: always the next sequence of the least served tenant, as services stand at that moment.

    A sequence that is taken out of the waiting ones must leave `Tenant.waiting` or be passed by `skip`.
    """

    def __init__(self, tenants: list[Tenant[Sequence]], prefilling: Iterable[Sequence]) -> None:
        self._queues = {id(tenant): _Queue(tenant) for tenant in tenants}
        self._only = next(iter(self._queues.values())) if len(self._queues) == 1 else None
        for sequence in prefilling:
            self._queues[id(sequence.request.tenant)].prefilling.append(sequence)

    def fill(self) -> tuple[Sequence, bool] | None:
        """A sequence, and whether it waits; None when nobody is left."""
        queue = self._only
        if queue is None:
            queue = min((q for q in self._queues.values() if not q.empty), key=_turn_of, default=None)
        if queue is None or queue.empty:
            return None
        self._current = queue
        if queue.next_prefilling < len(queue.prefilling):
            queue.next_prefilling += 1
            return queue.prefilling[queue.next_prefilling - 1], False
        return queue.tenant.waiting[queue.next_waiting], True

    def skip(self) -> None:
        """The one that was taken cannot start yet; others of its tenant may."""
        self._current.next_waiting += 1

    def close(self, *, all_tenants: bool) -> None:
        """Nobody who waits comes in any more in this step: of the current tenant, or of all."""
        for queue in self._queues.values() if all_tenants else [self._current]:
            queue.open = False


def _turn_of(queue: _Queue) -> tuple[float, int]:
    return queue.tenant.service, queue.tenant.running
