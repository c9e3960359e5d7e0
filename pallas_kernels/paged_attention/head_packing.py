"""Attention over pages whose last axis is wider than a head: heads side by side in it, or one head and zeros.

A TPU reads its memory in rows of 128 lanes, so `layout.kv_layout` fills them there. Such pages are pages of fewer and
wider kv heads: a query head is widened by zeros where the other heads of its row lie, which adds nothing to its scores,
and of its output only its own head's lanes are kept. So backends know nothing of this.

Legend: T tokens, N query heads, K kv heads, G = N // K, H head_dim, C kv heads of a row of lanes, L lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def with_packed_heads(run: Callable[..., Any]) -> Callable[..., Any]:
    """A backend's function for pages (P, K // C, page_size, L), L >= C * H, instead of (P, K, page_size, H)."""

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, k_pages: Any, v_pages: Any, batch: Any, sinks: Any, **options: Any
    ) -> Any:
        head_dim, num_rows, lanes = q.shape[-1], k_pages.shape[1], k_pages.shape[-1]
        if lanes == head_dim:
            return run(q, k, v, k_pages, v_pages, batch, sinks, **options)
        heads = k.shape[1] // num_rows
        out, *rest = run(
            _queries(q, num_rows, heads, lanes),
            packed_keys(k, num_rows, lanes),
            packed_keys(v, num_rows, lanes),
            k_pages,
            v_pages,
            batch,
            sinks,
            **options,
        )
        return (_own_lanes(out, num_rows, heads, head_dim), *rest)

    return attend


def packed_keys(x: jax.Array, num_rows: int, lanes: int) -> jax.Array:
    """Keys, or values, (T, K, H) as pages keep them, (T, K // C, L)."""
    joined = x.reshape(x.shape[0], num_rows, -1)
    return jnp.pad(joined, ((0, 0), (0, 0), (0, lanes - joined.shape[-1])))


def _queries(q: jax.Array, num_rows: int, heads: int, lanes: int) -> jax.Array:
    """(T, N, H) as (T, N, L), zeros outside the lanes of the kv head that a query head reads."""
    num_tokens, num_heads, head_dim = q.shape
    apart = q.reshape(num_tokens, num_rows, heads, -1, 1, head_dim)
    # Chosen, not multiplied: what padding tokens hold may be NaN.
    own = jnp.eye(heads, dtype=bool).reshape(1, 1, heads, 1, heads, 1)
    wide = jnp.where(own, apart, jnp.zeros_like(apart)).reshape(num_tokens, num_heads, heads * head_dim)
    return jnp.pad(wide, ((0, 0), (0, 0), (0, lanes - wide.shape[-1])))


def _own_lanes(out: jax.Array, num_rows: int, heads: int, head_dim: int) -> jax.Array:
    """(T, N, L) as (T, N, H)."""
    num_tokens, num_heads, _ = out.shape
    apart = out[..., : heads * head_dim].reshape(num_tokens, num_rows, heads, -1, heads, head_dim)
    own = jnp.stack([apart[:, :, head, :, head] for head in range(heads)], axis=2)
    return own.reshape(num_tokens, num_heads, head_dim)
