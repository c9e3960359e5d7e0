"""The two ceilings through JAX: bytes a second of a copy, and products of bfloat16 matrices.

Copy: a kernel that reads and writes several gigabytes, counted as both. Matrix rate: 8192 x 8192 x 8192, random
numbers, float32 sums, each product the next one's factor, scaled so that the numbers neither grow nor vanish
(zeros or constants would run faster than real data).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from device_checks.child import Case
from device_checks.jax_timing import lower_loop, time_loop
from device_checks.settings import Settings


def cases(settings: Settings) -> Iterator[Case]:
    gib = (1 << 20) if settings.rehearse else (1 << 30)
    size = 256 if settings.rehearse else 8192
    yield Case("copy", lambda: _copy(4 * gib, 2 if settings.rehearse else 20))
    yield Case("matrix", lambda: _matrix(size, 2 if settings.rehearse else 50))


def _copy(num_bytes: int, turns: int) -> dict[str, Any]:
    x = jax.random.bits(jax.random.key(0), (num_bytes // 4,), jnp.uint32)
    program = lower_loop(lambda turn, x, _: x ^ turn.astype(jnp.uint32), x, (), turns).compile()
    timing, _ = time_loop(program, x, (), turns)
    return {"copy_bytes_per_second": 2 * num_bytes / timing.seconds, "bytes": num_bytes, **timing.fields()}


def _matrix(size: int, turns: int) -> dict[str, Any]:
    first, second = jax.random.split(jax.random.key(1))
    a = jax.random.normal(first, (size, size), jnp.bfloat16)
    b = jax.random.normal(second, (size, size), jnp.bfloat16) * jnp.bfloat16(size**-0.5)

    def product(turn: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        del turn
        return jnp.dot(a, b, preferred_element_type=jnp.float32).astype(jnp.bfloat16)

    program = lower_loop(product, a, b, turns).compile()
    timing, last = time_loop(program, a, b, turns)
    deviation = float(jnp.std(last.astype(jnp.float32)))
    if not 1e-3 < deviation < 1e6:
        raise ValueError(f"the factors of the product are no longer random numbers: their deviation is {deviation}")
    return {"flops_per_second": 2 * size**3 / timing.seconds, "size": size, **timing.fields()}
