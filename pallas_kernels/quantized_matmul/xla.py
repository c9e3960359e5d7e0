"""The quantized product in plain XLA: correct everywhere, and fast where XLA has a product of the narrow types.

Why there is no kernel beside it for most formats: ahead of time for five TPU generations and for Hopper, XLA fuses the
widening of int8 and float8 weights into the product and writes no wide weight (tests/aot/test_quantized_matmul.py); for
int4 it does not on Hopper, and on a TPU it does, group by group, but by its own count moves the weight three times:
`mosaic_gpu.py` and `mosaic_tpu.py` have kernels.

With activations in int8, or on GPU and TPU in float8, the product is one of narrow types; scales multiply the sums, as
long as there is one for each output. Quantized weights alone are widened in front of the product. XLA writes the wide
weight to memory on a CPU at every step, which is why `layout.for_target` keeps another form there.

mxfp4 is widened slice by slice of the outputs (`_in_slices`), because no XLA fuses that into a product: a wide slice is
what is in memory, never the wide weight.

A product of one row in a narrow type falls off a cliff in XLA:CPU (twenty times slower than two), so there are never
fewer than two rows there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.qtensor import FP8, INT4_MIDDLE, QTensor, dequantize, round_activations, widen_mxfp4

SLICE = 4 << 20  # numbers of mxfp4 that are wide at a time: 8 MB in bfloat16, which stay on a chip


def quantized_matmul(x: jax.Array, weight: QTensor, *, target: DeviceTarget, merge: bool) -> jax.Array:
    """See `api.quantized_matmul`; x (T, I) has the order of `weight.values`."""
    num_tokens = x.shape[0]
    on_cpu = target.platform == "cpu"
    x = _enough_rows(x, on_cpu)
    plain = _is_plain(weight)
    if weight.kind == "mxfp4":
        y = _in_slices(x.astype(jnp.float32) if on_cpu else x, (weight,), jnp.int32(0))
    elif weight.values.dtype == jnp.int4 and weight.activations is None:
        y = _grouped(x, weight)
    elif weight.activations is None:
        # XLA:CPU has no product of bfloat16 for some small shapes, and would be no faster with it here.
        y = _widened(x.astype(jnp.float32) if on_cpu else x, weight, plain and weight.kind != "int4", merge)
    elif plain and weight.kind == weight.activations:
        y = _narrow(x, weight, on_cpu, merge)
    else:
        numbers, scales = round_activations(x, weight.activations)
        wide = _fp8_to_float32(numbers) if weight.activations == "fp8" else numbers.astype(jnp.float32)
        y = _column(_product(wide, _in_values_order(weight), jnp.float32, merge), scales)
    return y[:num_tokens]


def is_narrow(weight: QTensor) -> bool:
    """Whether its product is one of two factors in 8 bits, with one scale for each output."""
    return _is_plain(weight) and weight.order is None and weight.kind == weight.activations


def narrow_matmul_of_choice(
    x: jax.Array, weights: Sequence[QTensor], index: jax.Array, *, target: DeviceTarget, merge: bool
) -> jax.Array:
    """`quantized_matmul` with weights[index]; all are narrow, and alike. x is rounded once, in front of the choice."""
    num_tokens, on_cpu, activations = x.shape[0], target.platform == "cpu", weights[0].activations
    assert activations is not None
    numbers, scales = round_activations(_enough_rows(x, on_cpu), activations)
    products = [partial(_sums, weight=weight, on_cpu=on_cpu, merge=merge) for weight in weights]
    sums, behind = lax.switch(index, products, numbers)
    return (_column(sums.astype(jnp.float32), scales) * behind)[:num_tokens]


def mxfp4_matmul_of_choice(
    x: jax.Array, weights: Sequence[QTensor], index: jax.Array, *, target: DeviceTarget
) -> jax.Array:
    """`quantized_matmul` with weights[index], all in mxfp4 and alike. What is chosen is a slice, before it is wide."""
    on_cpu = target.platform == "cpu"
    x = x.astype(jnp.float32) if on_cpu else x
    return _in_slices(_enough_rows(x, on_cpu), weights, index)[: x.shape[0]]


def _is_plain(weight: QTensor) -> bool:
    return weight.group == weight.inputs and weight.zeros is None


def _enough_rows(x: jax.Array, on_cpu: bool) -> jax.Array:
    return jnp.concatenate([x, x]) if on_cpu and x.shape[0] == 1 else x


def _narrow(x: jax.Array, weight: QTensor, on_cpu: bool, merge: bool) -> jax.Array:
    """Both factors in 8 bits, scales behind the sums."""
    assert weight.activations is not None
    numbers, scales = round_activations(x, weight.activations)
    sums, behind = _sums(numbers, weight, on_cpu, merge)
    return _column(sums.astype(jnp.float32), scales) * behind


def _sums(numbers: jax.Array, weight: QTensor, on_cpu: bool, merge: bool) -> tuple[jax.Array, jax.Array]:
    """numbers (T, I) times those of the weight, (T, *O) int32 or float32; and the weight's scales (*O)."""
    values = weight.values
    if weight.kind == "fp8" and on_cpu:  # no such product there; both are exact in float32
        numbers, values = _fp8_to_float32(numbers), values.astype(jnp.float32)
    sums = _product(numbers, values, jnp.int32 if weight.kind == "int8" else jnp.float32, merge)
    return sums, weight.scales[..., 0]


