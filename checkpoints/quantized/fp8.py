"""float8 e4m3 with `quant_method` "fp8": a scale for each block of 128 x 128 (DeepSeek, Qwen3), or for all.

    weight           (O, I) float8_e4m3fn
    weight_scale_inv (ceil(O / 128), I / 128)    blocks; despite its name it multiplies
    weight_scale     () or (1,)                  whole matrix; some files call it weight_scale_inv, too
    activation_scale () or (1,)                  whole matrix with `activation_scheme` "static"

Activations: a whole matrix is multiplied by activations in float8, with a scale for each token, also where the file has
one for all of them (Mistral 3's): that of a token rounds no worse. With blocks the published kernels round activations
too, with a scale for each 128 inputs of a token; here they keep their type, which is nearer to the trained model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from checkpoints.quantized import keys
from checkpoints.quantized.protocol import SCALE_DTYPES, Format, Layer, Part, Parts, Tensors, blocks
from jaxinfer.models.stored_matrix import StoredMatrix

BLOCK = 128
_WHERE = "quantization_config"


@dataclass(frozen=True)
class Fp8(Format):
    """in_blocks: a scale for each block. skipped: names of layers that are not quantized. static: there is a scale for
    all activations of a layer, which is not used."""

    in_blocks: bool
    skipped: tuple[str, ...]
    static: bool = False

    method = "fp8"

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Fp8:
        """See `checkpoints.quantized.parse`."""
        keys.check_keys(
            settings,
            _WHERE,
            read=("quant_method", "activation_scheme", "weight_block_size", "modules_to_not_convert", "ignored_layers"),
            only={
                "fmt": ("e4m3",),
                "weight_block_size": ([BLOCK, BLOCK],),
                "scale_fmt": ("float",),
                "expert_dtype": ("fp8",),  # there are no experts
                "dequantize": (),
                "modules_to_convert": (),
                "kv_cache_scheme": (),
                "kv_cache_quant_method": (),
            },
        )
        in_blocks = settings.get("weight_block_size") is not None
        schemes = ("dynamic",) if in_blocks else ("dynamic", "static")
        static = keys.one_of(settings, _WHERE, "activation_scheme", schemes, "dynamic") == "static"
        skipped = keys.names(settings, _WHERE, "modules_to_not_convert") + keys.names(
            settings, _WHERE, "ignored_layers"
        )
        return cls(in_blocks, skipped, static)

    def stored(self, module: keys.Names) -> StoredMatrix | None:
        if keys.mentions(self.skipped, module):
            return None
        return StoredMatrix("fp8", BLOCK) if self.in_blocks else StoredMatrix("fp8", activations="fp8")

    def parts(self, layer: Layer) -> dict[str, Part]:
        weight = Part(((layer.outputs, layer.inputs),), ("F8_E4M3",))
        if self.in_blocks:
            return {"weight": weight, "weight_scale_inv": Part((block_scales(layer),), SCALE_DTYPES)}
        one = ((), (1,))
        parts = {"weight": weight, "weight_scale": Part(one, SCALE_DTYPES, also="weight_scale_inv")}
        if self.static:
            parts["activation_scale"] = Part(one, SCALE_DTYPES, also="input_scale")
        return parts

    def read(self, layer: Layer, tensors: Tensors) -> Parts:
        scales = tensors.finite("weight_scale_inv" if self.in_blocks else "weight_scale")
        return Parts(fp8_values(tensors), for_each_output(scales, layer))


def block_scales(layer: Layer) -> tuple[int, int]:
    """The shape of the scales of blocks. The last block of outputs may be smaller; those of inputs are whole."""
    return blocks(layer.outputs, BLOCK), layer.inputs // BLOCK


def for_each_output(scales: np.ndarray, layer: Layer) -> np.ndarray:
    """Scales of blocks (ceil(O / 128), A), of outputs (O, 1), or one of all (), (1,) or (1, 1), as (O, A) float32."""
    if scales.size == 1 and layer.groups == 1:
        return np.full((layer.outputs, 1), scales.reshape(-1)[0], np.float32)
    if scales.shape[0] == layer.outputs:
        return scales
    return np.repeat(scales, BLOCK, axis=0)[: layer.outputs]


def fp8_values(tensors: Tensors) -> np.ndarray:
    """`weight`, which must not hold NaN (the type has no infinity)."""
    values = tensors.read("weight")
    if ((values.view(np.uint8) & 127) == 127).any():
        raise tensors.fault("weight", "finite values", "NaN")
    return values
