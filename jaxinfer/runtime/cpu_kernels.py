"""In which form a CPU computes products and attention: by C++ kernels for its instruction set, or by XLA.

What a CPU can do decides, and then a measurement: of one product of the model's own shape by either, for a single row
and for eight. Where the kernels cannot be had (no compiler, another kind of CPU) or XLA is faster, XLA serves.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from jaxinfer.config import ConfigError, RuntimeConfig
from jaxinfer.models.model import Model
from pallas_kernels.native_cpu.instructions import BY_NAME
from pallas_kernels.native_cpu.library import KernelsUnavailable, load
from pallas_kernels.native_cpu.matmul import dense_matmul

AUTO, XLA = "auto", "xla"
_ROWS = (1, 8)  # a single stream, and a few
_COPIES = 3  # of the weight, one after the other, so that it does not stay in the cache
_TRIES = 5
# XLA must take no more than this share of the time. Far from 1, so that a busy moment does not decide: bits differ
# between the two, and a model should give the same ones at every start. The kernels also skip padding, which this does
# not show.
_MARGIN = 0.5


class CpuForm(NamedTuple):
    """What was chosen. instructions: of the kernels, None for XLA. why: for people."""

    instructions: str | None
    why: str


def choose_form(model: Model, mesh: Mesh, runtime: RuntimeConfig) -> CpuForm:
    """Loads the kernels that `runtime.cpu_kernels` asks for.

    Raises:
        ConfigError: it names an instruction set that cannot be had here, or nothing that is known.
    """
    asked = runtime.cpu_kernels
    if asked not in (AUTO, XLA, *BY_NAME):
        raise ConfigError(f"cpu_kernels is {asked!r}; it must be one of {', '.join((AUTO, XLA, *BY_NAME))}")
    if mesh.devices.flat[0].platform != "cpu":
        return CpuForm(None, "the device is no CPU")
    if asked == XLA:
        return CpuForm(None, "XLA was asked for")
    if mesh.size > 1:
        return CpuForm(None, "XLA, which knows how to split a product over several devices")
    try:
        instructions = load(asked)
    except KernelsUnavailable as error:
        if asked != AUTO:
            raise ConfigError(f"cpu_kernels is {asked!r}, which cannot be had here: {error}") from error
        return CpuForm(None, f"XLA, since the C++ kernels cannot be had: {error}")
    if asked != AUTO:
        return CpuForm(instructions.name, f"C++ kernels for {instructions.name}, as asked for: {instructions.products}")
    outputs, inputs = largest_product(model)
    ours, xla = measured(instructions.name, outputs, inputs, model.dtype)
    times = f"{outputs} x {inputs} for {_ROWS[0]} and {_ROWS[1]} rows: {1e3 * ours:.2f} ms, XLA {1e3 * xla:.2f} ms"
    if xla < _MARGIN * ours:
        return CpuForm(None, f"XLA, which is faster than the C++ kernels for {instructions.name} ({times})")
    return CpuForm(instructions.name, f"C++ kernels for {instructions.name}: {instructions.products} ({times})")


def largest_product(model: Model) -> tuple[int, int]:
    """(outputs, inputs) of a layer's product that moves most bytes: gate and up."""
    layer = model.shape.layers[0]
    return 2 * layer.mlp, model.config.hidden_size


@functools.cache
def measured(instructions: str, outputs: int, inputs: int, dtype: str) -> tuple[float, ...]:
    """Seconds that one product takes for each of the row counts, added up: by the kernels, by XLA."""
    weights = [jnp.full((outputs, inputs), 0.01, dtype) for _ in range(_COPIES)]

    def ours(x: jax.Array) -> jax.Array:
        products = (dense_matmul(x, [w], jnp.int32(0), jnp.int32(len(x)), instructions=instructions) for w in weights)
        return sum(products, jnp.zeros((len(x), outputs), jnp.float32))

    def xla(x: jax.Array) -> jax.Array:
        contract = (((1,), (1,)), ((), ()))
        products = (lax.dot_general(x, w, contract, preferred_element_type=jnp.float32) for w in weights)
        return sum(products, jnp.zeros((len(x), outputs), jnp.float32))

    return _fastest([ours, xla], inputs, dtype)


def _fastest(functions: Sequence[Callable[[jax.Array], jax.Array]], inputs: int, dtype: str) -> tuple[float, ...]:
    """Seconds of a product of each function, in turns, so that what else the machine does meets all of them."""
    runs = [jax.jit(function) for function in functions]
    totals = [0.0] * len(runs)
    for rows in _ROWS:
        x, best = jnp.ones((max(rows, 2), inputs), dtype), [math.inf] * len(runs)  # XLA never gets one row: `linear`
        for _ in range(_TRIES):
            for index, run in enumerate(runs):
                begin = time.perf_counter()
                jax.block_until_ready(run(x))
                best[index] = min(best[index], time.perf_counter() - begin)
        totals = [total + seconds / _COPIES for total, seconds in zip(totals, best, strict=True)]
    return tuple(totals)
