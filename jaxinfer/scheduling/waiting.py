"""Sequences that wait, in order, however many they are."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

_ROW = 512  # sequences of a row, at most twice as many


class Ordered(Protocol):
    """What stands in a line. key: its request's id and its index there; nothing but an error message needs it."""

    order: tuple[float, int, int]

    @property
    def key(self) -> tuple[str, int]: ...


Waits = TypeVar("Waits", bound=Ordered)


def order_of(sequence: Ordered) -> tuple[float, int, int]:
    return sequence.order


class WaitingLine(Generic[Waits]):
    """Sequences by their order, which no two share and which never changes.

    A sorted list in rows: whoever comes or goes moves the others of its row alone. In one list of 400,000 that takes
    half a millisecond. (sortedcontainers has such a list; the scheduler needs no package that a machine which is lent
    for a device check would lack.)
    """

    __slots__ = ("_count", "_ends", "_rows")

    def __init__(self) -> None:
        self._rows: list[list[Waits]] = []
        self._ends: list[tuple[float, int, int]] = []  # the order of each row's last
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Waits]:
        for row in self._rows:
            yield from row

    def __getitem__(self, position: int) -> Waits:
        """position: from 0 on. Raises IndexError behind the last."""
        for row in self._rows:
            if position < len(row):
                return row[position]
            position -= len(row)
        raise IndexError(position)

    def add(self, sequence: Waits) -> None:
        self._count += 1
        if not self._rows:
            self._rows.append([sequence])
            self._ends.append(sequence.order)
            return
        i = min(bisect_left(self._ends, sequence.order), len(self._rows) - 1)
        row = self._rows[i]
        insort(row, sequence, key=order_of)
        self._ends[i] = row[-1].order
        if len(row) > 2 * _ROW:
            self._rows[i : i + 1] = row[:_ROW], row[_ROW:]
            self._ends.insert(i, row[_ROW - 1].order)

    def update(self, sequences: Iterable[Waits]) -> None:
        for sequence in sequences:
            self.add(sequence)

    def remove(self, sequence: Waits) -> None:
        """Raises ValueError for a sequence that does not wait here."""
        i = bisect_left(self._ends, sequence.order)
        row = self._rows[i] if i < len(self._rows) else []
        j = bisect_left(row, sequence.order, key=order_of)
        if j == len(row) or row[j] is not sequence:
            raise ValueError(f"a sequence of {sequence.key[0]!r} does not wait")
        del row[j]
        self._count -= 1
        if row:
            self._ends[i] = row[-1].order
        else:
            del self._rows[i], self._ends[i]
