"""The form in which a quantized weight is kept on a device: what its products want there.

A GPU keeps what the checkpoint or the scheme says.

A TPU keeps int4 as words with the outputs in the lanes, which its kernel (`mosaic_tpu.py`) takes apart on the chip: in
no form that XLA's own product knows does it move about the weight's own bytes on every generation. Of the output axes
those from the split one on become one, so that heads of 64 fill the lanes too. What the kernel does not serve lies in
JAX's own int4, which XLA packs and takes apart group by group. mxfp4 lies in that type too: so XLA moves a third of
what it moves for pairs in bytes, which it takes apart in memory.

A CPU has one fast quantized product, int8 by int8 (XLA:CPU, JAX 0.11: twice as fast as anything else at every row
count); weights alone in 8 or 4 bits would be widened in memory at every step, eight times slower. So on a CPU every
weight is kept in int8 with a scale for each output, and activations are rounded to int8 token by token. What was
rounded to fewer bits, or in groups, is rounded once more, to 1/254 of the largest weight of an output; `dequantize` of
the result says what the model then computes with. MXFP4 is not rounded again: its numbers are exact in bfloat16, and
the C++ kernels widen them in the cache.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.qtensor import BLOCK_OF_WORDS, INT4_MIDDLE, QTensor, dequantize, quantize, to_words, unpack_int4

_TPU_GROUPS = (16, 32, 64)  # that share the 128 lanes of a product; and multiples of 128


def for_target(
    weight: QTensor, target: DeviceTarget, shards: tuple[int, ...] | None = None, *, leading: int = 0
) -> QTensor:
    """`weight` as `target` keeps it. Can be jitted.

    Args:
        shards: over how many devices each of the axes (*O, I) is split; None: on one device.
        leading: so many of the output axes stay apart: 1 for experts, of which a product takes one at a time.

    Raises:
        ValueError: `shards` has not as many numbers as the weight has axes.
    """
    shards = (1,) * len(weight.shape) if shards is None else shards
    if len(shards) != len(weight.shape):
        raise ValueError(f"shards is {shards}; it must have a number for each axis of the weight {weight.shape}")
    if weight.kind == "mxfp4":
        if target.platform == "tpu" and weight.values.dtype == jnp.uint8:
            signed = (unpack_int4(weight.values) ^ 8) - 8  # the same four bits
            weight = dataclasses.replace(weight, values=signed.astype(jnp.int4))
        return dataclasses.replace(weight, target=target)
    if target.platform == "cpu":
        plain = weight.kind == "int8" and weight.group == weight.inputs
        if not plain or weight.zeros is not None or weight.order is not None:
            weight = quantize(dequantize(weight), "int8")
        weight = dataclasses.replace(weight, activations="int8")
    elif target.platform == "tpu" and weight.kind == "int4" and weight.values.dtype == jnp.uint8:
        if _fits_words(weight, shards, leading):
            split = next((axis for axis, count in enumerate(shards[:-1]) if axis >= leading and count > 1), leading)
            weight = to_words(weight, split)
        else:
            numbers = (unpack_int4(weight.values) - INT4_MIDDLE).astype(jnp.int4)
            weight = dataclasses.replace(weight, values=numbers)
    return dataclasses.replace(weight, target=target)


def _fits_words(weight: QTensor, shards: tuple[int, ...], leading: int) -> bool:
    """Whether each device's share is whole blocks of words, in groups that the TPU's kernel multiplies."""
    inputs = weight.inputs // shards[-1]
    group = min(weight.group, inputs)
    return (
        weight.activations is None
        and sum(count > 1 for count in shards[leading:-1]) <= 1
        and inputs % BLOCK_OF_WORDS == 0
        and (group % 128 == 0 or group in _TPU_GROUPS)
    )
