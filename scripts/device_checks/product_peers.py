"""Pallas' own mixed product for Hopper: int8 weights widened in registers, bfloat16 activations."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from device_checks.child import Case
from device_checks.jax_timing import lower_loop, time_loop
from device_checks.product_cases import ProductCase, product_cases
from device_checks.settings import Settings

_NO_CHANGE = 1e-30
# (tile_m, tile_n, tile_k): of its own benchmark, the ones that fit. It has no tile for a few tokens.
_TILES = ((128, 128, 64), (256, 128, 64))


def cases(settings: Settings) -> Iterator[Case]:
    for case in product_cases(settings):
        if case.scheme == "int8":
            yield Case(case.name, functools.partial(measure, case))


def measure(case: ProductCase) -> dict[str, Any]:
    """The better of its tiles."""
    if case.kind == "decode":
        raise NotImplementedError("its smallest tile is 64 tokens")
    if jax.devices()[0].platform == "cpu":
        raise NotImplementedError("a Hopper kernel")
    read = [(_time(case, tiles), tiles) for tiles in _TILES]
    timing, tiles = min(read, key=lambda entry: entry[0].seconds)
    return {**case.fields(), "tiles": tiles, **timing.fields()}


def _time(case: ProductCase, tiles: tuple[int, int, int]) -> Any:
    from jax.experimental.pallas.ops.gpu.hopper_mixed_type_matmul_mgpu import TuningConfig, mixed_matmul_kernel

    config = TuningConfig(*tiles, max_concurrent_steps=4, grid_tile_width=8)
    weights = [
        jax.random.randint(jax.random.key(seed), (case.outputs, case.inputs), -127, 128, jnp.int8)
        for seed in range(case.weights)
    ]
    x = jax.random.normal(jax.random.key(99), (case.inputs, case.tokens), jnp.bfloat16)

    def turn(index: jax.Array, x: jax.Array, given: list[jax.Array]) -> jax.Array:
        del index
        for weight in given:
            y = mixed_matmul_kernel(weight, x, out_dtype=jnp.bfloat16, config=config)
            x = x + (y[0, 0] * _NO_CHANGE).astype(x.dtype)
        return x

    program = lower_loop(turn, x, weights, case.turns).compile()
    return time_loop(program, x, weights, case.turns * case.weights)[0]
