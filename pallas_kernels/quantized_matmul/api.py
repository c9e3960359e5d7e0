"""The quantized product: its contract, its checks, and the choice of a backend.

Legend: T tokens, *O output axes of the weight, I its inputs, A groups of inputs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from pallas_kernels import triton_support
from pallas_kernels.dispatch import Backend, DeviceTarget, Op, select
from pallas_kernels.qtensor import Activations, Kind, QTensor
from pallas_kernels.quantized_matmul import xla
from pallas_kernels.quantized_matmul.split import Split, split_of


@dataclasses.dataclass(frozen=True)
class QuantizedMatmulCase:
    """What a backend is told before it is chosen; sizes are a device's own share."""

    num_tokens: int
    num_outputs: int
    num_inputs: int
    group: int
    kind: Kind
    activations: Activations | None
    has_zeros: bool
    dtype: np.dtype  # of the activations
    packed: bool = False  # how int4 lies: `qtensor.QTensor`


def _xla_supports(target: DeviceTarget, case: QuantizedMatmulCase) -> str | None:
    """Plain XLA serves every case on every device."""
    del target, case
    return None


def _mosaic_tpu_supports(target: DeviceTarget, case: QuantizedMatmulCase) -> str | None:
    """The TPU kernel takes words apart, whatever their number; `layout.py` says which weights lie so."""
    if target.platform != "tpu":
        return "it runs on TPU only"
    if not case.packed:
        return f"the weight, {case.kind} in groups of {case.group}, does not lie as words of int4"
    if case.activations is not None:
        return f"activations are to be rounded to {case.activations}; they must keep their type"
    return None


def _mosaic_gpu_supports(target: DeviceTarget, case: QuantizedMatmulCase) -> str | None:
    """The Hopper kernel has tiles of 64 outputs, and reorders 32 inputs of one group."""
    if target.platform != "gpu":
        return "it runs on NVIDIA GPUs only"
    if target.compute_capability is None or target.compute_capability[0] != 9:  # later ones have no wgmma either
        return f"compute capability is {target.compute_capability}; it must be (9, 0), Hopper"
    if case.packed:
        return "the weight lies as words of int4, in which a TPU keeps it"
    if case.kind != "int4":
        return f"the weight is {case.kind}; it must be int4: XLA writes no other one out wide"
    if case.activations is not None:
        return f"activations are to be rounded to {case.activations}; they must keep their type"
    if case.dtype != np.dtype("bfloat16"):
        return f"activations are {case.dtype.name}; they must be bfloat16"
    if case.group % 32:
        return f"a group has {case.group} inputs; it must be a multiple of 32"
    if case.num_outputs < 64 or case.num_outputs % 8:
        return f"the weight has {case.num_outputs} outputs on a device; they must be a multiple of 8, and at least 64"
    if case.num_tokens > GPU_KERNEL_TOKENS:
        return f"there are {case.num_tokens} tokens; they must be at most {GPU_KERNEL_TOKENS}"
    return None


def _triton_gpu_supports(target: DeviceTarget, case: QuantizedMatmulCase) -> str | None:
    """The Triton kernel widens weights alone, a power of two of inputs with one scale at a time."""
    if (reason := triton_support.refusal(target)) is not None:
        return reason
    if case.activations is not None:
        return f"activations are rounded to {case.activations}; they must keep their type"
    if case.kind == "mxfp4":
        return "the weight is mxfp4; it must be int8, int4 or fp8"
    if case.packed:
        return "the weight lies as words of int4, in which a TPU keeps it"
    least = 32 if case.kind == "int4" else 16
    if case.group != case.num_inputs and (case.group < least or case.group & (case.group - 1)):
        return (
            f"groups are of {case.group} inputs; with {case.kind} they must be a power of two from {least} on, or all"
        )
    if case.kind == "fp8" and case.has_zeros:
        return "weights are fp8 with zero points; fp8 must have none"
    return None


def _xla_is_better(case: QuantizedMatmulCase) -> str | None:
    """XLA widens 8 bits inside its products, and multiplies many tokens by tensor cores' best once int4 is wide."""
    if case.kind != "int4":
        return f"the weight is {case.kind}, which XLA does not write out wide"
    if case.num_tokens > GPU_KERNEL_TOKENS:
        return f"there are {case.num_tokens} tokens; above {GPU_KERNEL_TOKENS} writing the weight out wide pays"
    if case.dtype == np.dtype(np.float32):
        return "activations are float32, of which the kernel's products have no tensor cores"
    return None


# From here on the products take longer than writing the wide weight would; `mosaic_gpu.py` has the arithmetic.
GPU_KERNEL_TOKENS = 512

