"""AWQ in AutoAWQ's "gemm" version: int4 in groups, with zero points.

    qweight (I, O // 8) int32    a word holds 8 outputs
    qzeros  (A, O // 8) int32    the same order
    scales  (A, O) float16

    weight[o, i] = (q[i, o] - zero[i // g, o]) * scale[i // g, o]

Within a word, counted from its lowest four bits, lie the outputs 0, 2, 4, 6, 1, 3, 5, 7 of the eight. (Lin et al. 2023,
arXiv:2306.00978; the layout is that of the kernels published with it.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from checkpoints.quantized import keys
from checkpoints.quantized.protocol import SCALE_DTYPES, Format, Layer, Part, Parts, Tensors, nibbles, pack_nibbles
from checkpoints.quantized.protocol import packed_rows as rows
from jaxinfer.config import ConfigError
from jaxinfer.models.stored_matrix import StoredMatrix

_WHERE = "quantization_config"
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # output of the eight -> its place in the word
_HARMLESS = """
    do_fuse fuse_max_seq_len modules_to_fuse exllama_config backend_config cache_block_outputs tokenizer dataset
    model_seqlen max_input_length pad_token_id block_name_to_quantize module_name_preceding_first_block
"""


@dataclass(frozen=True)
class Awq(Format):
    """group: inputs that share a scale; None: all. skipped: names of layers that are not quantized."""

    group: int | None
    skipped: tuple[str, ...]

    method = "awq"

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Awq:
        """See `checkpoints.quantized.parse`."""
        version = "version" if settings.get("version") is not None else "format"
        keys.check_keys(
            settings,
            _WHERE,
            read=("quant_method", "bits", "group_size", "zero_point", version, "modules_to_not_convert"),
            harmless={*_HARMLESS.split(), *keys.SEARCH - {version}},
            only={
                "backend": ("autoawq", "auto"),
                "format": ("gemm",),
                "checkpoint_format": ("gemm",),
                "pack_dtype": ("int32",),
                "sym": (True, False),  # zero points are stored and read in either case
                "desc_act": (),
                "lm_head": (),
                "dynamic": (),
                "rotation": (),
                "adapter": (),
                **keys.SEARCH_ONLY,
            },
        )
        keys.one_of(settings, _WHERE, "bits", (4,))
        keys.one_of(settings, _WHERE, version, ("gemm", "GEMM"), "gemm")
        keys.one_of(settings, _WHERE, "zero_point", (True,), True)
        skipped = keys.names(settings, _WHERE, "modules_to_not_convert")
        return cls(keys.group_size(settings, _WHERE), skipped)

    def stored(self, module: keys.Names) -> StoredMatrix | None:
        return None if keys.mentions(self.skipped, module) else StoredMatrix("int4", self.group, zeros=True)

    def parts(self, layer: Layer) -> dict[str, Part]:
        if layer.outputs % 8:
            raise ConfigError(f"{layer.module} has {layer.outputs} outputs; AWQ needs a multiple of 8")
        words = layer.outputs // 8
        return {
            "qweight": Part(((layer.inputs, words),), ("I32",)),
            "qzeros": Part(((layer.groups, words),), ("I32",)),
            "scales": Part(((layer.groups, layer.outputs),), SCALE_DTYPES),
        }

    def read(self, layer: Layer, tensors: Tensors) -> Parts:
        return Parts(
            pack_nibbles(np.ascontiguousarray(_outputs(tensors.read("qweight")).T)),
            np.ascontiguousarray(tensors.finite("scales").T),
            np.ascontiguousarray(_outputs(tensors.read("qzeros")).T),
        )


def _outputs(words: np.ndarray) -> np.ndarray:
    """Words (R, O // 8) as numbers 0..15 (R, O) uint8, outputs in order."""
    numbers = nibbles(rows(words)).reshape(words.shape[0], -1, 8)
    return numbers[..., list(_PLACES)].reshape(words.shape[0], -1)
