"""Steps of the size that a server has, made and judged on the device: interpreters and the numpy oracle never see them.

Legend: S rows, L tokens of the longest row, K kv heads, G query heads of one, N = K * G, H head_dim, P pages.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import KVLayout, RaggedBatch, kv_layout, layout

_QUERIES = 128  # whose scores exist at once


@dataclasses.dataclass(frozen=True)
class LongStep:
    """A step whose every row's keys and values are known apart from the pages.

    Attributes:
        args: of the op, in its order.
        keys, values: (S, L, K, H) of every row, as the pages round them, in float32; past a row's length any numbers.
        expected_pages: K and V pages as they must be afterwards, but for the null page.
        rows: (query tokens, tokens of the sequence).
    """

    args: tuple[Any, ...]
    keys: jax.Array
    values: jax.Array
    expected_pages: tuple[layout.Pages, layout.Pages]
    rows: list[tuple[int, int]]


def build(
    target: DeviceTarget, rows: list[tuple[int, int]], page_size: int, kv_dtype: Any, heads: tuple[int, int, int]
) -> LongStep:
    """`heads` is (K, G, H). Whatever must not be read holds NaN: other pages, and slots past a row's length."""
    num_kv_heads, group, head_dim = heads
    kv = kv_layout(target, kv_dtype, num_kv_heads, head_dim, page_size)
    counts, lengths = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    pages_per_row = -(-int(lengths.max()) // page_size)
    num_pages = 1 + len(rows) * pages_per_row + 3
    tables = 1 + np.random.default_rng(0).permutation(num_pages - 1)[: len(rows) * pages_per_row]
    tables = tables.reshape(len(rows), pages_per_row).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    # Where each token lies: its row, its position, and the kv slot; of those before the step, and of the step's own.
    place = [(row, position) for row, length in enumerate(lengths) for position in range(length)]
    row_of, position_of = np.array(place, np.int32).T
    slots = tables[row_of, position_of // page_size] * page_size + position_of % page_size
    new = position_of >= (lengths - counts)[row_of]
    q = jax.random.normal(jax.random.key(0), (int(starts[-1]), num_kv_heads * group, head_dim), jnp.bfloat16)
    before, after, dense, inputs = [], [], [], []
    for seed in (1, 2):  # K, and V
        # One array for all rows: rows of their own lengths would be compiled one by one.
        shape = (len(rows), int(lengths.max()), num_kv_heads, head_dim)
        tokens = jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)
        inputs.append(tokens[row_of[new], position_of[new]])
        known = tokens[row_of[~new], position_of[~new]]
        before.append(_written(_poisoned(kv, num_pages), known, slots[~new]))
        after.append(_written(before[-1], inputs[-1], slots[new]))
        dense.append(_as_stored(tokens, kv))
    batch = RaggedBatch(*(jnp.asarray(a, jnp.int32) for a in (starts, lengths, tables, slots[new])))
    return LongStep((q, *inputs, *before, batch), dense[0], dense[1], (after[0], after[1]), rows)


def expected(step: LongStep, scale: float) -> jax.Array:
    """Causal attention of every row in float32, some queries at a time: (T, N, H)."""
    outputs, start = [], 0
    for row, (count, length) in enumerate(step.rows):
        for begin in range(0, count, _QUERIES):
            end = min(begin + _QUERIES, count)
            positions = jnp.arange(length - count + begin, length - count + end)
            q = step.args[0][start + begin : start + end]
            outputs.append(_dense(q, step.keys[row], step.values[row], positions, scale))
        start += count
    return jnp.concatenate(outputs)


@functools.partial(jax.jit, static_argnames="scale")
def _dense(q: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array, scale: float) -> jax.Array:
    num_tokens, num_heads, head_dim = q.shape
    q = q.astype(jnp.float32).reshape(num_tokens, keys.shape[1], -1, head_dim)
    highest = jax.lax.Precision.HIGHEST  # a GPU would multiply with 10 bits otherwise
    scores = jnp.einsum("tkgh,lkh->tkgl", q, keys, precision=highest) * scale
    seen = jnp.arange(keys.shape[0]) <= positions[:, None]
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), axis=-1)  # 0 for what is not seen
    return jnp.einsum("tkgl,lkh->tkgh", weights, values, precision=highest).reshape(num_tokens, num_heads, head_dim)


def _poisoned(kv: KVLayout, num_pages: int) -> layout.Pages:
    """Pages that hold NaN everywhere; int8 has none, so that its scales carry it."""
    struct = kv.struct(num_pages)
    if kv.quantized:
        scales = jnp.full(struct.scales.shape, jnp.nan, jnp.float32)
        return layout.QuantizedPages(jnp.ones(struct.values.shape, kv.storage_dtype), scales)
    return layout.to_storage(jnp.full(struct.shape, jnp.nan, jnp.float32), kv.storage_dtype)


@jax.jit
def _written(pages: layout.Pages, new: jax.Array, slots: Any) -> layout.Pages:
    """Tokens (T, K, H) at their kv slots; heads of 128 lie on a TPU as they do elsewhere."""
    page_size = pages.shape[2]
    page, offset = slots // page_size, slots % page_size
    if isinstance(pages, layout.QuantizedPages):
        values, scales = layout.quantize(new, pages.dtype)
        return layout.QuantizedPages(
            pages.values.at[page, :, offset].set(values), pages.scales.at[page, :, offset].set(scales)
        )
    return pages.at[page, :, offset].set(layout.to_storage(new, pages.dtype))


def _as_stored(tokens: jax.Array, kv: KVLayout) -> jax.Array:
    if kv.quantized:
        return layout.to_float32(*layout.quantize(tokens, kv.dtype))
    return tokens.astype(kv.dtype).astype(jnp.float32)
