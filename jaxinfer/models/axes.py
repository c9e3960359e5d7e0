"""Logical axes of the decoder's parameters and activations; `runtime.sharding` says where on the mesh they lie.

Parameters carry their logical axes as NNX metadata (`out_sharding`), one name or None per dimension: "vocab",
"kv_heads", "mlp". Activations are pinned at a few places, from which the partitioner derives the rest: heads and MLP
width are split, the residual stream is replicated, so each layer has two all-reduces (Shoeybi et al. 2019,
arXiv:1909.08053).
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxinfer.runtime.sharding import TP_AXIS, partition_spec

LogicalAxes = tuple[str | None, ...]


def parameter_axes(variable: Any) -> LogicalAxes:
    """The logical axes that an `nnx.Param` of the decoder carries, one entry per dimension."""
    return tuple(variable.get_metadata()["out_sharding"])


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Ask the partitioner to place `x` (one logical axis per dimension) so; does nothing without a "tp" mesh axis.

    The mesh is the one that `jax.set_mesh` made current while tracing; its axes are of type Auto.
    """
    if TP_AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def split_of(axes: LogicalAxes) -> PartitionSpec | None:
    """Where a parameter's logical axes lie on the current mesh; None without a "tp" mesh axis."""
    return partition_spec(axes) if TP_AXIS in jax.sharding.get_abstract_mesh().axis_names else None
