"""The oracle of paged attention: numpy, one query at a time, nothing clever. Far too slow to serve with.

Arithmetic is in float64, so that the oracle's own rounding takes no share of a backend's tolerance.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.paged_attention import layout
from pallas_kernels.paged_attention.api import RaggedBatch
from pallas_kernels.paged_attention.options import AttentionOptions

NumpyPages = np.ndarray | layout.QuantizedPages  # the latter with numpy arrays inside


def paged_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    k_pages: layout.Pages,
    v_pages: layout.Pages,
    batch: RaggedBatch,
    *,
    options: AttentionOptions,
    sinks: jax.Array | None = None,
) -> tuple[np.ndarray, NumpyPages, NumpyPages]:
    """What `api.paged_attention` must compute, on concrete arrays.

    Returns:
        out (T, N, H) float32; k_pages and v_pages, shaped as they came, in their storage dtype, as numpy arrays or
        `QuantizedPages` of them.
    """
    window, cap = options.sliding_window, options.soft_cap
    starts, lengths, tables, slots = (
        np.asarray(a) for a in (batch.query_start_loc, batch.seq_lens, batch.page_tables, batch.slot_mapping)
    )
    new_k_pages, new_v_pages = _written(k_pages, k, slots), _written(v_pages, v, slots)
    k_values, v_values = (_of_heads(_values(pages), k.shape[1:]) for pages in (new_k_pages, new_v_pages))
    queries = np.asarray(q).astype(np.float64)
    out = np.zeros(queries.shape, np.float32)
    _, num_heads, _ = queries.shape
    page_size, num_kv_heads = k_pages.shape[2], k.shape[1]
    for row, length in enumerate(lengths):
        begin, end = starts[row], starts[row + 1]
        for token in range(begin, end):
            position = length - (end - begin) + (token - begin)
            first = 0 if window is None else max(0, position - window + 1)
            keys = np.arange(first, position + 1)
            pages, offsets = tables[row, keys // page_size], keys % page_size
            for head in range(num_heads):
                kv_head = head // (num_heads // num_kv_heads)
                scores = k_values[pages, kv_head, offsets] @ queries[token, head] * options.scale
                if cap is not None:
                    scores = cap * np.tanh(scores / cap)
                sink = -np.inf if sinks is None else float(sinks[head])
                highest = max(scores.max(), sink)
                weights = np.exp(scores - highest)
                total = weights.sum() + np.exp(sink - highest)
                out[token, head] = weights @ v_values[pages, kv_head, offsets] / total
    return out, new_k_pages, new_v_pages


def _written(pages: layout.Pages, new: jax.Array, slots: np.ndarray) -> NumpyPages:
    """The pages (P, K // C, page_size, L) after token t's `new` (T, K, H) has gone to kv slot slots[t]."""
    joined = jnp.asarray(new).reshape(new.shape[0], pages.shape[1], -1)
    new = jnp.pad(joined, ((0, 0), (0, 0), (0, pages.shape[-1] - joined.shape[-1])))
    if isinstance(pages, layout.QuantizedPages):
        values, scales = layout.quantize(new, pages.dtype)
        page_size = pages.shape[2]
        parts: Any = (_put(pages.values, values, slots, page_size), _put(pages.scales, scales, slots, page_size))
        return layout.QuantizedPages(*parts)
    return _put(pages, layout.to_storage(new, pages.dtype), slots, pages.shape[2])


def _of_heads(values: np.ndarray, heads: tuple[int, ...]) -> np.ndarray:
    """Values of pages (P, K // C, page_size, L) as (P, K, page_size, H), for heads = (K, H)."""
    num_pages, num_rows, page_size, _ = values.shape
    num_heads, head_dim = heads
    apart = values[..., : num_heads // num_rows * head_dim].reshape(num_pages, num_rows, page_size, -1, head_dim)
    return apart.swapaxes(2, 3).reshape(num_pages, num_heads, page_size, head_dim)


def _put(array: jax.Array, new: jax.Array, slots: np.ndarray, page_size: int) -> np.ndarray:
    written, stored = np.array(array), np.asarray(new)
    for token, slot in enumerate(slots):
        written[slot // page_size, :, slot % page_size] = stored[token]
    return written


def _values(pages: NumpyPages) -> np.ndarray:
    if isinstance(pages, layout.QuantizedPages):
        with np.errstate(invalid="ignore"):  # what must not be read may hold NaN
            scales = np.asarray(pages.scales).astype(np.float64)[:, :, : pages.shape[2]]
            return np.asarray(pages.values).astype(np.float64) * scales[..., None]
    return np.asarray(layout.to_float32(jnp.asarray(pages))).astype(np.float64)
