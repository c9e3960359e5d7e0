"""The form in which a quantized weight is kept on a device: what its products want there.

A GPU keeps what the checkpoint or the scheme says.

A TPU keeps int4 in JAX's own type, which XLA packs: its products take numbers of that type group by group without
writing them out wide. Ahead-of-time compilation for v5e and v6e of 28,672 x 4,096 weights in groups of 128, 8 tokens:
0 MB of temporaries and 196 MB moved; bytes that are taken apart first need 59 MB to 1 GB of temporaries and move 477 MB
to 3.6 GB.

A CPU has one fast product of few bits, int8 by int8 (XLA:CPU, JAX 0.11: twice as fast as anything else at every row
count); weights alone in 8 or 4 bits would be widened in memory at every step, eight times slower. So on a CPU every
weight is kept in int8 with a scale for each output, and activations are rounded to int8 token by token. What was
rounded to fewer bits, or in groups, is rounded once more, to 1/254 of the largest weight of an output; `dequantize` of
the result says what the model then computes with.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.qtensor import INT4_MIDDLE, QTensor, dequantize, quantize, unpack_int4


def for_target(weight: QTensor, target: DeviceTarget) -> QTensor:
    """`weight` as `target` keeps it. Can be jitted."""
    if target.platform == "cpu":
        plain = weight.kind == "int8" and weight.group == weight.inputs
        if not plain or weight.zeros is not None or weight.order is not None:
            weight = quantize(dequantize(weight), "int8")
        weight = dataclasses.replace(weight, activations="int8")
    elif target.platform == "tpu" and weight.kind == "int4" and weight.values.dtype == jnp.uint8:
        numbers = (unpack_int4(weight.values) - INT4_MIDDLE).astype(jnp.int4)
        weight = dataclasses.replace(weight, values=numbers)
    return dataclasses.replace(weight, target=target)
