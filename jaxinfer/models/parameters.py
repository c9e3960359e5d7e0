"""The decoder's parameters, and what each says of itself; `jaxinfer.sharding` says where on the mesh its axes lie.

Activations are pinned at a few places, from which the partitioner derives the rest: heads and widths are split, the
residual stream is whole on every device, so each layer has two all-reduces (Shoeybi et al. 2019, arXiv:1909.08053).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxinfer.sharding import LogicalAxes


@dataclass(frozen=True)
class ParameterFacts:
    """What a parameter carries as NNX metadata.

    Attributes:
        axes: the logical name of each of its axes.
        inputs: of a matrix that activations are multiplied by, how many of its last axes are inputs; None: it is none.
        quantizable: whether it may be quantized, if it is a matrix; everything else keeps its type.
    """

    axes: LogicalAxes
    inputs: int | None
    quantizable: bool = True


def parameter(value: jax.Array, axes: LogicalAxes, inputs: int | None = None, *, quantizable: bool = True) -> nnx.Param:
    """A parameter with its `ParameterFacts`. Never placed while it is made: the loader places it."""
    matrix = inputs is not None
    return nnx.Param(value, out_sharding=axes, eager_sharding=False, inputs=inputs, quantizable=matrix and quantizable)


def parameter_dtype(path: str, dtype: np.dtype) -> np.dtype:
    """What a parameter of a model of type `dtype` is stored in, by its dotted path: routers' corrections, which are
    tiny beside the scores that they decide between, are float32 as published."""
    return np.dtype(np.float32) if path.endswith(".moe.correction") else dtype


def facts_of(variable: Any) -> ParameterFacts:
    """What a `parameter` of the decoder, or its shape in an abstract state, says of itself."""
    metadata = variable.get_metadata()
    return ParameterFacts(tuple(metadata["out_sharding"]), metadata["inputs"], metadata["quantizable"])
