"""Seeded inputs for paged attention: plain numpy, so that they run wherever a backend does.

A `Shape` is what gets compiled; a recipe turns it and a generator into rows of (query tokens, sequence length); `build`
makes the arrays. Everything that must not be read holds NaN: the null page, pages of nobody, pages past a row's length,
slots past it, and the queries, keys and values of padding tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import KVLayout, RaggedBatch, kv_layout, layout

Rows = list[tuple[int, int]]  # (query tokens of this step, tokens of the sequence with them)
Recipe = Callable[["Shape", np.random.Generator], Rows]


@dataclasses.dataclass(frozen=True)
class Shape:
    """One compiled shape: T tokens, S rows, MP pages a row, K kv heads with G query heads each, head_dim H.

    `kv_dtype` is the pages' type, None for the queries'.
    """

    dtype: Any = jnp.float32
    kv_dtype: Any = None
    tokens: int = 64
    rows: int = 8
    pages_per_row: int = 12
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 64
    page_size: int = 16
    sliding_window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False

    @property
    def num_pages(self) -> int:
        return 1 + self.rows * self.pages_per_row + 3  # the null page, every row's, and three of nobody

    @property
    def capacity(self) -> int:
        """Tokens that a row's page table can hold."""
        return self.pages_per_row * self.page_size

    def __str__(self) -> str:
        kv = "" if self.kv_dtype is None else f"-kv_{np.dtype(self.kv_dtype).name}"
        text = f"{np.dtype(self.dtype).name}{kv}-page{self.page_size}-H{self.head_dim}-K{self.kv_heads}-G{self.group}"
        window = "" if self.sliding_window is None else f"-window{self.sliding_window}"
        cap = "" if self.soft_cap is None else f"-cap{self.soft_cap:g}"
        return text + window + cap + ("-sinks" if self.sinks else "")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Arguments of one call, and the rows that they were made from."""

    q: jnp.ndarray
    k: jnp.ndarray
    v: jnp.ndarray
    k_pages: layout.Pages
    v_pages: layout.Pages
    batch: RaggedBatch
    sinks: jnp.ndarray | None
    rows: Rows

    @property
    def args(self) -> tuple[Any, ...]:
        return self.q, self.k, self.v, self.k_pages, self.v_pages, self.batch


def ragged_mix(shape: Shape, rng: np.random.Generator) -> Rows:
    """Single tokens, chunks and idle rows side by side, at random depths."""
    rows, left = [], shape.tokens
    for _ in range(rng.integers(1, shape.rows + 1)):
        count = min(left, int(rng.choice([0, 1, 1, 2, rng.integers(1, shape.tokens + 1)])), shape.capacity)
        rows.append((count, count + int(rng.integers(0, shape.capacity - count + 1))))
        left -= count
    return rows


def single_tokens(shape: Shape, rng: np.random.Generator) -> Rows:
    """Every row decodes; lengths from 1 to the capacity."""
    lengths = rng.integers(1, shape.capacity + 1, size=min(shape.rows, shape.tokens))
    lengths[0], lengths[-1] = 1, shape.capacity
    return [(1, int(length)) for length in lengths]


def one_prompt(shape: Shape, rng: np.random.Generator) -> Rows:
    """All tokens of the step belong to one row, so nothing is padding; it starts from nothing or later."""
    count = min(shape.tokens, shape.capacity)
    return [(count, int(rng.choice([count, shape.capacity])))]


def page_borders(shape: Shape, rng: np.random.Generator) -> Rows:
    """Sequences and chunks that begin and end one before, at and one after the end of a page; full pages too."""
    rows, left = [], shape.tokens
    for _ in range(shape.rows):
        end = int(
            np.clip(rng.integers(0, shape.pages_per_row + 1) * shape.page_size + rng.integers(-1, 2), 1, shape.capacity)
        )
        begin = int(np.clip(rng.integers(0, shape.pages_per_row + 1) * shape.page_size + rng.integers(-1, 2), 0, end))
        count = min(end - begin, left)
        rows.append((count, end))
        left -= count
    return rows


def idle(shape: Shape, rng: np.random.Generator) -> Rows:
    """No row has a token: the whole step is padding."""
    return [(0, int(rng.integers(0, shape.capacity + 1))) for _ in range(shape.rows)]


def idle_between(shape: Shape, rng: np.random.Generator) -> Rows:
    """Working rows with idle ones before, between and after."""
    count = max(1, min(shape.tokens // shape.rows, shape.capacity))
    return [(count if s % 2 else 0, int(rng.integers(count, shape.capacity + 1))) for s in range(shape.rows - 1)]


RECIPES: tuple[Recipe, ...] = (
    ragged_mix,
    single_tokens,
    one_prompt,
    page_borders,
    idle,
    idle_between,
)


def build(
    shape: Shape,
    target: DeviceTarget,
    rows: Rows,
    rng: np.random.Generator,
    *,
    query_scale: float = 1.0,
    shared_prefix_pages: int = 0,
    drowned: float = 0.0,
    freed: bool = False,
) -> Inputs:
    """Arrays for `rows`.

    Args:
        shared_prefix_pages: so many first pages of every row are the first row's.
        drowned: about such a share of the keys in the pages meet every query with a score that overflows to -inf:
            queries are positive and 1e25 times as large as usual, keys 1e25 times smaller, and those are -1e20.
        freed: entries of the page tables that lie behind the window of a row's first query are the null page.
    """
    kv = kv_layout(target, shape.kv_dtype or shape.dtype, shape.kv_heads, shape.head_dim, shape.page_size)
    tables = 1 + rng.permutation(shape.num_pages - 1)[: shape.rows * shape.pages_per_row]
    tables = tables.reshape(shape.rows, shape.pages_per_row).astype(np.int32)
    tables[:, :shared_prefix_pages] = tables[0, :shared_prefix_pages]
    lengths = np.zeros(shape.rows, np.int32)
    lengths[: len(rows)] = [length for _, length in rows]
    counts = np.zeros(shape.rows, np.int32)
    counts[: len(rows)] = [count for count, _ in rows]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    slots = rng.integers(0, shape.page_size, shape.tokens).astype(np.int32)  # padding: somewhere in the null page
    for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        positions = np.arange(length - count, length)
        pages = tables[row, positions // shape.page_size]
        slots[starts[row] : starts[row + 1]] = pages * shape.page_size + positions % shape.page_size

    def pool(scale: float = 1.0, share: float = 0.0) -> layout.Pages:
        return _pages(shape, kv, tables, lengths - counts, rng, scale, share)

    def tokens(heads: int, scale: float = 1.0) -> np.ndarray:
        values = rng.standard_normal((shape.tokens, heads, shape.head_dim)).astype(np.float32) * np.float32(scale)
        values[starts[-1] :] = np.nan
        return values

    sent = _without_freed(shape, tables, lengths - counts) if freed else tables
    key_scale = 1e-25 if drowned else 1.0
    queries = tokens(shape.kv_heads * shape.group, query_scale / key_scale)
    return Inputs(
        q=jnp.asarray(np.abs(queries) if drowned else queries, shape.dtype),
        k=jnp.asarray(tokens(shape.kv_heads, key_scale), shape.dtype),
        v=jnp.asarray(tokens(shape.kv_heads), shape.dtype),
        k_pages=pool(key_scale, drowned),
        v_pages=pool(),
        batch=RaggedBatch(
            query_start_loc=jnp.asarray(starts),
            seq_lens=jnp.asarray(lengths),
            page_tables=jnp.asarray(sent),
            slot_mapping=jnp.asarray(slots),
        ),
        sinks=_sinks(shape, rng),
        rows=rows,
    )


def _without_freed(shape: Shape, tables: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """tables (S, MP) without the pages that no query from `positions` (S,) on sees; the shape has a window."""
    assert shape.sliding_window is not None
    first = np.maximum(positions - shape.sliding_window + 1, 0) // shape.page_size
    return np.where(np.arange(shape.pages_per_row) < first[:, None], 0, tables).astype(np.int32)


def _sinks(shape: Shape, rng: np.random.Generator) -> jnp.ndarray | None:
    """Scores among those of the keys, above them, and of no weight at all."""
    if not shape.sinks:
        return None
    sinks = rng.standard_normal(shape.kv_heads * shape.group).astype(np.float32) * 4
    sinks[0], sinks[-1] = 30.0, -np.inf
    return jnp.asarray(sinks)


def _pages(
    shape: Shape,
    kv: KVLayout,
    tables: np.ndarray,
    computed: np.ndarray,
    rng: np.random.Generator,
    scale: float,
    drowned: float,
) -> layout.Pages:
    """Pages in which exactly the tokens computed before this step hold numbers, a share `drowned` of them -1e20."""
    values = rng.standard_normal(kv.shape(shape.num_pages)).astype(np.float32) * np.float32(scale)
    if drowned:
        values[rng.random(values.shape[:-1]) < drowned] = -1e20
    known = np.zeros((shape.num_pages, shape.page_size), bool)
    for row, length in enumerate(computed):
        positions = np.arange(length)
        known[tables[row, positions // shape.page_size], positions % shape.page_size] = True
    unknown = ~known[:, None, :].repeat(values.shape[1], axis=1)
    if kv.quantized:
        # int8 has no NaN: the scales carry it.
        stored, scales = layout.quantize(jnp.asarray(values), kv.storage_dtype)
        unused = ((0, 0), (0, 0), (0, kv.scale_lanes - shape.page_size))
        scales = jnp.pad(jnp.where(unknown, jnp.nan, scales), unused, constant_values=jnp.nan)
        return layout.QuantizedPages(stored, scales)
    values[unknown] = np.nan
    return layout.to_storage(jnp.asarray(values), kv.storage_dtype)
