"""Writes a step's keys and values into their pages on a TPU by copies, where XLA's scatter goes index by index.

What a copy can write is a tile of memory: R tokens of a head, 8 in float32, 16 in bfloat16, 32 in int8 and fp8, since
the tokens of a narrow type share words of 32 bits. So the unit of work is a run: the tokens of a row that lie in one
tile of a page, of all kv heads. Its tile is read, the run's tokens are put into it, and it is written back; a run that
fills its tile reads nothing. Several runs are on their way at a time, and no two of them in one tile: a page that is
written belongs to one row, whose tokens lie side by side. Padding has no run; what lies in the null page is left out.
Scales have the tokens of a page in their lanes, so their runs are longer, and follow when the values are done.

Everything is moved as words, so that no rounding is left to the device: new keys and values come in their pages' type,
and are shifted along the tokens by whole words and, inside words, by bits.

Legend: T tokens, S rows, W runs, P pages, K kv heads, L lanes of a row, R tokens of a tile.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.paged_attention import layout, work
from pallas_kernels.paged_attention.api import RaggedBatch
from pallas_kernels.paged_attention.mosaic_tpu_kernel import SUBLANES, in_hbm
from pallas_kernels.rounding import round_up

_LANES = 128
_SLOTS = 16  # tiles on the chip: half of them are being read, half are being written
_RESIDENT_BYTES = 2 << 20  # new keys and values up to this size are on the chip as a whole


@dataclasses.dataclass(frozen=True)
class _WritePlan:
    """What is static about a launch."""

    page_size: int
    packed: int  # tokens in a word
    resident: bool  # whether new keys and values lie in VMEM as a whole; else each run copies its part

    @property
    def tokens(self) -> int:
        """R."""
        return SUBLANES * self.packed

    @property
    def scales(self) -> int:
        """Tokens of a run of scales: those of whole tiles of lanes, if a page has such."""
        return self.page_size if self.page_size % _LANES else _LANES


def write_pages(
    k_pages: layout.Pages, v_pages: layout.Pages, k: jax.Array, v: jax.Array, batch: RaggedBatch, interpret: Any
) -> tuple[layout.Pages, layout.Pages]:
    """Puts k and v (T, K, L) of a step's tokens into their pages, rounded to their type; in place if they are donated.

    A row's token of position p must lie at offset p % page_size of its page, and no two rows write into one page.

    Args:
        k_pages, v_pages: (P, K, page_size, L), page_size a multiple of R; quantized or not.
        interpret: a `pltpu.InterpretParams` runs the kernel on the CPU.
    """
    quantized = isinstance(k_pages, layout.QuantizedPages)
    leaves, structure = jax.tree.flatten((k_pages, v_pages))
    values, scales = (leaves[::2], leaves[1::2]) if quantized else (leaves, [])
    new = [_stored(pages, x) for pages, x in ((k_pages, k), (v_pages, v))]
    itemsize = values[0].dtype.itemsize
    resident = sum(parts[0].size for parts in new) * itemsize <= _RESIDENT_BYTES
    plan = _WritePlan(values[0].shape[2], 4 // itemsize, resident)
    new_values = [_values_by_head(plan, parts[0]) for parts in new]
    new_scales = [_scales_by_head(plan, parts[1]) for parts in new] if quantized else []
    written = _launch(plan, batch, (new_values, new_scales), (values, scales), interpret)
    if quantized:
        written = [written[number] for number in (0, 2, 1, 3)]
    return jax.tree.unflatten(structure, written)


def _stored(pages: layout.Pages, new: jax.Array) -> tuple[jax.Array, ...]:
    """(T, K, L) as pages hold them, with the scales (T, K) of quantized ones."""
    if isinstance(pages, layout.QuantizedPages):
        return layout.quantize(new, pages.dtype)
    return (layout.to_storage(new, pages.dtype),)


def _values_by_head(plan: _WritePlan, values: jax.Array) -> jax.Array:
    """(T, K, L) as (K, R + T + ..., L): a tile may begin R - 1 tokens before the first, and parts of 2 R are read."""
    size = plan.tokens
    behind = -values.shape[0] % size + size
    return jnp.pad(values.transpose(1, 0, 2), ((0, 0), (size, behind), (0, 0)))


def _scales_by_head(plan: _WritePlan, scales: jax.Array) -> jax.Array:
    """(T, K) as whole tiles with tokens in the lanes, one tile before them and those of a run behind them."""
    tokens, heads = scales.shape
    behind = -tokens % _LANES + round_up(plan.scales, _LANES)
    return jnp.pad(scales.T, ((0, -heads % SUBLANES), (_LANES, behind)))


def _runs(batch: RaggedBatch, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs in tiles of `size` tokens: how many (1,), and the first token and the length of each (W,)."""
    starts, lengths = batch.query_start_loc[:-1], jnp.diff(batch.query_start_loc)
    first = batch.seq_lens - lengths
    counts = jnp.where(lengths > 0, (batch.seq_lens - 1) // size - first // size + 1, 0)
    ends = jnp.cumsum(counts)
    num_tokens = batch.slot_mapping.shape[0]
    index = jnp.arange(min(num_tokens, num_tokens // size + 2 * lengths.shape[0]), dtype=jnp.int32)
    row = work.row_of(ends, index)
    tile = first[row] // size + index - (ends - counts)[row]
    begin = jnp.maximum(tile * size, first[row])
    end = jnp.minimum((tile + 1) * size, batch.seq_lens[row])
    return ends[-1:].astype(jnp.int32), starts[row] + begin - first[row], end - begin


def _launch(
    plan: _WritePlan,
    batch: RaggedBatch,
    new: tuple[list[jax.Array], list[jax.Array]],
    pools: tuple[list[jax.Array], list[jax.Array]],
    interpret: Any,
) -> list[jax.Array]:
    """The kernel; `new` and `pools` are the values of K and V and, if they have any, the scales."""
    (new_values, new_scales), (values, scales) = new, pools
    num_heads, lanes = values[0].shape[1], values[0].shape[3]
    scalars = [batch.slot_mapping, *_runs(batch, plan.tokens), *(_runs(batch, plan.scales) if scales else ())]
    hbm, vmem = pl.BlockSpec(memory_space=pltpu.HBM), pl.BlockSpec(memory_space=pltpu.VMEM)
    part = (SUBLANES, _LANES) if plan.resident else (_SLOTS, num_heads, 2 * plan.tokens, lanes)
    everything = [*values, *scales]
    first_pool = len(scalars) + len(everything)
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan, num_scales=len(scales)),
        out_shape=[jax.ShapeDtypeStruct(pool.shape, pool.dtype) for pool in everything],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(1,),
            in_specs=[*[vmem if plan.resident else hbm] * 2, *[vmem] * len(scales), *[hbm] * len(everything)],
            out_specs=[hbm] * len(everything),
            scratch_shapes=[
                pltpu.SemaphoreType.DMA((_SLOTS,)),
                pltpu.SemaphoreType.DMA((_SLOTS,)),
                pltpu.VMEM((num_heads, 2 * SUBLANES, _LANES), jnp.int32),
                *[pltpu.VMEM(part, values[0].dtype)] * 2,
                *[pltpu.VMEM((_SLOTS, num_heads, plan.tokens, lanes), values[0].dtype)] * 2,
                *[pltpu.VMEM((_SLOTS, num_heads, round_up(plan.scales, _LANES)), jnp.float32)] * len(scales),
            ],
        ),
        input_output_aliases={first_pool + number: number for number in range(len(everything))},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="write_pages",
    )(*scalars, *(new_values if plan.resident else map(in_hbm, new_values)), *new_scales, *map(in_hbm, everything))


