"""How fast this machine reads its memory: the limit of a step that must read every weight."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_BYTES = 256 << 20  # of each array: larger than caches
_TRIES = 4


def host_read_bandwidth() -> float:
    """Bytes per second that all of this process's cores together read from memory, at best: numpy sums large arrays."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = [np.ones(_BYTES >> 3) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        best = min(_seconds(lambda: list(pool.map(np.sum, parts))) for _ in range(_TRIES))
    return sum(part.nbytes for part in parts) / best


def device_read_bandwidth() -> float:
    """The same of the first device of JAX: a compiled sum of one large array."""
    import jax
    import jax.numpy as jnp

    if jax.devices()[0].platform == "cpu":
        return host_read_bandwidth()
    array = jnp.ones((4 * _BYTES >> 2,), jnp.float32)
    total = jax.jit(jnp.sum)
    total(array).block_until_ready()
    return array.nbytes / min(_seconds(lambda: total(array).block_until_ready()) for _ in range(_TRIES))


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin
