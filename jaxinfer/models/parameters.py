"""The decoder's parameters, and what each says of itself; `jaxinfer.sharding` says where on the mesh its axes lie.

Activations are pinned at a few places, from which the partitioner derives the rest: heads and MLP width are split, the
residual stream is whole on every device, so each layer has two all-reduces (Shoeybi et al. 2019, arXiv:1909.08053).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from jaxinfer.sharding import LogicalAxes


@dataclass(frozen=True)
class ParameterFacts:
    """What a parameter carries as NNX metadata.

    Attributes:
        axes: the logical name of each of its axes.
        inputs: how many of its last axes are inputs, of a matrix that can be quantized; None: it keeps its type.
    """

    axes: LogicalAxes
    inputs: int | None


def parameter(value: jax.Array, axes: LogicalAxes, inputs: int | None = None) -> nnx.Param:
    """A parameter with its `ParameterFacts`. Never placed while it is made: the loader places it."""
    return nnx.Param(value, out_sharding=axes, eager_sharding=False, inputs=inputs)


def facts_of(variable: Any) -> ParameterFacts:
    """What a `parameter` of the decoder, or its shape in an abstract state, says of itself."""
    metadata = variable.get_metadata()
    return ParameterFacts(tuple(metadata["out_sharding"]), metadata["inputs"])
