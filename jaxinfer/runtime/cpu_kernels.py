"""In which form a CPU computes products and attention: by C++ kernels for its instruction set, or by XLA.

What a CPU can do decides, and then a measurement: of one product of the model's own shape by either, for a single row
and for eight, unless the model is so small that it makes no difference. Where the kernels cannot be had (no compiler,
another kind of CPU) or XLA is faster, XLA serves.
"""

from __future__ import annotations

import functools
import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxinfer.config import ConfigError, RuntimeConfig
from jaxinfer.models.layers.linear import product
from jaxinfer.models.model import Model
from pallas_kernels.native_cpu.instructions import BY_NAME
from pallas_kernels.native_cpu.library import KernelsUnavailable, load
from pallas_kernels.native_cpu.matmul import dense_matmul

AUTO, XLA = "auto", "xla"
_ROWS = (1, 8)  # a single stream, and a few
_XLA_ROWS = 8  # what XLA computes for either: with fewer a row's bits would depend on the others
_BYTES = 128 << 20  # of weights that are multiplied by one after the other: more than a cache keeps
_SMALLEST = 1 << 20  # bytes of a weight; below it calls cost more than products, and nothing is measured
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
    if outputs * inputs * jnp.dtype(model.dtype).itemsize < _SMALLEST:
        return CpuForm(instructions.name, f"C++ kernels for {instructions.name}: {instructions.products}")
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
def measured(instructions: str, outputs: int, inputs: int, dtype: str) -> tuple[float, float]:
    """Seconds that one product takes for each of the row counts, added up: by the kernels, by XLA.

    In turns, and the best of a few, so that what else the machine does does not decide.
    """
    copies = max(1, _BYTES // (outputs * inputs * jnp.dtype(dtype).itemsize))
    weights = [jnp.full((outputs, inputs), 0.01, dtype) for _ in range(copies)]

    @jax.jit
    def ours(x: jax.Array, weights: list[jax.Array]) -> list[jax.Array]:
        zero, count = jnp.int32(0), jnp.int32(len(x))
        return [dense_matmul(x, [w], zero, count, instructions=instructions)[0, :1] for w in weights]

    @jax.jit
    def xla(x: jax.Array, weights: list[jax.Array]) -> list[jax.Array]:
        return [product(x, w)[0, :1] for w in weights]

    best = {(function, rows): math.inf for function in (ours, xla) for rows in _ROWS}
    for _ in range(_TRIES):
        for function, rows in best:
            x = jnp.ones((rows if function is ours else _XLA_ROWS, inputs), dtype)
            begin = time.perf_counter()
            jax.block_until_ready(function(x, weights))
            best[function, rows] = min(best[function, rows], (time.perf_counter() - begin) / copies)
    return sum(best[ours, rows] for rows in _ROWS), sum(best[xla, rows] for rows in _ROWS)
