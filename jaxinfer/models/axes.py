"""Logical axes of the decoder's parameters; `jaxinfer.sharding` says where on the mesh they lie.

Parameters carry their logical axes as NNX metadata (`out_sharding`), one name per dimension. Activations are pinned at
a few places, from which the partitioner derives the rest: heads and MLP width are split, the residual stream is whole
on every device, so each layer has two all-reduces (Shoeybi et al. 2019, arXiv:1909.08053).
"""

from __future__ import annotations

from typing import Any

from jaxinfer.sharding import LogicalAxes


def parameter_axes(variable: Any) -> LogicalAxes:
    """The logical axes that an `nnx.Param` of the decoder carries, one entry per dimension."""
    return tuple(variable.get_metadata()["out_sharding"])
