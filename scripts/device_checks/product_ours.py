"""Our quantized product, one backend a process, and the plain product of bfloat16 that it is compared with.

A turn of the timed program (`jax_timing`) multiplies by every weight of a set, one after the other, as the layers of a
model do; activations depend on the product before through a term too small to change them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from device_checks.child import Case
from device_checks.jax_timing import lower_loop, time_loop
from device_checks.product_cases import PLAIN, ProductCase, product_cases
from device_checks.settings import Settings
from jaxinfer.quantization import SCHEMES
from pallas_kernels.dispatch import DeviceTarget, select
from pallas_kernels.qtensor import QTensor, quantize
from pallas_kernels.quantized_matmul import OP, quantized_matmul
from pallas_kernels.quantized_matmul.api import case_of
from pallas_kernels.quantized_matmul.layout import for_target

_NO_CHANGE = 1e-30
Weight = QTensor | jax.Array


def cases(settings: Settings, backend: str) -> Iterator[Case]:
    known = {entry.name for entry in OP.backends}
    if backend not in known:
        yield Case("all", functools.partial(_refuse, f"this version has no backend {backend!r} of the product"))
        return
    for case in product_cases(settings):
        if case.scheme != PLAIN or backend == "xla":
            yield Case(case.name, functools.partial(measure, case, backend))


def _refuse(reason: str) -> dict[str, Any]:
    raise NotImplementedError(reason)


def measure(case: ProductCase, backend: str) -> dict[str, Any]:
    """Compiles, runs, and returns what was read. Raises Unsupported, before anything is made."""
    device = jax.devices()[0]
    target = DeviceTarget.of(device)
    abstract_x, abstract_weight = abstract_arguments(case, target, None)
    if isinstance(abstract_weight, QTensor):
        select(OP, target, case_of(abstract_x, abstract_weight), backend)
    make = jax.jit(functools.partial(make_weight, case, target))
    weights = [make(jax.random.key(seed)) for seed in range(case.weights)]
    x = jax.random.normal(jax.random.key(99), (case.tokens, case.inputs), jnp.bfloat16)
    begin = time.perf_counter()
    program = lower(case, target, backend, x, weights).compile()
    compile_seconds = time.perf_counter() - begin
    timing, x = time_loop(program, x, weights, case.turns * case.weights)
    if not bool(jnp.isfinite(x).all()):
        raise ValueError("the outputs are not finite")
    return {**case.fields(), "compile_seconds": compile_seconds, **timing.fields()}


def make_weight(case: ProductCase, target: DeviceTarget, key: jax.Array) -> Weight:
    """A random weight as `target` keeps it."""
    wide = jax.random.normal(key, (case.outputs, case.inputs), jnp.bfloat16) * jnp.bfloat16(case.inputs**-0.5)
    if case.scheme == PLAIN:
        return wide
    scheme = SCHEMES[case.scheme]
    group = min(scheme.groups[0], case.inputs) if scheme.groups else None
    return for_target(quantize(wide, scheme.kind, group, activations=scheme.activations), target)


def abstract_arguments(case: ProductCase, target: DeviceTarget, sharding: Any) -> tuple[Any, Any]:
    """Activations and one weight as shapes."""
    weight = jax.eval_shape(functools.partial(make_weight, case, target), jax.random.key(0))
    x = jax.ShapeDtypeStruct((case.tokens, case.inputs), jnp.bfloat16)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), (x, weight))


def lower(case: ProductCase, target: DeviceTarget, backend: str, x: Any, weights: list[Any]) -> jax.stages.Lowered:
    """The timed program, for arrays or for shapes."""

    def turn(index: jax.Array, x: jax.Array, given: list[Weight]) -> jax.Array:
        del index
        for weight in given:
            if isinstance(weight, QTensor):
                y = quantized_matmul(x, weight, target=target, backend=backend)
            else:
                y = jnp.dot(x, weight.T, preferred_element_type=jnp.float32)
            x = x + (jnp.max(y) * _NO_CHANGE).astype(x.dtype)  # every output counts
        return x

    return lower_loop(turn, x, weights, case.turns)
