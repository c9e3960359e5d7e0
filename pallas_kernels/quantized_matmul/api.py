"""The quantized product: its contract, its checks, and the choice of a backend.

Legend: T tokens, *O output axes of the weight, I its inputs, A groups of inputs.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import triton_support
from pallas_kernels.dispatch import Backend, DeviceTarget, Op, select
from pallas_kernels.qtensor import Activations, Kind, QTensor


@dataclasses.dataclass(frozen=True)
class QuantizedMatmulCase:
    """What a backend is told before it is chosen."""

    num_tokens: int
    num_outputs: int
    num_inputs: int
    group: int
    kind: Kind
    activations: Activations | None
    has_zeros: bool
    has_order: bool
    dtype: np.dtype  # of the activations
    devices: int = 1  # over which XLA may split the product: those of the current mesh


def _xla_supports(target: DeviceTarget, case: QuantizedMatmulCase) -> str | None:
    """Plain XLA serves every case on every device."""
    del target, case
    return None


def _triton_gpu_supports(target: DeviceTarget, case: QuantizedMatmulCase) -> str | None:
    """The Triton kernel widens weights alone, a power of two of inputs with one scale at a time, on one device."""
    if (reason := triton_support.refusal(target)) is not None:
        return reason
    if case.activations is not None:
        return f"activations are rounded to {case.activations}; they must keep their type"
    least = 32 if case.kind == "int4" else 16
    if case.group != case.num_inputs and (case.group < least or case.group & (case.group - 1)):
        return (
            f"groups are of {case.group} inputs; with {case.kind} they must be a power of two from {least} on, or all"
        )
    if case.kind == "fp8" and case.has_zeros:
        return "weights are fp8 with zero points; fp8 must have none"
    if case.devices > 1:
        return f"the mesh has {case.devices} devices; it must have one"
    return None


OP: Op[QuantizedMatmulCase] = Op(
    name="quantized_matmul",
    backends=(
        Backend(
            "triton_gpu",
            _triton_gpu_supports,
            "pallas_kernels.quantized_matmul.triton_gpu:quantized_matmul",
            by_name_only=True,
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
) -> jax.Array:
    """x (T, I) times weight (*O, I), contracted over I, summed in float32: (T, *O) float32.

    Args:
        x: float32 or bfloat16.
        weight: its `activations` says whether x is rounded, token by token, before the product.
        target: the device being compiled for; None: the one that the weight is kept for.
        backend: a backend's name; None takes the first that can serve.
        merge: makes the weight a matrix first. Must be False where a split axis of the weight is not the first of O.

    Raises:
        ValueError: shapes that do not fit together, or an unknown backend.
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
    run = select(OP, target, case_of(x, weight), backend).load()
    if weight.order is not None:
        x = jnp.take(x, weight.order, axis=1)
    return run(x, weight, target=target, merge=merge)


def case_of(x: jax.Array, weight: QTensor) -> QuantizedMatmulCase:
    """What dispatch is told of a product."""
    return QuantizedMatmulCase(
        num_tokens=x.shape[0],
        num_outputs=math.prod(weight.outputs),
        num_inputs=weight.inputs,
        group=weight.group,
        kind=weight.kind,
        activations=weight.activations,
        has_zeros=weight.zeros is not None,
        has_order=weight.order is not None,
        dtype=np.dtype(x.dtype),
        devices=_devices(),
    )


def _devices() -> int:
    """Devices of the mesh that is current while tracing; 1 without one, and where the caller has split the work."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(size for name, size in mesh.shape.items() if name not in mesh.manual_axes)
