"""The mesh and the one table from logical axes to mesh axes. Sharding comes from a parameter's logical axes only."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxinfer.config import ConfigError

TP_AXIS = "tp"

# Logical axis -> mesh axis. Whatever is not listed is replicated.
LOGICAL_RULES: dict[str, str] = {"vocab": TP_AXIS, "kv_heads": TP_AXIS, "mlp": TP_AXIS}


def make_mesh(tensor_parallel_size: int, platform: str | None = None) -> Mesh:
    """A one-axis mesh over the first devices of a platform (None: JAX's default). Raises ConfigError if too few."""
    try:
        devices = jax.devices(platform)
    except RuntimeError as error:
        raise ConfigError(f"device is {platform!r}, but JAX finds none here ({error})") from error
    if tensor_parallel_size > len(devices):
        raise ConfigError(
            f"tensor_parallel_size is {tensor_parallel_size}; there are {len(devices)} {devices[0].platform} devices"
        )
    return jax.make_mesh(
        (tensor_parallel_size,), (TP_AXIS,), devices=devices[:tensor_parallel_size], axis_types=(AxisType.Auto,)
    )


def partition_spec(logical_axes: Sequence[str | None]) -> PartitionSpec:
    return PartitionSpec(*(LOGICAL_RULES.get(axis) if axis is not None else None for axis in logical_axes))


def named_sharding(mesh: Mesh, logical_axes: Sequence[str | None]) -> NamedSharding:
    return NamedSharding(mesh, partition_spec(logical_axes))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