OP: Op[QuantizedMatmulCase] = Op(
    name="quantized_matmul",
    backends=(
        Backend("mosaic_tpu", _mosaic_tpu_supports, "pallas_kernels.quantized_matmul.mosaic_tpu:quantized_matmul"),
        Backend("mosaic_gpu", _mosaic_gpu_supports, "pallas_kernels.quantized_matmul.mosaic_gpu:quantized_matmul"),
        Backend(
            "triton_gpu",
            _triton_gpu_supports,
            "pallas_kernels.quantized_matmul.triton_gpu:quantized_matmul",
            by_name_only=_xla_is_better,
        ),
        Backend("xla", _xla_supports, "pallas_kernels.quantized_matmul.xla:quantized_matmul"),
    ),
)


def quantized_matmul(
    x: jax.Array,
    weight: QTensor,
    *,
    target: DeviceTarget | None = None,
    backend: str | None = None,
    merge: bool = True,
    split: PartitionSpec | None = None,
) -> jax.Array:
    """x (T, I) times weight (*O, I), contracted over I, summed in float32: (T, *O) float32.

    Args:
        x: float32 or bfloat16.
        weight: its `activations` says whether x is rounded, token by token, before the product.
        target: the device being compiled for; None: the one that the weight is kept for.
        backend: a backend's name; None takes the first that can serve.
        merge: makes the weight a matrix first. Must be False where a split axis of the weight is not the first of O.
        split: axes of the current mesh (`jax.set_mesh`) over which the axes (*O, I) of the weight are split; None: over
            none. The partitioner finds that out for XLA's own product; a kernel, and mxfp4's loop over slices, runs
            once on every device with its share, and partial sums over split inputs are added up.

    Raises:
        ValueError: shapes that do not fit together, a split that does not fit the mesh or the weight, or an unknown
            backend.
        dispatch.Unsupported: the backend cannot serve this case on this target.
    """
    weight.check()
    if x.ndim != 2 or x.shape[1] != weight.inputs:
        raise ValueError(f"x has shape {x.shape}; with a weight {weight.shape} it must be (tokens, {weight.inputs})")
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"x is {x.dtype}; it must be float32 or bfloat16")
    target = weight.target if target is None else target
    if target is None:
        raise ValueError("target is None, and the weight is not kept for any device")
    devices = split_of(split, weight)
    chosen = select(OP, target, case_of(x, weight, devices), backend)
    run: Callable[..., jax.Array] = functools.partial(chosen.load(), target=target, merge=merge)
    if weight.order is not None:
        x = jnp.take(x, weight.order, axis=1)
        weight = dataclasses.replace(weight, order=None)
    if devices is not None and (chosen.name != "xla" or weight.kind == "mxfp4"):
        run = devices.on_every_device(run, weight)
    return run(x, weight)


def quantized_matmul_of_choice(
    x: jax.Array,
    weights: Sequence[QTensor],
    index: jax.Array,
    *,
    merge: bool = True,
    split: PartitionSpec | None = None,
) -> jax.Array:
    """`quantized_matmul` with weights[index], by the device that they are kept for: (T, *O) float32.

    A product for each weight is compiled, of which one runs; no weight is copied. On a CPU nothing but the sums is
    compiled for each, or of mxfp4 nothing but the reading.

    Args:
        weights: at least one, all of the same structure and shape.
        index: () int32, which may be traced.
        merge, split: as in `quantized_matmul`.
    """
    target = weights[0].target
    if target is not None and target.platform == "cpu" and xla.is_narrow(weights[0]):
        return xla.narrow_matmul_of_choice(x, weights, index, target=target, merge=merge)
    if (
        target is not None
        and target.platform == "cpu"
        and weights[0].kind == "mxfp4"
        and not split_of(split, weights[0])
    ):
        return xla.mxfp4_matmul_of_choice(x, weights, index, target=target)
    each = [functools.partial(quantized_matmul, weight=weight, merge=merge, split=split) for weight in weights]
    return jax.lax.switch(index, each, x)


def case_of(x: jax.Array | jax.ShapeDtypeStruct, weight: QTensor, devices: Split | None = None) -> QuantizedMatmulCase:
    """What dispatch is told of a product, or of one device's share of it."""
    outputs, inputs = (1, 1) if devices is None else (devices.outputs, devices.inputs)
    return QuantizedMatmulCase(
        num_tokens=x.shape[0],
        num_outputs=math.prod(weight.outputs) // outputs,
        num_inputs=weight.inputs // inputs,
        group=min(weight.group, weight.inputs // inputs),
        kind=weight.kind,
        activations=weight.activations,
        has_zeros=weight.zeros is not None,
        dtype=np.dtype(x.dtype),
        packed=weight.packed_outputs is not None,
    )
