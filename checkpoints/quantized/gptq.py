"""GPTQ as AutoGPTQ and GPTQModel write it: 4 or 8 bits in groups, with or without act-order.

    qweight (I * bits // 32, O) int32    a word holds 32 // bits inputs, the first in its lowest bits
    qzeros  (A, O * bits // 32) int32    a word holds outputs; in format "gptq" less one, modulo 2^bits
    scales  (A, O) float16
    g_idx   (I,) int32                   the group of every input

    weight[o, i] = (q[i, o] - zero[g_idx[i], o]) * scale[g_idx[i], o]

Symmetric weights have zero points too, all in the middle. Act-order (`desc_act`) makes groups of inputs that do not lie
together. (Frantar et al. 2022, arXiv:2210.17323.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from checkpoints.quantized import keys
from checkpoints.quantized.protocol import SCALE_DTYPES, Format, Layer, Part, Parts, Tensors, nibbles, signed
from checkpoints.quantized.protocol import packed_rows as rows
from jaxinfer.config import ConfigError
from jaxinfer.models.stored_matrix import StoredMatrix

_WHERE = "quantization_config"
_FORMATS = ("gptq", "gptq_v2")
_HARMLESS = """
    model_name_or_path model_file_base_name tokenizer dataset block_name_to_quantize module_name_preceding_first_block
    pad_token_id max_input_length cache_block_outputs use_cuda_fp16 use_exllama disable_exllama exllama_config backend
    model_seqlen hyb_act v2 v2_alpha v2_memory_device gptaq gptaq_alpha gptaq_memory_device foem fail_safe failsafe
    fallback
"""


@dataclass(frozen=True)
class Gptq(Format):
    """minus_one: zero points are stored less one. only: names of the layers that are quantized; None: all."""

    bits: int
    group: int | None
    symmetric: bool
    act_order: bool
    minus_one: bool
    only: tuple[str, ...] | None

    method = "gptq"

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Gptq:
        """See `checkpoints.quantized.parse`."""
        keys.check_keys(
            settings,
            _WHERE,
            read=("quant_method", "bits", "group_size", "desc_act", "sym", "modules_in_block_to_quantize"),
            harmless={*_HARMLESS.split(), *keys.SEARCH},
            only={
                "checkpoint_format": _FORMATS,
                "format": _FORMATS,
                "pack_dtype": ("int32",),
                "lm_head": (),
                "is_marlin_format": (),
                "dynamic": (),
                "adapter": (),
                "rotation": (),
                **keys.SEARCH_ONLY,
            },
        )
        formats = {settings[key] for key in ("checkpoint_format", "format") if settings.get(key)} or {"gptq"}
        if len(formats) > 1:
            raise ConfigError(f"{_WHERE}: checkpoint_format and format are {sorted(formats)}; they must be the same")
        return cls(
            bits=keys.one_of(settings, _WHERE, "bits", (4, 8)),
            group=keys.group_size(settings, _WHERE),
            symmetric=keys.one_of(settings, _WHERE, "sym", (True, False), True),
            act_order=keys.one_of(settings, _WHERE, "desc_act", (True, False), False),
            minus_one=formats == {"gptq"},
            only=_quantized_only(settings),
        )

    def stored(self, module: keys.Names) -> StoredMatrix | None:
        if self.only is not None and not keys.mentions(self.only, module):
            return None
        return StoredMatrix(
            "int4" if self.bits == 4 else "int8",
            self.group,
            zeros=not self.symmetric,
            order=self.act_order and self.group is not None,
        )

    def parts(self, layer: Layer) -> dict[str, Part]:
        fields = 32 // self.bits
        for what, count in (("outputs", layer.outputs), ("inputs", layer.inputs)):
            if count % fields:
                raise ConfigError(
                    f"{layer.module} has {count} {what}; GPTQ of {self.bits} bits needs a multiple of {fields}"
                )
        return {
            "qweight": Part(((layer.inputs // fields, layer.outputs),), ("I32",)),
            "qzeros": Part(((layer.groups, layer.outputs // fields),), ("I32",)),
            "scales": Part(((layer.groups, layer.outputs),), SCALE_DTYPES),
            "g_idx": Part(((layer.inputs,),), ("I32",), required=layer.stored.order),
        }

    def read(self, layer: Layer, tensors: Tensors) -> Parts:
        values = rows(tensors.read("qweight").T)  # in the order in which QTensor packs int4, too
        return Parts(
            values if self.bits == 4 else signed(values),
            np.ascontiguousarray(tensors.finite("scales").T),
            self._zeros(tensors),
            _group_index(layer, tensors),
        )

    def _zeros(self, tensors: Tensors) -> np.ndarray | None:
        stored = rows(tensors.read("qzeros"))
        numbers = nibbles(stored) if self.bits == 4 else stored
        if self.minus_one:
            numbers = (numbers + np.uint8(1)) & np.uint8(2**self.bits - 1)
        middle = 2 ** (self.bits - 1)
        if self.symmetric:
            if (numbers != middle).any():
                raise tensors.fault("qzeros", f"zero points of {middle}, because {_WHERE}.sym is true", "others")
            return None
        return np.ascontiguousarray((signed(numbers) if self.bits == 8 else numbers).T)


def _quantized_only(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    """`modules_in_block_to_quantize`: names, or lists of names that were quantized together."""
    key = "modules_in_block_to_quantize"
    if settings.get(key) is None:
        return None
    listed = settings[key] if isinstance(settings[key], list) else [settings[key]]
    flat = [name for entry in listed for name in (entry if isinstance(entry, list) else [entry])]
    return keys.names({key: flat}, _WHERE, key)


def _group_index(layer: Layer, tensors: Tensors) -> np.ndarray | None:
    """Checked: groups of equal size, and in their places where there is no act-order."""
    if "g_idx" not in tensors:
        return None
    return group_index(layer, tensors, "g_idx", f"{_WHERE}.desc_act is false")


def group_index(layer: Layer, tensors: Tensors, suffix: str, why: str) -> np.ndarray | None:
    """The group of every input (I,) int32; None where they lie in their places, which they must without act-order."""
    index, size = tensors.read(suffix), layer.inputs // layer.groups
    if not layer.stored.order:
        if not np.array_equal(index, np.arange(layer.inputs) // size):
            raise tensors.fault(suffix, f"input i in group i // {size}, because {why} or there is one group", "others")
        return None
    counts = np.bincount(np.clip(index, 0, layer.groups), minlength=layer.groups + 1)
    if index.min() < 0 or index.max() >= layer.groups or (counts[:-1] != size).any():
        raise tensors.fault(suffix, f"{layer.groups} groups of {size} inputs", "others")
    return index
