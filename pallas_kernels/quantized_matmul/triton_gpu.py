"""The quantized product for NVIDIA GPUs from Ampere on: the launch of the Triton kernel in `triton_gpu_kernel.py`.

Legend: T rows, *O output axes, I inputs, A groups, Z parts into which the inputs are cut.

For quantized weights alone. A product of quantized activations, too, is XLA's: it has tensor cores for those types.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.qtensor import QTensor
from pallas_kernels.quantized_matmul.triton_gpu_plan import TritonMatmulPlan
from pallas_kernels.triton_support import Launch, Run, capability_number, run


@functools.partial(jax.jit, static_argnames=("target", "merge", "run"))
def quantized_matmul(x: jax.Array, weight: QTensor, *, target: DeviceTarget, merge: bool, run: Run = run) -> jax.Array:
    """See `api.quantized_matmul`; x (T, I) has the order of `weight.values`. `run` launches the kernel: tests give one
    that runs it in Triton's interpreter.

    Jitted so that a model's equal layers are traced and lowered once.
    """
    del merge  # it sees one device's share, of which no axis is split
    rows, inputs = x.shape
    groups = weight.scales.shape[-1]
    plan = TritonMatmulPlan(
        rows=rows,
        outputs=math.prod(weight.outputs),
        inputs=inputs,
        groups=groups,
        kind=weight.kind,
        has_zeros=weight.zeros is not None,
        dtype=np.dtype(x.dtype),
        compute_capability=capability_number(target),
    )
    values = weight.values
    # In the order in which the kernel reads it: XLA fuses this into what made x.
    x = jnp.swapaxes(x.reshape(rows, inputs // plan.numbers, plan.numbers), 1, 2).reshape(rows, inputs)
    if weight.kind == "fp8":  # costs nothing: XLA takes the array as it is
        values = lax.bitcast_convert_type(values, jnp.uint8)
    scales = weight.scales.reshape(plan.outputs, groups)
    arguments = (
        x,
        values.reshape(plan.outputs, -1),
        scales,
        scales if weight.zeros is None else weight.zeros.reshape(plan.outputs, groups),
    )
    launch = Launch(
        kernel="pallas_kernels.quantized_matmul.triton_gpu_kernel:multiply",
        name=f"quantized_matmul_{weight.kind}",
        programs=plan.tiles * plan.parts,
        constants=plan.constants(),
        num_warps=plan.sizes.num_warps,
        num_stages=plan.sizes.num_stages,
        compute_capability=plan.compute_capability,
    )
    (sums,) = run(launch, arguments, (jax.ShapeDtypeStruct((plan.parts, rows, plan.outputs), jnp.float32),))
    return jnp.sum(sums, axis=0).reshape(rows, *weight.outputs)
