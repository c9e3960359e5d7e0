"""The grouped product, of rows with their experts: its contract, its checks, and the choice of a backend.

Legend: R rows, E experts, *O output axes of an expert, I its inputs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import Backend, DeviceTarget, Op, select
from pallas_kernels.grouped_matmul import mosaic_tpu_plan
from pallas_kernels.qtensor import QTensor

Experts = jax.Array | QTensor


@dataclasses.dataclass(frozen=True)
class GroupedMatmulCase:
    """What a backend is told before it is chosen; sizes are a device's own share."""

    num_rows: int
    num_experts: int
    num_outputs: int  # of one expert
    num_inputs: int
    dtype: np.dtype  # of the activations
    kind: str | None = None  # of a QTensor's numbers; None: an array of the activations' type
    group: int = 0  # of a QTensor: inputs that share a scale
    activations: str | None = None
    has_zeros: bool = False
    packed: bool = False  # int4 lies as a TPU keeps it


def _xla_supports(target: DeviceTarget, case: GroupedMatmulCase) -> str | None:
    """Plain XLA serves every case on every device."""
    del target, case
    return None


def _mosaic_gpu_supports(target: DeviceTarget, case: GroupedMatmulCase) -> str | None:
    """The Hopper kernel has tiles of 64 outputs, and blocks of 32 inputs or more, of one group where there are any."""
    if target.platform != "gpu":
        return "it runs on NVIDIA GPUs only"
    if target.compute_capability is None or target.compute_capability[0] != 9:  # later ones have no wgmma either
        return f"compute capability is {target.compute_capability}; it must be (9, 0), Hopper"
    if case.packed:
        return "the weight lies as words of int4, in which a TPU keeps it"
    if case.kind not in (None, "int4", "mxfp4"):
        return f"the weight is {case.kind}; it must be bfloat16, int4 or mxfp4"
    if case.activations is not None:
        return f"activations are to be rounded to {case.activations}; they must keep their type"
    if case.dtype != np.dtype("bfloat16"):
        return f"activations are {case.dtype.name}; they must be bfloat16"
    if case.num_inputs % 32:
        return f"an expert has {case.num_inputs} inputs; they must be a multiple of 32"
    if case.kind is not None and case.group % 32:
        return f"a group has {case.group} inputs; it must be a multiple of 32"
    if case.num_outputs < 64 or case.num_outputs % 8:
        return f"an expert has {case.num_outputs} outputs; they must be a multiple of 8, and at least 64"
    return None


def _mosaic_tpu_supports(target: DeviceTarget, case: GroupedMatmulCase) -> str | None:
    """The TPU kernel takes bfloat16 weights and words of int4, all inputs of some outputs at once."""
    if target.platform != "tpu":
        return "it runs on TPU only"
    if case.kind is None and case.dtype != np.dtype(jnp.bfloat16):
        return f"weights are {case.dtype.name}; they must be bfloat16, or int4 in words"
    if case.kind is not None and not case.packed:
        return f"the weight, {case.kind} in groups of {case.group}, does not lie as words of int4"
    if case.activations is not None:
        return f"activations are to be rounded to {case.activations}; they must keep their type"
    if case.packed and case.group % 128 and case.group not in (16, 32, 64):
        return f"groups are of {case.group} inputs; they must be of 16, 32, 64 or a multiple of 128"
    groups = case.num_inputs // case.group if case.packed else 0
    if case.has_zeros and mosaic_tpu_plan.scales_lie_abreast(case.num_experts, groups):
        return f"an expert has {groups} groups with zero points; they must be a multiple of 8"
    group = case.group if case.packed else None
    needed = mosaic_tpu_plan.smallest_vmem(case.num_experts, case.num_inputs, group, case.has_zeros)
    most = mosaic_tpu_plan.most_vmem(target.device_kind)
    if needed > most:
        return (
            f"an expert has {case.num_inputs} inputs, of which a tile takes {needed / 2**20:.1f} MiB of VMEM; "
            f"on {target.device_kind} it must be at most {most >> 20}"
        )
    return None


