"""MXFP4 with `quant_method` "mxfp4", as gpt-oss is published: numbers of 4 bits in blocks of 32 inputs, with powers of
two as scales.

    PARAMETER_blocks (O, I / 32, 16) uint8    byte j holds input 2j of its block in the low half, 2j + 1 in the high
    PARAMETER_scales (O, I / 32) uint8        e stands for 2^(e - 127); 255 would be NaN

PARAMETER is the weight's name: `q_proj.weight` of a linear layer, and `gate_up_proj` or `down_proj` of a mixture's
experts, whose tensors are stacked: (E, O, I / 32, 16) and (E, O, I / 32). The bytes are those of a `QTensor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints.quantized import keys
from checkpoints.quantized.protocol import Format, Layer, Part, Parts, Tensors
from jaxinfer.config import ConfigError
from jaxinfer.models.stored_matrix import StoredMatrix

BLOCK = 32
_NAN_SCALE = 255
_WHERE = "quantization_config"


@dataclass(frozen=True)
class Mxfp4(Format):
    """skipped: names of layers that are not quantized; a part "*" of one stands for any."""

    skipped: tuple[str, ...]

    method = "mxfp4"

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Mxfp4:
        """See `checkpoints.quantized.parse`."""
        keys.check_keys(
            settings,
            _WHERE,
            read=("quant_method", "modules_to_not_convert"),
            only={"dequantize": (), "use_kernels": ()},
        )
        return cls(keys.names(settings, _WHERE, "modules_to_not_convert"))

    def stored(self, module: keys.Names) -> StoredMatrix | None:
        return None if keys.mentions(self.skipped, module) else StoredMatrix("mxfp4", BLOCK)

    def parts(self, layer: Layer) -> dict[str, Part]:
        if layer.inputs % BLOCK:
            raise ConfigError(f"{layer.module} has {layer.inputs} inputs; MXFP4 needs a multiple of {BLOCK}")
        stacked = () if layer.experts is None else (layer.experts,)
        blocks = (*stacked, layer.outputs, layer.inputs // BLOCK)
        return {
            f"{layer.parameter}_blocks": Part(((*blocks, BLOCK // 2),), ("U8",)),
            f"{layer.parameter}_scales": Part((blocks,), ("U8",)),
        }

    def read(self, layer: Layer, tensors: Tensors) -> Parts:
        """Views of the tensors in the file: (*E, O, I / 2) and (*E, O, I / 32)."""
        blocks, scales = (tensors.read(f"{layer.parameter}_{part}") for part in ("blocks", "scales"))
        if (scales == _NAN_SCALE).any():
            raise tensors.fault(f"{layer.parameter}_scales", f"scales up to {_NAN_SCALE - 1}", f"{_NAN_SCALE}, NaN")
        return Parts(blocks.reshape(*scales.shape[:-1], layer.inputs // 2), scales)