@dataclasses.dataclass(frozen=True)
class _Run:
    """The scalars of a run."""

    token: jax.Array  # its first
    length: jax.Array
    page: jax.Array
    offset: jax.Array  # of its first token in the page
    slot: jax.Array


def _kernel(slots: Any, *refs: Any, plan: _WritePlan, num_scales: int) -> None:
    """All runs of the values, then all of the scales."""
    num_pools = 2 + num_scales
    lists = refs[: 6 if num_scales else 3]
    refs = refs[len(lists) :]
    new, pools, refs = refs[:num_pools], refs[2 * num_pools : 3 * num_pools], refs[3 * num_pools :]
    reads, writes, words, *tiles = refs
    parts, tiles = tiles[:2], tiles[2:]

    values = _Values(plan, new[:2], pools[:2], tiles[:2], parts, words)
    _through_ring(plan, lists[:3], slots, values, reads, writes)
    if num_scales:
        scales = _Scales(plan, new[2:], pools[2:], tiles[2:])
        _through_ring(plan, lists[3:], slots, scales, reads, writes)


def _through_ring(
    plan: _WritePlan, runs: tuple[Any, ...], slots: Any, pools: _Values | _Scales, reads: Any, writes: Any
) -> None:
    """Brings the tile of each run onto the chip, puts the run into it and sends it back; many are on their way."""
    count, tokens, lengths = runs

    def with_run(index: jax.Array, act: Any) -> None:
        """Does something with a run, if there is one of that index."""

        @pl.when((index >= 0) & (index < count[0]))
        def _() -> None:
            slot = slots[tokens[index]]
            page, offset = slot // plan.page_size, lax.rem(slot, plan.page_size)
            run = _Run(tokens[index], lengths[index], page, offset, lax.rem(index, _SLOTS))
            pl.when(page > 0)(lambda: act(run))

    def put(run: _Run) -> None:
        pools.each_read(run, reads.at[run.slot], lambda copy: copy.wait())
        pools.put(run)
        for copy in _copies_back(pools, run, writes.at[run.slot]):
            copy.start()

    def wait_writes(run: _Run) -> None:
        for copy in _copies_back(pools, run, writes.at[run.slot]):
            copy.wait()

    def start_reads(index: jax.Array) -> None:
        with_run(index, lambda run: pools.each_read(run, reads.at[run.slot], lambda copy: copy.start()))

    def step(index: jax.Array, carry: None) -> None:
        with_run(index, put)
        with_run(index - _SLOTS // 2, wait_writes)
        start_reads(index + _SLOTS // 2)

    lax.fori_loop(0, _SLOTS // 2, lambda index, carry: start_reads(index), None)
    lax.fori_loop(0, count[0] + _SLOTS // 2, step, None)


def _copies_back(pools: _Values | _Scales, run: _Run, semaphore: Any) -> list[Any]:
    """From a run's tiles to where they were read."""
    pairs = zip(pools.pools, pools.tiles, strict=True)
    return [pltpu.make_async_copy(tile.at[run.slot], pools.place(run, pool), semaphore) for pool, tile in pairs]


@dataclasses.dataclass(frozen=True)
class _Values:
    """The values of K and V."""

    plan: _WritePlan
    new: tuple[Any, ...]  # (K, R + T + ..., L) each
    pools: tuple[Any, ...]
    tiles: list[Any]  # (slots, K, R, L)
    parts: list[Any]  # (slots, K, 2 R, L): new tokens, unless they are resident
    words: Any  # (K, 16, 128) int32

    def each_read(self, run: _Run, semaphore: Any, act: Any) -> None:
        """Does something with the copies that a run needs first."""

        @pl.when(run.length < self.plan.tokens)
        def _() -> None:
            for pool, tile in zip(self.pools, self.tiles, strict=True):
                act(pltpu.make_async_copy(self.place(run, pool), tile.at[run.slot], semaphore))

        if not self.plan.resident:
            for new, part in zip(self.new, self.parts, strict=True):
                act(pltpu.make_async_copy(new.at[:, self._tokens(run), :], part.at[run.slot], semaphore))

    def put(self, run: _Run) -> None:
        """Puts a run's tokens into its tiles."""
        for new, part, tile in zip(self.new, self.parts, self.tiles, strict=True):
            tokens = new[:, self._tokens(run), :] if self.plan.resident else part[run.slot]
            _put_values(self.plan, run, self._before(run), tokens, self.words, tile.at[run.slot])

    def place(self, run: _Run, pool: Any) -> Any:
        """Where a run's tile lies in a pool."""
        size = self.plan.tokens
        return pool.at[run.page, :, pl.ds(pl.multiple_of(run.offset // size * size, size), size), :]

    def _before(self, run: _Run) -> jax.Array:
        """Which of the new tokens, with those in front, comes to the first place of a run's tile."""
        return self.plan.tokens + run.token - lax.rem(run.offset, self.plan.tokens)

    def _tokens(self, run: _Run) -> Any:
        """Two tiles of the new tokens, in which those of a run's tile lie."""
        size = self.plan.tokens
        return pl.ds(pl.multiple_of(self._before(run) // size * size, size), 2 * size)


@dataclasses.dataclass(frozen=True)
class _Scales:
    """The scales of K and V. A run may leave places of its tile as they are, so the tile is always read."""

    plan: _WritePlan
    new: tuple[Any, ...]  # (K or more, 128 + T + ...) each
    pools: tuple[Any, ...]
    tiles: list[Any]  # (slots, K, lanes)

    def each_read(self, run: _Run, semaphore: Any, act: Any) -> None:
        """Does something with the copies that a run needs first."""
        for pool, tile in zip(self.pools, self.tiles, strict=True):
            act(pltpu.make_async_copy(self.place(run, pool), tile.at[run.slot], semaphore))

    def put(self, run: _Run) -> None:
        """Puts the scales of a run's tokens into its tiles."""
        for new, tile in zip(self.new, self.tiles, strict=True):
            _put_scales(run, lax.rem(run.offset, self.plan.scales), new, tile.at[run.slot])

    def place(self, run: _Run, pool: Any) -> Any:
        """Where a run's tile lies in a pool."""
        first = pl.multiple_of(run.offset // self.plan.scales * _LANES, _LANES)
        return pool.at[run.page, :, pl.ds(first, round_up(self.plan.scales, _LANES))]


def _put_values(
    plan: _WritePlan, run: _Run, before: jax.Array, tokens: jax.Array, words_ref: Any, tile_ref: Any
) -> None:
    """Puts a run's tokens, among `tokens` (K, 2 R, L), into its tile (K, R, L).

    before: `_Values._before`; modulo R it is the place in `tokens` of the tile's first one.
    words_ref: (K, 16, 128) int32, scratch: rows from any place on can be loaded where a row is one tile wide.
    """
    before, begin = lax.rem(before, plan.tokens), lax.rem(run.offset, plan.tokens)
    word, shift = before // plan.packed, lax.rem(before, plan.packed) * (32 // plan.packed)
    for start in range(0, tokens.shape[2], _LANES):
        columns = slice(start, start + _LANES)
        words_ref[...] = _words(tokens[:, :, columns])
        new = words_ref[:, pl.ds(word, SUBLANES), :]
        if plan.packed > 1:
            following = words_ref[:, pl.ds(word + 1, SUBLANES), :] << ((32 - shift) & 31)
            new = lax.shift_right_logical(new, jnp.broadcast_to(shift, new.shape)) | jnp.where(shift == 0, 0, following)
        mask = _mask(plan, begin, begin + run.length, new.shape)
        merged = (new & mask) | (_words(tile_ref[:, :, columns]) & ~mask)
        tile_ref[:, :, columns] = pltpu.bitcast(merged, tile_ref.dtype)


def _mask(plan: _WritePlan, begin: jax.Array, end: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The bits of the tokens begin <= t < end in words (K, 8, lanes)."""
    bits = 32 // plan.packed
    first = lax.broadcasted_iota(jnp.int32, shape, 1) * plan.packed
    mask = jnp.zeros(shape, jnp.int32)
    for number in range(plan.packed):
        field = np.uint32(((1 << bits) - 1) << (bits * number)).astype(np.int32)
        mask |= jnp.where((first + number >= begin) & (first + number < end), field, 0)
    return mask


def _words(values: jax.Array) -> jax.Array:
    """(K, rows, L) as int32, a word for each lane of rows that lie in one."""
    return pltpu.bitcast(values, jnp.int32)


def _put_scales(run: _Run, begin: jax.Array, new_ref: Any, tile_ref: Any) -> None:
    """Puts the scales of a run's tokens, of (K or more, 128 + T + ...), into a tile (K, lanes), from `begin` on."""
    num_heads, lanes = tile_ref.shape
    for start in range(0, lanes, _LANES):
        # The tokens of 128 lanes lie in two tiles. Those in front of all tokens are not asked for.
        first = jnp.maximum(_LANES + run.token - begin + start, 0)
        behind = lax.rem(first, _LANES)
        tile = pl.multiple_of(first - behind, _LANES)
        here, following = (
            pltpu.roll(
                new_ref[:, pl.ds(pl.multiple_of(tile + more, _LANES), _LANES)], lax.rem(_LANES - behind, _LANES), 1
            )
            for more in (0, _LANES)
        )
        lane = lax.broadcasted_iota(jnp.int32, here.shape, 1)
        new = jnp.where(lane + behind < _LANES, here, following)[:num_heads]
        place = start + lane[:num_heads]
        columns = slice(start, start + _LANES)
        inside = (place >= begin) & (place < begin + run.length)
        tile_ref[:, columns] = jnp.where(inside, new, tile_ref[:, columns])
