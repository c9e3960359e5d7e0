"""How the TPU's attention kernel gets its pages: a ring of buffers that copies from HBM fill ahead of their use.

The blocks of all pieces of work are one sequence. A cursor walks it some blocks ahead of the arithmetic, over the
borders of rows and of turns of the grid, so that the first pages of a row are on their way before the last ones of the
row before it have been waited for.

Page tables stay in HBM too: prefetched whole, 256 rows of 2,048 pages would be twice a v6e's scalar memory (1 MiB). A
second cursor walks them in tiles of 8 rows and 128 entries, which is how XLA lays an int32 array down, and is ahead of
the first one. A tile has 4 kB, less than a tenth of a page's keys and values in any model with more than one kv head.

Everything here is made while a kernel is traced, and holds its references.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

TABLE_ROWS, TABLE_ENTRIES = 8, 128  # the tile of an int32 array
_TABLE_TILES = 4  # one that is read, and three on their way

# Places in the stream's scalars.
_PIECE, _BLOCK, _SLOT_IN, _SLOT_OUT = range(4)  # the next block to copy, where to, and where the next to use lies
_TABLE_PIECE, _TABLE_TILE, _TABLE_IN, _TABLE_NEXT, _TABLE_OPEN = range(4, 9)  # the same of tables, and the tile in use
_SCALARS = 9


@dataclasses.dataclass(frozen=True)
class StreamPlan:
    """What is static about a stream.

    Attributes:
        page_size: tokens of a page.
        pages_per_block: pages of a block, a power of two up to 128.
        slots: buffers of a block; so many less one are on their way while one is used.
        window: a query sees so many keys, itself included; None: all up to its own.
        count: whether copies are counted.
    """

    page_size: int
    pages_per_block: int
    slots: int
    window: int | None
    count: bool

    @property
    def keys(self) -> int:
        """Keys of a block."""
        return self.page_size * self.pages_per_block

    def scratch(self, sources: list[jax.Array]) -> list[Any]:
        """What `PageStream` needs of a kernel's scratch, for pages that lie in `sources`."""
        return [
            pltpu.SMEM((_SCALARS,), jnp.int32),
            pltpu.SMEM((_TABLE_TILES, TABLE_ROWS, TABLE_ENTRIES), jnp.int32),
            pltpu.SemaphoreType.DMA((_TABLE_TILES,)),
            pltpu.SemaphoreType.DMA((self.slots, len(sources))),
            *[pltpu.VMEM((self.slots, self.pages_per_block, *array.shape[1:]), array.dtype) for array in sources],
        ]


