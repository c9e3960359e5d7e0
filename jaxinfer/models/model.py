"""A model as loading gives it and as the engine takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flax import nnx

from jaxinfer.config import ModelConfig
from jaxinfer.models.shape import ModelShape


@dataclass(frozen=True)
class Model:
    """A model ready to run: `nnx.merge(graphdef, params)` is the decoder.

    Attributes:
        name: what the engine calls it; the folder's name for a loaded one.
        config: as the folder describes it; `config.dtype` is what is stored, `config.eos_token_ids` ends a text.
        shape: the sizes of the arrays on the mesh.
        dtype: of `params`, "float32" or "bfloat16".
        params: pure dict of jax.Arrays, of QTensors where a matrix is quantized, or of shapes with shardings in an
            abstract model.
        notes: what an operator should know.
    """

    name: str
    config: ModelConfig
    shape: ModelShape
    dtype: str
    graphdef: nnx.GraphDef
    params: dict[str, Any]
    notes: tuple[str, ...] = ()
