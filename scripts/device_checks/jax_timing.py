"""Times an op in JAX without its launch gaps.

The op runs many times in one compiled program: a `fori_loop` with a fixed number of turns, which XLA's GPU runtime
turns without asking the device for a condition, so that the host only enqueues and runs ahead. Each turn depends on the
one before through the carry, so nothing is hoisted out of the loop or computed once. A host clock around one call
and its end (`block_until_ready`) gives turns times the op plus one dispatch; the number of turns makes that dispatch
(about 0.1 ms) small. The median of the repeats is reported, and their spread, after one call that is thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from device_checks.timing import REPEATS, Timing, summarise

Body = Callable[[jax.Array, Any, Any], Any]


def lower_loop(body: Body, carry: Any, operands: Any, turns: int) -> jax.stages.Lowered:
    """`turns` times carry = body(turn, carry, operands), lowered for arrays or shapes. Donates the carry."""

    def run(carry: Any, operands: Any) -> Any:
        return lax.fori_loop(0, turns, lambda turn, inner: body(turn, inner, operands), carry)

    return jax.jit(run, donate_argnums=0).lower(carry, operands)


def time_loop(program: Callable[..., Any], carry: Any, operands: Any, launches: int) -> tuple[Timing, Any]:
    """Runs a compiled loop of `launches` ops `REPEATS` times after a warm-up: seconds an op, and the last carry."""
    carry = jax.block_until_ready(program(carry, operands))
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        carry = jax.block_until_ready(program(carry, operands))
        seconds.append((time.perf_counter() - begin) / launches)
    return summarise(seconds), carry
