"""The order in which the TPU's kernel starts copies of pages and waits for them: traced as Python, with references
that write down what is done to them."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.paged_attention import mosaic_tpu_stream
from pallas_kernels.paged_attention.mosaic_tpu_stream import PageStream, StreamPlan

PAGE_SIZE, PAGES_PER_BLOCK = 16, 4
KEYS = PAGE_SIZE * PAGES_PER_BLOCK


class Reference:
    """A reference of which only places matter."""

    def __init__(self, *place: Any) -> None:
        self.place = place

    @property
    def at(self) -> Reference:
        return self

    def __getitem__(self, index: Any) -> Reference:
        return Reference(*self.place, index)


class Traced:
    """A stream over pieces (row, first key, last key), and what it did. Page p of row r is 1000 * r + p."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[int, int, int]], slots: int) -> None:
        self.events: list[tuple[str, int, int]] = []  # (start, wait or take, slot, page of a start)
        self._landed: dict[int, bool] = {}
        fields = {**vars(mosaic_tpu_stream.pl), "when": _when}
        monkeypatch.setattr(mosaic_tpu_stream, "pl", types.SimpleNamespace(**fields))
        lax = {**vars(mosaic_tpu_stream.lax), "fori_loop": _fori_loop, "rem": lambda a, b: a % b}
        monkeypatch.setattr(mosaic_tpu_stream, "lax", types.SimpleNamespace(**lax))
        tpu = {**vars(mosaic_tpu_stream.pltpu), "make_async_copy": self._copy}
        monkeypatch.setattr(mosaic_tpu_stream, "pltpu", types.SimpleNamespace(**tpu))
        monkeypatch.setattr(mosaic_tpu_stream, "jnp", types.SimpleNamespace(**{**vars(jnp), **_NUMPY}))
        rows, firsts, lasts = (np.array(column) for column in zip(*pieces, strict=True))
        window = 1 << 20
        work = [len(pieces)], rows, np.zeros_like(rows), lasts - firsts + 1, firsts
        # A window would say where a piece begins; here a piece's own fields do.
        plan = StreamPlan(PAGE_SIZE, PAGES_PER_BLOCK, slots, window, False)
        self._tiles = np.full((4, 8, 128), -1)
        scratch = np.zeros(9, int), _Tiles(self._tiles), Reference("tile"), Reference("pages"), Reference("buffer")
        self.stream: Any = PageStream(plan, work, Reference("tables"), [Reference("source")], scratch, None)
        self.stream.keys_of = lambda piece: (int(firsts[piece]), int(lasts[piece]))
        self.pieces, self.slots = pieces, slots

    def run(self) -> None:
        self.stream.open()
        for _, first, last in self.pieces:
            for block in range(first // KEYS, last // KEYS + 1):
                self.stream.start_next()
                self.events.append(("take", int(self.stream.take(first, last, block)), 0))

    def _copy(self, source: Any, target: Any, semaphore: Any) -> Any:
        if semaphore.place[0] == "tile":
            return self._table_copy(source, target)
        slot = int(semaphore.place[1][0])
        page = int(source.place[-1])
        return types.SimpleNamespace(
            start=lambda: self.events.append(("start", slot, page)),
            wait=lambda: self.events.append(("wait", slot, 0)),
        )

    def _table_copy(self, source: Any, target: Any) -> Any:
        tile, (rows, entries) = target.place[-1], source.place[-1]

        def wait() -> None:
            assert self._landed.pop(int(tile)) is False  # it was started, and is waited for once
            self._tiles[tile] = self._wanted[tile]

        def start() -> None:
            assert int(tile) not in self._landed
            self._landed[int(tile)] = False
            self._wanted[tile] = 1000 * (rows.start + np.arange(8))[:, None] + entries.start + np.arange(128)
            self._tiles[tile] = -1  # what is there from before must not be read

        return types.SimpleNamespace(start=start, wait=wait)

    _wanted = np.zeros((4, 8, 128), int)


class _Tiles(Reference):
    """Tiles of page tables: references to copy to, and numbers when they are read."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__("tile")
        self._array = array

    def __getitem__(self, index: Any) -> Any:
        return int(self._array[index]) if isinstance(index, tuple) else Reference("tile", index)


_NUMPY = {name: getattr(np, name) for name in ("maximum", "minimum", "where", "logical_not")} | {"int32": int}


def _when(condition: Any) -> Callable[[Callable[[], None]], None]:
    return lambda act: act() if condition else None


def _fori_loop(begin: Any, end: Any, body: Any, carry: Any) -> None:
    for index in range(int(begin), int(end)):
        body(index, carry)


def _blocks(pieces: list[tuple[int, int, int]]) -> Iterator[list[int]]:
    """The pages of each block of each piece, in order."""
    for row, first, last in pieces:
        for block in range(first // KEYS, last // KEYS + 1):
            begin, end = max(first, block * KEYS), min(last, block * KEYS + KEYS - 1)
            yield [1000 * row + page for page in range(begin // PAGE_SIZE, end // PAGE_SIZE + 1)]


SHORT = [(row, 0, 5 + 3 * row) for row in range(12)]
MIXED = [(3, 0, 200), (9, 500, 700), (0, 0, 0), (1, 130 * PAGE_SIZE, 400 * PAGE_SIZE), (17, 0, 64), (2, 64, 127)]


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("pieces", [SHORT, MIXED], ids=["short", "mixed"])
def test_copies_run_ahead_over_the_borders_of_rows(
    monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[int, int, int]], slots: int
) -> None:
    """When a block is waited for, those behind it are on their way, into other buffers; each page is copied once."""
    traced = Traced(monkeypatch, pieces, slots)
    traced.run()
    blocks = list(_blocks(pieces))
    wanted = [page for block in blocks for page in block]
    assert [page for kind, _, page in traced.events if kind == "start"] == wanted
    ends = np.cumsum([len(block) for block in blocks])
    started = taken = 0
    for kind, slot, _ in traced.events:
        if kind == "start":
            number = int(np.searchsorted(ends, started, side="right"))
            assert slot == number % slots
            assert number < taken + slots, "the buffer is still used"
            started += 1
        if kind == "wait":
            assert slot == taken % slots
            assert started == ends[min(taken + slots, len(blocks)) - 1], "the next ones are not on their way"
        if kind == "take":
            assert slot == taken % slots
            taken += 1
    assert taken == len(blocks)