class PageStream:
    """The stream of a launch.

    Args:
        work: references to the pieces' count (1,), and to row, begin, end and base (W,) of each.
        tables: reference to the page tables (S, MP) in HBM, whole tiles.
        sources: references to what pages consist of, in HBM, (P, ...) each.
        scratch: references to what `StreamPlan.scratch` says.
        counter: reference (1,) to the number of copies.
    """

    def __init__(
        self, plan: StreamPlan, work: tuple[Any, ...], tables: Any, sources: Any, scratch: Any, counter: Any
    ) -> None:
        self._plan, self._tables, self._sources, self._counter = plan, tables, sources, counter
        self._count, self._row, self._begin, self._end, self._base = work
        self._scalars, self._tiles, self._tile_semaphores, self._semaphores, *self.buffers = scratch

    def keys_of(self, piece: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The first and the last key that some query of a piece sees."""
        low, high = self._base[piece] + self._begin[piece], self._base[piece] + self._end[piece] - 1
        window = self._plan.window
        return (jnp.maximum(low - window + 1, 0) if window else jnp.int32(0)), high

    def open(self) -> None:
        """Starts the first copies; there is work."""
        state, first = self._scalars, self.keys_of(jnp.int32(0))[0]
        for place in range(_SCALARS):
            state[place] = 0
        state[_BLOCK] = first // self._plan.keys
        state[_TABLE_TILE] = self._tile_of(first)
        for _ in range(_TABLE_TILES - 1):
            self._start_table()
        for _ in range(self._plan.slots - 1):
            self.start_next()

    def start_next(self) -> None:
        """Starts the copies of the next block in the sequence, if there is one."""
        state, plan = self._scalars, self._plan
        piece, block = state[_PIECE], state[_BLOCK]

        @pl.when(piece < self._count[0])
        def _() -> None:
            first, last = self.keys_of(piece)
            first_block, last_block = first // plan.keys, last // plan.keys
            blocks_per_tile = TABLE_ENTRIES // plan.pages_per_block

            @pl.when((block == first_block) | (lax.rem(block, blocks_per_tile) == 0))
            def _() -> None:
                self._turn_table()

            open_tile, row, slot = state[_TABLE_OPEN], lax.rem(self._row[piece], TABLE_ROWS), state[_SLOT_IN]
            entry = lax.rem(block, blocks_per_tile) * plan.pages_per_block

            def start_page(place: jax.Array, carry: None) -> None:
                page = self._tiles[open_tile, row, entry + place]
                for number, source in enumerate(self._sources):
                    self._copy(number, source.at[page], slot, place).start()
                if plan.count:
                    self._counter[0] += len(self._sources)

            lax.fori_loop(*self._pages_of(first, last, block), start_page, None)
            state[_SLOT_IN] = _next(slot, plan.slots)
            self._advance(_PIECE, _BLOCK, last_block, lambda keys: keys // plan.keys)

    def take(self, first: jax.Array, last: jax.Array, block: jax.Array) -> jax.Array:
        """Waits for the next block to use, of a piece that sees the keys first..last, and says in which slot it is."""
        slot = self._scalars[_SLOT_OUT]
        begin, end = self._pages_of(first, last, block)
        whole = end - begin == self._plan.pages_per_block

        # Waiting asks for a number of bytes; which ones are meant is of no account.
        @pl.when(whole)
        def _() -> None:
            for number, buffer in enumerate(self.buffers):
                held = buffer.at[slot]
                pltpu.make_async_copy(held, held, self._semaphores.at[slot, number]).wait()

        @pl.when(jnp.logical_not(whole))
        def _() -> None:
            def wait_page(place: jax.Array, carry: None) -> None:
                for number, source in enumerate(self._sources):
                    self._copy(number, source.at[0], slot, place).wait()

            lax.fori_loop(begin, end, wait_page, None)

        self._scalars[_SLOT_OUT] = _next(slot, self._plan.slots)
        return slot

    def _copy(self, number: int, page: Any, slot: jax.Array, place: jax.Array) -> Any:
        return pltpu.make_async_copy(page, self.buffers[number].at[slot, place], self._semaphores.at[slot, number])

    def _pages_of(self, first: jax.Array, last: jax.Array, block: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Which of a block's pages a piece that sees the keys first..last needs: begin <= place < end."""
        plan = self._plan
        start = block * plan.pages_per_block
        begin = jnp.maximum(first // plan.page_size - start, 0)
        return begin, jnp.minimum(last // plan.page_size - start + 1, plan.pages_per_block)

    def _advance(self, piece_place: int, part_place: int, last_part: jax.Array, part_of: Any) -> None:
        """Moves a cursor to the next part of its piece, or to the first part of the next one."""
        state = self._scalars
        piece, part = state[piece_place], state[part_place]

        @pl.when(part < last_part)
        def _() -> None:
            state[part_place] = part + 1

        @pl.when(part >= last_part)
        def _() -> None:
            state[piece_place] = piece + 1

            @pl.when(piece + 1 < self._count[0])
            def _() -> None:
                state[part_place] = part_of(self.keys_of(piece + 1)[0])

    def _tile_of(self, key: jax.Array) -> jax.Array:
        return key // (self._plan.page_size * TABLE_ENTRIES)

    def _start_table(self) -> None:
        """Starts the copy of the next tile of page tables, if there is one."""
        state = self._scalars
        piece = state[_TABLE_PIECE]

        @pl.when(piece < self._count[0])
        def _() -> None:
            rows = pl.multiple_of(self._row[piece] // TABLE_ROWS * TABLE_ROWS, TABLE_ROWS)
            entries = pl.multiple_of(state[_TABLE_TILE] * TABLE_ENTRIES, TABLE_ENTRIES)
            source = self._tables.at[pl.ds(rows, TABLE_ROWS), pl.ds(entries, TABLE_ENTRIES)]
            self._table_copy(source, state[_TABLE_IN]).start()
            state[_TABLE_IN] = _next(state[_TABLE_IN], _TABLE_TILES)
            self._advance(_TABLE_PIECE, _TABLE_TILE, self._tile_of(self.keys_of(piece)[1]), self._tile_of)

    def _turn_table(self) -> None:
        """Goes on to the next tile of page tables, and has the one after those on their way follow."""
        state = self._scalars
        tile = state[_TABLE_NEXT]
        source = self._tables.at[pl.ds(0, TABLE_ROWS), pl.ds(0, TABLE_ENTRIES)]
        self._table_copy(source, tile).wait()
        state[_TABLE_OPEN] = tile
        state[_TABLE_NEXT] = _next(tile, _TABLE_TILES)
        self._start_table()

    def _table_copy(self, source: Any, tile: jax.Array) -> Any:
        return pltpu.make_async_copy(source, self._tiles.at[tile], self._tile_semaphores.at[tile])


def _next(slot: jax.Array, slots: int) -> jax.Array:
    return jnp.where(slot + 1 == slots, 0, slot + 1)
