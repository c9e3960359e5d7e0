"""Whose grammar is compiled next."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Gives tenants their turn, one after the other, and none of them more than so many places at a time: however many
    costly grammars one has sent, another one's waits for no more than those that are being compiled, and mostly for
    none. A tenant's own come in their order.

    each: the places that one tenant may have.
    """

    def __init__(self, each: int) -> None:
        self._each = each
        self._waiting: OrderedDict[str, deque[Item]] = OrderedDict()  # by tenant; the one at the front is next
        self._busy = Counter[str]()

    def put(self, tenant: str, item: Item) -> None:
        self._waiting.setdefault(tenant, deque()).append(item)

    def take(self) -> tuple[str, Item] | None:
        """The next tenant with what it waits for, which has a place from now on; None where none may go on."""
        tenant = next((name for name in self._waiting if self._busy[name] < self._each), None)
        if tenant is None:
            return None
        items = self._waiting.pop(tenant)
        item = items.popleft()
        if items:
            self._waiting[tenant] = items  # behind the others
        self._busy[tenant] += 1
        return tenant, item

    def done(self, tenant: str) -> None:
        """It gives a place back."""
        self._busy[tenant] -= 1
        if not self._busy[tenant]:
            del self._busy[tenant]
