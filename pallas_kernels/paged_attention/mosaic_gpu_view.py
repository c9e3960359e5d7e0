"""Which keys a block of threads of `mosaic_gpu_kernel.py` attends to."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.paged_attention.mosaic_gpu_plan import BLOCK_KEYS, HopperPlan


class View(NamedTuple):
    """The keys of a block of threads; all (), int32."""

    first: jax.Array  # the first and the last key that some query of the piece sees
    last: jax.Array
    begin: jax.Array  # the part's blocks of keys, begin <= block < end
    end: jax.Array
    whole_begin: jax.Array  # those of them that every query sees whole
    whole_end: jax.Array


def view_of(plan: HopperPlan, base: jax.Array, length: jax.Array, part: jax.Array) -> View:
    """Those of one part of a piece with `length` tokens, of which the first is at position `base`."""
    size, window = jnp.int32(BLOCK_KEYS), plan.options.sliding_window
    last = base + length - 1
    first = jnp.int32(0) if window is None else jnp.maximum(base - (window - 1), 0)
    begin, end = lax.div(first, size), lax.div(last, size) + 1
    each = lax.div(end - begin + (plan.parts - 1), jnp.int32(plan.parts))
    begin = jnp.minimum(begin + part * each, end)
    end = jnp.minimum(begin + each, end)
    # The first query sees keys up to `base`, the last one those after `last - window`.
    inside = jnp.int32(0) if window is None else lax.div(jnp.maximum(last - window + 1, 0) + (size - 1), size)
    whole_begin = jnp.clip(inside, begin, end)
    whole_end = jnp.clip(lax.div(base + 1, size), whole_begin, end)
    return View(first, last, begin, end, whole_begin, whole_end)