def _widened(x: jax.Array, weight: QTensor, scales_behind: bool, merge: bool) -> jax.Array:
    """Activations as they are. Numbers of 8 bits are exact in bfloat16: scales of outputs stay behind the sums."""
    if scales_behind:
        return _product(x, weight.values.astype(x.dtype), jnp.float32, merge) * weight.scales[..., 0]
    return _product(x, _in_values_order(weight).astype(x.dtype), jnp.float32, merge)


def _grouped(x: jax.Array, weight: QTensor) -> jax.Array:
    """Numbers of 4 bits group by group: scales and zero points multiply the sums of a group. No axis is merged."""
    groups, last = weight.scales.shape[-1], len(weight.outputs)
    parts = x.reshape(x.shape[0], groups, -1)  # (T, A, g)
    numbers = weight.values.reshape(*weight.outputs, groups, weight.group).astype(x.dtype)
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    dimensions = (((2,), (last + 1,)), ((1,), (last,)))
    sums = lax.dot_general(parts, numbers, dimensions, precision=precision, preferred_element_type=jnp.float32)
    scales = jnp.moveaxis(weight.scales, -1, 0)[:, None]  # (A, 1, *O); sums are (A, T, *O)
    if weight.zeros is not None:
        totals = jnp.sum(parts.astype(jnp.float32), axis=-1).T  # (A, T)
        shifts = jnp.moveaxis(weight.zeros, -1, 0)[:, None].astype(jnp.float32) - INT4_MIDDLE
        sums -= totals.reshape(*totals.shape, *(1,) * last) * shifts
    return jnp.sum(sums * scales, axis=0)


def _in_slices(x: jax.Array, weights: Sequence[QTensor], index: jax.Array) -> jax.Array:
    """weights[index] in mxfp4: a slice of the outputs is widened to x's type and multiplied, then the next is."""
    like = weights[0]
    outputs = math.prod(like.outputs)
    size = min(outputs, max(1, SLICE // like.inputs))

    def cut(first: jax.Array, weight: QTensor) -> tuple[jax.Array, jax.Array]:
        values, scales = (part.reshape(outputs, -1) for part in (weight.values, weight.scales))
        return lax.dynamic_slice_in_dim(values, first, size), lax.dynamic_slice_in_dim(scales, first, size)

    def product_of(first: jax.Array) -> jax.Array:
        numbers, exponents = lax.switch(index, [partial(cut, weight=weight) for weight in weights], first)
        return _product(x, widen_mxfp4(numbers, exponents).astype(x.dtype), jnp.float32, merge=False)

    if size == outputs:
        return product_of(jnp.int32(0)).reshape(x.shape[0], *like.outputs)

    def body(index: jax.Array, y: jax.Array) -> jax.Array:
        first = jnp.minimum(index * size, outputs - size)  # the last slice may compute some outputs again
        return lax.dynamic_update_slice_in_dim(y, product_of(first), first, axis=1)

    y = lax.fori_loop(0, -(-outputs // size), body, jnp.zeros((x.shape[0], outputs), jnp.float32))
    return y.reshape(x.shape[0], *like.outputs)


def _fp8_to_float32(numbers: jax.Array) -> jax.Array:
    """By their bits: XLA drops a conversion to float8 that meets one back, rounding and all."""
    every = np.arange(256, dtype=np.uint8).view(FP8).astype(np.float32)
    return jnp.asarray(every)[lax.bitcast_convert_type(numbers, jnp.uint8)]


def _in_values_order(weight: QTensor) -> jax.Array:
    """The weight (*O, I) float32, inputs as `values` has them."""
    return dequantize(dataclasses.replace(weight, order=None))


def _product(x: jax.Array, weight: jax.Array, sums: jax.typing.DTypeLike, merge: bool) -> jax.Array:
    """(T, I) times (*O, I): (T, *O) in `sums`; float32 factors are not rounded."""
    outputs = weight.shape[:-1]
    if merge:
        weight = weight.reshape(-1, weight.shape[-1])
    contract = ((1,), (weight.ndim - 1,))
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    y = lax.dot_general(x, weight, (contract, ((), ())), precision=precision, preferred_element_type=sums)
    return y.reshape(x.shape[0], *outputs)


def _column(y: jax.Array, scales: jax.Array) -> jax.Array:
    """y (T, *O) times scales (T, 1)."""
    return y * scales.reshape(-1, *(1,) * (y.ndim - 1))
