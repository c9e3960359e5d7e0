"""A weight of a layer that runs in a loop: one of several, of which only the running program knows which."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from pallas_kernels.qtensor import QTensor

Matrix = jax.Array | QTensor


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerChoice:
    """Stands where a matrix of a layer would. Nothing is gathered or copied: who multiplies picks the matrix.

    Attributes:
        index: () int32, traced: which turn of the loop runs, 0..len(options) - 1.
        options: the matrix of each turn; arrays of one shape and dtype, or QTensors of one structure.
    """

    index: jax.Array
    options: tuple[Matrix, ...]


Weight = Matrix | LayerChoice
