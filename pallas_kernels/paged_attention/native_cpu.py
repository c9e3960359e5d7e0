"""Paged attention on CPUs by the C++ kernel of `native_cpu/attention.h`, which updates the pages in place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.native_cpu.library import target_name
from pallas_kernels.paged_attention.api import RaggedBatch
from pallas_kernels.paged_attention.options import AttentionOptions


def paged_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    batch: RaggedBatch,
    sinks: jax.Array | None,
    *,
    options: AttentionOptions,
    target: DeviceTarget,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `api.paged_attention`."""
    assert target.instructions is not None
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k_pages, v_pages)]
    call = jax.ffi.ffi_call(
        target_name("paged_attention", target.instructions), shapes, input_output_aliases={3: 1, 4: 2}
    )
    out, k_pages, v_pages = call(
        q,
        k.astype(q.dtype),
        v.astype(q.dtype),
        k_pages,
        v_pages,
        batch.query_start_loc,
        batch.seq_lens,
        batch.page_tables,
        batch.slot_mapping,
        jnp.zeros(0, jnp.float32) if sinks is None else sinks.astype(jnp.float32),
        scale=np.float32(options.scale),
        window=options.sliding_window or 0,
        soft_cap=np.float32(options.soft_cap or 0.0),
    )
    return out, k_pages, v_pages
