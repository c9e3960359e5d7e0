"""The grouped product alone on a CPU: the C++ kernel, XLA's blocks and `jax.lax.ragged_dot`, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.grouped_matmul import xla
from pallas_kernels.native_cpu.grouped_matmul import grouped_dense_matmul
from pallas_kernels.native_cpu.library import load

TOKENS = (1, 8, 64, 512)
EXPERTS = ((8, 2), (32, 4), (64, 8), (128, 8))  # how many there are, and of how many a token is
OUTPUTS, INPUTS = 512, 1024  # of one expert: gate and up of `qwen3moe-0.5b`
RAGGED = "ragged_dot"
Product = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Row(NamedTuple):
    """Milliseconds of wall time, the best of a few; touched: experts that have rows."""

    tokens: int
    experts: int
    chosen: int
    touched: int
    milliseconds: dict[str, float]


def products() -> dict[str, Product]:
    """All take x (R, I), a weight, group sizes (E,) and give (R, O) float32. Weights are (E, O, I), of `ragged_dot`
    (E, I, O)."""
    instructions, target = load("auto").name, DeviceTarget("cpu", "cpu")

    def native(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
        return grouped_dense_matmul(x, [weight], jnp.int32(0), sizes, instructions=instructions)

    def blocks(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
        return xla.grouped_matmul(x, weight, sizes, target=target)

    def ragged(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(x, weight, sizes, preferred_element_type=jnp.float32)

    return {"C++": native, "XLA blocks": blocks, RAGGED: ragged}


def measure(tries: int, tokens: tuple[int, ...] = TOKENS, experts: tuple[tuple[int, int], ...] = EXPERTS) -> list[Row]:
    """All sizes, with experts drawn evenly, bfloat16. All products must agree."""
    compiled = {name: jax.jit(product) for name, product in products().items()}
    found = []
    for count, chosen in experts:
        rng = np.random.default_rng(0)
        weight = jnp.asarray(rng.standard_normal((count, OUTPUTS, INPUTS), np.float32) * 0.02, jnp.bfloat16)
        # (E, O, I), in which the decoder keeps it; `ragged_dot` wants (E, I, O), and is not charged for turning it.
        laid_out = {name: weight.transpose(0, 2, 1) if name == RAGGED else weight for name in compiled}
        for number in tokens:
            drawn = np.concatenate([rng.permutation(count)[:chosen] for _ in range(number)])
            sizes = np.bincount(drawn, minlength=count).astype(np.int32)
            x = jnp.asarray(rng.standard_normal((number * chosen, INPUTS), np.float32), jnp.bfloat16)
            groups = jnp.asarray(sizes)
            expected = compiled["C++"](x, weight, groups)
            best = dict.fromkeys(compiled, float("inf"))
            for name, product in compiled.items():
                np.testing.assert_allclose(product(x, laid_out[name], groups), expected, rtol=2e-2, atol=2e-2)
            for _ in range(tries):
                for name, product in compiled.items():
                    begin = time.perf_counter()
                    jax.block_until_ready(product(x, laid_out[name], groups))
                    best[name] = min(best[name], 1e3 * (time.perf_counter() - begin))
            found.append(Row(number, count, chosen, int(np.count_nonzero(sizes)), best))
    return found