OP: Op[GroupedMatmulCase] = Op(
    name="grouped_matmul",
    backends=(
        Backend("mosaic_gpu", _mosaic_gpu_supports, "pallas_kernels.grouped_matmul.mosaic_gpu:grouped_matmul"),
        Backend("mosaic_tpu", _mosaic_tpu_supports, "pallas_kernels.grouped_matmul.mosaic_tpu:grouped_matmul"),
        Backend("xla", _xla_supports, "pallas_kernels.grouped_matmul.xla:grouped_matmul"),
    ),
)


def grouped_matmul(
    x: jax.Array,
    weight: Experts,
    group_sizes: jax.Array,
    *,
    target: DeviceTarget,
    backend: str | None = None,
) -> jax.Array:
    """Each row of x (R, I) times its expert of weight (E, *O, I), summed in float32: (R, *O) float32.

    A row has the same bits whatever the other rows are and how they are grouped.

    Args:
        x: float32 or bfloat16, the rows of expert 0 first, then those of expert 1, ...
        weight: of x's type, or a QTensor whose first output axis is the experts and which has no `order`.
        group_sizes: (E,) int32, rows of each expert, 0 or more. Rows behind their sum are padding, and zero.
        target: the device being compiled for. All of a weight lies there: who splits experts over devices maps over
            the mesh first.
        backend: a backend's name; None takes the first that can serve.

    Raises:
        ValueError: types or shapes that do not fit together, or an unknown backend.
        dispatch.Unsupported: the backend cannot serve this case on this target.
    """
    _check(x, weight, group_sizes)
    chosen = select(OP, target, case_of(x, weight), backend)
    return chosen.load()(x, weight, group_sizes, target=target)


def grouped_matmul_of_choice(
    x: jax.Array, weights: Sequence[Experts], index: jax.Array, group_sizes: jax.Array, *, target: DeviceTarget
) -> jax.Array:
    """`grouped_matmul` with weights[index]: one product is compiled for each, of which one runs; none is copied.

    Args:
        weights: at least one, all of the same structure and shape.
        index: () int32, which may be traced.
    """
    each = [functools.partial(grouped_matmul, weight=weight, target=target) for weight in weights]
    return jax.lax.switch(index, [lambda x, sizes, run=run: run(x, group_sizes=sizes) for run in each], x, group_sizes)


def case_of(x: jax.Array, weight: Experts) -> GroupedMatmulCase:
    """What dispatch is told of a product."""
    rows, (experts, *outputs, inputs) = x.shape[0], weight.shape
    case = GroupedMatmulCase(rows, experts, math.prod(outputs), inputs, np.dtype(x.dtype))
    if not isinstance(weight, QTensor):
        return case
    return dataclasses.replace(
        case,
        kind=weight.kind,
        group=weight.group,
        activations=weight.activations,
        has_zeros=weight.zeros is not None,
        packed=weight.packed_outputs is not None,
    )


def _check(x: jax.Array, weight: Experts, group_sizes: jax.Array) -> None:
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"x is {x.dtype}; it must be float32 or bfloat16")
    if isinstance(weight, QTensor):
        weight.check()
        if weight.order is not None:
            raise ValueError("weight.order is set; experts whose inputs are sorted by group (act-order) are not served")
        if weight.packed_outputs is not None and weight.values.ndim < 3:
            raise ValueError(
                "weight lies as words with its experts among the outputs; they must be an axis of their own"
            )
    elif weight.dtype != x.dtype:
        raise ValueError(f"weight is {weight.dtype}; it must be of x's type, {x.dtype}, or quantized")
    shape = weight.shape
    if len(shape) < 3:
        raise ValueError(f"weight has shape {shape}; it must have axes of experts, outputs and inputs")
    if x.ndim != 2 or x.shape[1] != shape[-1]:
        raise ValueError(f"x has shape {x.shape}; with a weight {shape} it must be (rows, {shape[-1]})")
    if group_sizes.shape != shape[:1] or group_sizes.dtype != jnp.int32:
        found = f"{group_sizes.shape} {group_sizes.dtype}"
        raise ValueError(f"group_sizes is {found}; for {shape[0]} experts it must be ({shape[0]},) int32")
