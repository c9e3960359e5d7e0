"""The mesh, and the one table from the logical axes of arrays to mesh axes. It imports the config and kernels alone.

An array's axes have logical names, and how it lies on the mesh follows from them and from nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxinfer.config import ConfigError, ParallelConfig
from pallas_kernels.mesh_axes import MeshAxes, devices_along, names_of

DATA_AXIS, PIPE_AXIS, TENSOR_AXIS, EXPERT_AXIS = MESH_AXES = ParallelConfig.axes()
# The axes that a layer is split over, as one: everything but experts lies along both, so that no device repeats what
# another one computes, however many of them share an expert's width.
MODEL_AXES = (TENSOR_AXIS, EXPERT_AXIS)

ONE_DEVICE = ParallelConfig()

LogicalAxes = tuple[str | None, ...]  # one for each axis of an array; None: of no parameter's axis, and never split

# Logical axis -> the mesh axes that it is split over; None: whole on every device.
LOGICAL_RULES: Mapping[str, MeshAxes] = MappingProxyType(
    {
        "batch": DATA_AXIS,  # tokens or rows of a step
        "embed": None,  # the residual stream's width
        "q_heads": MODEL_AXES,
        "kv_heads": MODEL_AXES,
        "q_group": None,  # query heads of one KV head, in fused weights followed by its k and v
        "head": None,  # elements of a head
        "mlp": MODEL_AXES,  # the width of a dense MLP, or of shared experts
        "gate_up": None,  # gate and up
        "rank": None,  # between the two factors of a matrix of low rank
        "experts": EXPERT_AXIS,
        "expert_mlp": TENSOR_AXIS,  # the width of one expert
        "vocab_in": MODEL_AXES,  # rows of the embedding
        "vocab_out": MODEL_AXES,  # logits, and rows of the matrix that makes them
    }
)


def make_mesh(parallel: ParallelConfig = ONE_DEVICE, platform: str | None = None) -> Mesh:
    """A mesh over the first devices of a platform (None: JAX's default). Raises ConfigError if they are too few."""
    try:
        devices = jax.devices(platform)
    except RuntimeError as error:
        raise ConfigError(f"device is {platform!r}, but JAX finds none here ({error})") from error
    if parallel.num_devices > len(devices):
        raise ConfigError(f"{parallel.said()}; there are {len(devices)} {devices[0].platform} devices")
    return jax.make_mesh(
        parallel.sizes, MESH_AXES, devices=devices[: parallel.num_devices], axis_types=(AxisType.Auto,) * len(MESH_AXES)
    )


def mesh_of(devices: Sequence[Any], expert: int = 1) -> Mesh:
    """A mesh of these devices, in their order; they need not be here.

    expert: how many lie along the expert axis; the rest of their number lies along the tensor axis. Raises ConfigError
    if it does not divide them.
    """
    if expert < 1 or len(devices) % expert:
        raise ConfigError(f"expert_parallel_size is {expert}; it must divide the {len(devices)} devices")
    parallel = ParallelConfig(tensor=len(devices) // expert, expert=expert)
    return Mesh(np.array(devices).reshape(parallel.sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def tensor_mesh(devices: Sequence[Any]) -> Mesh:
    """The same, all along the tensor axis."""
    return mesh_of(devices)


def tensor_size(mesh: Mesh) -> int:
    """Devices along the mesh's tensor axis."""
    return mesh.shape[TENSOR_AXIS]


def expert_size(mesh: Mesh) -> int:
    """Devices along the mesh's expert axis."""
    return mesh.shape[EXPERT_AXIS]


def model_size(mesh: Mesh) -> int:
    """Devices that everything but experts is split over."""
    return devices_along(mesh.shape, MODEL_AXES)


def partition_spec(logical_axes: Sequence[str | None]) -> PartitionSpec:
    """How an array with these axes is split. Raises ValueError for an unknown axis, or two on one mesh axis."""
    unknown = [axis for axis in logical_axes if axis is not None and axis not in LOGICAL_RULES]
    if unknown:
        raise ValueError(f"logical axes are {tuple(logical_axes)}; {unknown} are none of {list(LOGICAL_RULES)}")
    spec = [None if axis is None else LOGICAL_RULES[axis] for axis in logical_axes]
    used = [name for axes in spec for name in names_of(axes)]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes are {tuple(logical_axes)}; they lie on {used}, each of which splits one only")
    return PartitionSpec(*spec)


def named_sharding(mesh: Mesh, logical_axes: Sequence[str | None]) -> NamedSharding:
    return NamedSharding(mesh, partition_spec(logical_axes))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Ask the partitioner to place `x` (one logical axis per dimension) so; does nothing without a tensor mesh axis.

    The mesh is the one that `jax.set_mesh` made current while tracing; its axes are of type Auto.
    """
    if TENSOR_AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def split_of(axes: LogicalAxes) -> PartitionSpec | None:
    """Where a parameter's logical axes lie on the current mesh; None without a tensor mesh axis."""
    return partition_spec(axes) if TENSOR_AXIS in jax.sharding.get_abstract_mesh().axis_names else None


def local_bytes(array: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Bytes of an array, or of its shape with a sharding, on one device."""
    assert array.sharding is not None
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
