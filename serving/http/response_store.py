"""Responses that clients may come back to, in memory: bounded in number and bytes, for a time, each tenant its own.

A response goes on from another by that one's id, so a conversation is a chain. What an answer was given and what it
said are runs of items, encoded once; every response of a chain holds the runs before it, so that those outlive the
responses that they came with, and a long conversation is kept once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from jaxinfer.config import ConfigError

DEFAULT_BYTES, DEFAULT_SECONDS, MAX_RESPONSES = 256 << 20, 3600.0, 16384
_SWEEP_SECONDS = 30.0  # between two looks for responses whose time is over
_OVERHEAD = 1024  # bytes that a response takes beside its JSON, about
_PER_ITEM, _PER_RUN = 256, 128  # an id's place in the index; a run's, and each chain's reference to it


@dataclass(frozen=True)
class StoreLimits:
    """bytes: of all responses together. seconds: since a response was last used. Raises ConfigError."""

    bytes: int = DEFAULT_BYTES
    seconds: float = DEFAULT_SECONDS
    responses: int = MAX_RESPONSES

    def __post_init__(self) -> None:
        for name in ("bytes", "seconds", "responses"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"response store: {name} is {getattr(self, name)}; it must be positive")


@dataclass(slots=True, eq=False)
class Run:
    """Items of one request or of one answer, as the JSON of a list. holders: stored responses that have it."""

    data: bytes
    holders: int = 0

    def items(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = msgspec.json.decode(self.data)
        return found


@dataclass(slots=True, eq=False)
class StoredResponse:
    """One response. head: its JSON object without `output`. before: the runs of the responses that it goes on from."""

    id: str
    head: bytes
    before: tuple[Run, ...]
    given: Run
    output: Run
    item_ids: tuple[str, ...]  # of given and output
    used: float = 0.0  # time.monotonic()

    @property
    def runs(self) -> tuple[Run, ...]:
        """The whole conversation."""
        return (*self.before, self.given, self.output)

    @property
    def json(self) -> bytes:
        """The response as it was answered."""
        return self.head[:-1] + b',"output":' + self.output.data + b"}"

    @property
    def own_size(self) -> int:
        """Bytes, without its runs'."""
        return _OVERHEAD + len(self.head) + _PER_ITEM * len(self.item_ids) + _PER_RUN * len(self.before)


class _Shelf:
    """A tenant's responses, those used last at the end."""

    def __init__(self) -> None:
        self.responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self.by_item: dict[str, StoredResponse] = {}
        self.size = 0  # bytes that its responses account for


class ResponseStore:
    """Threads may look up, the event loop alone adds. clock: seconds that only grow."""

    def __init__(self, limits: StoreLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._shelves: dict[str, _Shelf] = {}
        self._lock = threading.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._count = 0
        self.size = 0  # bytes
        self.evicted = 0  # responses that gave way to others before their time

    def __len__(self) -> int:
        return self._count

    def metrics(self) -> dict[str, float]:
        with self._lock:
            self._expire_all()
            return {
                "response_store_responses": len(self),
                "response_store_bytes": self.size,
                "response_store_evicted_total": self.evicted,
            }

    # -- looking up -----------------------------------------------------------------------------------------------

    def get(self, tenant: str, response_id: str) -> StoredResponse | None:
        """Looking at a response is using it."""
        with self._lock:
            shelf = self._shelf(tenant)
            return None if shelf is None else self._used(shelf, shelf.responses.get(response_id))

    def holder(self, tenant: str, item_id: str) -> StoredResponse | None:
        """The response that the item was given to or said by."""
        with self._lock:
            shelf = self._shelf(tenant)
            return None if shelf is None else self._used(shelf, shelf.by_item.get(item_id))

    def _shelf(self, tenant: str) -> _Shelf | None:
        """Without what has expired."""
        shelf = self._shelves.get(tenant)
        if shelf is not None:
            self._expire(shelf)
        return shelf

    def _used(self, shelf: _Shelf, response: StoredResponse | None) -> StoredResponse | None:
        if response is not None:
            response.used = self._clock()
            shelf.responses.move_to_end(response.id)
        return response

    # -- changing -------------------------------------------------------------------------------------------------

    def put(self, tenant: str, response: StoredResponse) -> bool:
        """False where it alone is larger than all may be. Others give way to it: the one that was not used for longest
        of the tenant that has most, so that nobody's flood takes another's conversations."""
        alone = response.own_size + sum(_run_size(run) for run in set(response.runs))
        if alone > self._limits.bytes:
            return False
        with self._lock:
            shelf = self._shelf(tenant) or _Shelf()
            self._remove(shelf, response.id)
            self._shelves[tenant] = shelf  # which is gone where that was its last
            self._count += 1
            response.used = self._clock()
            shelf.responses[response.id] = response
            for item_id in response.item_ids:
                shelf.by_item[item_id] = response
            self._grow(shelf, response.own_size)
            for run in response.runs:
                run.holders += 1
                if run.holders == 1:
                    self._grow(shelf, _run_size(run))
            while self.size > self._limits.bytes or len(self) > self._limits.responses:
                self._evict(response)
        self._set_timer()
        return True

    def delete(self, tenant: str, response_id: str) -> bool:
        with self._lock:
            shelf = self._shelf(tenant)
            return shelf is not None and self._remove(shelf, response_id)

    def _evict(self, spared: StoredResponse) -> None:
        full = [shelf for shelf in self._shelves.values() if any(r is not spared for r in _firsts(shelf))]
        shelf = max(full, key=lambda each: each.size)
        first = next(response for response in _firsts(shelf) if response is not spared)
        self._remove(shelf, first.id)
        self.evicted += 1

    def _remove(self, shelf: _Shelf, response_id: str) -> bool:
        found = shelf.responses.pop(response_id, None)
        if found is None:
            return False
        self._count -= 1
        for item_id in found.item_ids:
            if shelf.by_item.get(item_id) is found:
                del shelf.by_item[item_id]
        self._grow(shelf, -found.own_size)
        for run in found.runs:
            run.holders -= 1
            if not run.holders:
                self._grow(shelf, -_run_size(run))
        if not shelf.responses:
            self._shelves = {tenant: each for tenant, each in self._shelves.items() if each is not shelf}
        return True

    def _grow(self, shelf: _Shelf, size: int) -> None:
        shelf.size += size
        self.size += size

    def _expire(self, shelf: _Shelf) -> None:
        oldest = self._clock() - self._limits.seconds
        while (first := next(iter(shelf.responses.values()), None)) is not None and first.used <= oldest:
            self._remove(shelf, first.id)

    def _expire_all(self) -> None:
        for shelf in tuple(self._shelves.values()):
            self._expire(shelf)

    # -- time -----------------------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        """What nobody asks for must go, too."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(min(self._limits.seconds, _SWEEP_SECONDS), self._tick)

    def _tick(self) -> None:
        self._timer = None
        with self._lock:
            self._expire_all()
        if self._shelves:
            self._set_timer()


def _firsts(shelf: _Shelf) -> Iterator[StoredResponse]:
    """The two that were not used for longest."""
    for _, response in zip(range(2), shelf.responses.values(), strict=False):
        yield response


def _run_size(run: Run) -> int:
    return _PER_RUN + len(run.data)


def item_ids(runs: Iterable[Sequence[dict[str, Any]]]) -> tuple[str, ...]:
    """The ids by which items can be referred to."""
    return tuple(item["id"] for items in runs for item in items if isinstance(item.get("id"), str))
