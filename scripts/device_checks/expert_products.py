"""Grouped products, of rows with their experts: ours, one backend a process, and those of JAX, Pallas and tokamax.

A turn of the timed program (`jax_timing`) multiplies by the experts of several layers, one after the other; activations
depend on the product before through a term too small to change them. A peer gets its weights as it wants them, with
the outputs last.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from device_checks.child import Case
from device_checks.expert_cases import ExpertCase, expert_cases
from device_checks.jax_timing import lower_loop, time_loop
from device_checks.product_cases import GROUP, PLAIN
from device_checks.settings import Settings
from pallas_kernels.dispatch import DeviceTarget, select
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.grouped_matmul.api import OP, case_of
from pallas_kernels.qtensor import QTensor, quantize
from pallas_kernels.quantized_matmul.layout import for_target

_NO_CHANGE = 1e-30
Experts = QTensor | jax.Array
Product = Callable[[jax.Array, Any, jax.Array], jax.Array]  # x, weight, group sizes
_TILE = 128  # rows that Pallas' product wants whole tiles of


def cases(settings: Settings, backend: str | None = None, peer: str | None = None) -> Iterator[Case]:
    """Args:
    backend: one of ours; else:
    peer: a name of `PEERS`.
    """
    for case in expert_cases(settings):
        if backend is not None:
            yield Case(case.name, functools.partial(measure, case, backend))
        elif case.scheme == PLAIN and peer is not None:
            yield Case(case.name, functools.partial(measure_peer, case, PEERS[peer]))


def measure(case: ExpertCase, backend: str) -> dict[str, Any]:
    """Compiles, runs, and returns what was read. Raises Unsupported, before anything is made."""
    target = DeviceTarget.of(jax.devices()[0])
    x, weight, _ = abstract_arguments(case, target, None)
    select(OP, target, case_of(x, weight), backend)
    return _measure(case, product_of(target, backend), functools.partial(make_experts, case, target))


def measure_peer(case: ExpertCase, product: Product) -> dict[str, Any]:
    def make(key: jax.Array) -> jax.Array:
        return _random(case, key).swapaxes(1, 2)

    return _measure(case, product, make)


def _measure(case: ExpertCase, product: Product, make: Callable[[jax.Array], Any]) -> dict[str, Any]:
    layers = [jax.jit(make)(jax.random.key(seed)) for seed in range(case.weights)]
    x = jax.random.normal(jax.random.key(99), (case.rows, case.model.inputs), jnp.bfloat16)
    sizes = jnp.asarray(case.group_sizes, jnp.int32)
    begin = time.perf_counter()
    program = lower(case, product, x, layers, sizes).compile()
    compile_seconds = time.perf_counter() - begin
    timing, x = time_loop(program, x, (layers, sizes), case.turns * case.weights)
    if not bool(jnp.isfinite(x).all()):
        raise ValueError("the outputs are not finite")
    return {**case.fields(), "compile_seconds": compile_seconds, **timing.fields()}


def lower(case: ExpertCase, product: Product, x: Any, layers: list[Any], sizes: Any) -> jax.stages.Lowered:
    """The timed program, for arrays or for shapes."""

    def turn(index: jax.Array, x: jax.Array, given: tuple[list[Any], jax.Array]) -> jax.Array:
        del index
        layers, sizes = given
        for weight in layers:
            y = product(x, weight, sizes)
            x = x + (jnp.max(y) * _NO_CHANGE).astype(x.dtype)  # every output counts
        return x

    return lower_loop(turn, x, (layers, sizes), case.turns)


def product_of(target: DeviceTarget, backend: str) -> Product:
    return functools.partial(grouped_matmul, target=target, backend=backend)


def make_experts(case: ExpertCase, target: DeviceTarget, key: jax.Array) -> Experts:
    """Random experts as `target` keeps them."""
    wide = _random(case, key)
    if case.scheme == PLAIN:
        return wide
    return for_target(quantize(wide, "int4", GROUP), target, leading=1)


def _random(case: ExpertCase, key: jax.Array) -> jax.Array:
    shape = (case.model.experts, case.model.outputs, case.model.inputs)
    return jax.random.normal(key, shape, jnp.bfloat16) * jnp.bfloat16(case.model.inputs**-0.5)


def abstract_arguments(case: ExpertCase, target: DeviceTarget, sharding: Any) -> tuple[Any, Any, Any]:
    """Activations, the experts of one layer and group sizes as shapes."""
    weight = jax.eval_shape(functools.partial(make_experts, case, target), jax.random.key(0))
    x = jax.ShapeDtypeStruct((case.rows, case.model.inputs), jnp.bfloat16)
    sizes = jax.ShapeDtypeStruct((case.model.experts,), jnp.int32)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), (x, weight, sizes))


def _ragged_dot(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    return jax.lax.ragged_dot(x, weight, sizes, preferred_element_type=jnp.float32)


def _megablox(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    if jax.devices()[0].platform != "tpu":
        raise NotImplementedError("a TPU kernel")
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    whole = jnp.pad(x, ((0, -x.shape[0] % _TILE), (0, 0)))
    inputs, outputs = (min(512, size) for size in weight.shape[1:])
    y = gmm(whole, weight, sizes, preferred_element_type=jnp.float32, tiling=(_TILE, inputs, outputs))
    return y[: x.shape[0]]


def _tokamax(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    """The implementation that it chooses itself."""
    import tokamax

    return tokamax.ragged_dot(x, weight, sizes, preferred_element_type=jnp.float32)


PEERS: dict[str, Product] = {"jax_ragged_dot": _ragged_dot, "pallas_megablox": _megablox, "tokamax": _tokamax}
