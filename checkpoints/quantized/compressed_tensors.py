"""compressed-tensors, as llm-compressor writes it: groups of layers, each with its own scheme.

"pack-quantized", whole numbers of 4 or 8 bits:

    weight_packed      (O, I * bits // 32) int32    a word holds 32 // bits inputs, the first in its lowest bits
    weight_scale       (O, A)
    weight_zero_point  (O * bits // 32, A) int32    a word holds outputs; only if not symmetric
    weight_g_idx       (I,) int32                   the group of every input; only with actorder "group"
    weight_shape       (2,) int64                   O and I

"int-quantized", "float-quantized", "naive-quantized", one number of 8 bits in its own type:

    weight             (O, I) int8 or float8_e4m3fn
    weight_scale       (O, 1), (1,) or, for blocks, (ceil(O / 128), I / 128)

    weight[o, i] = (q[o, i] - zero[o, group of i]) * scale[o, group of i]

Packed numbers and zero points are both stored plus 2^(bits - 1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from checkpoints.quantized import keys
from checkpoints.quantized.fp8 import BLOCK, block_scales, for_each_output, fp8_values
from checkpoints.quantized.gptq import group_index
from checkpoints.quantized.protocol import SCALE_DTYPES, Format, Layer, Part, Parts, Tensors, nibbles, signed
from checkpoints.quantized.protocol import packed_rows as rows
from jaxinfer.config import ConfigError, UnsupportedModelError
from jaxinfer.models.stored_matrix import StoredMatrix

_WHERE = "quantization_config"
_PACKED = "pack-quantized"
_PLAIN = ("int-quantized", "float-quantized", "naive-quantized")
_MIXED = "mixed-precision"
_LINEAR = "Linear"  # the class that targets name
_STRATEGIES = {
    "pack-quantized": ("group", "channel"),
    "int": ("channel", "tensor"),
    "float": ("channel", "tensor", "block"),
}
_ARGUMENTS = ("num_bits", "type", "symmetric", "strategy", "group_size", "dynamic")
_HARMLESS = ("observer", "observer_kwargs", "zp_dtype", "scale_dtype")  # how scales were found, and in which type


@dataclass(frozen=True)
class Group:
    """One entry of `config_groups`."""

    targets: tuple[str, ...]
    stored: StoredMatrix
    packed: bool
    strategy: str


@dataclass(frozen=True)
class CompressedTensors(Format):
    """groups: the one whose target names a layer best says how it is stored. ignore: layers that are not quantized."""

    groups: tuple[Group, ...]
    ignore: tuple[str, ...]

    method = "compressed-tensors"

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> CompressedTensors:
        """See `checkpoints.quantized.parse`."""
        keys.check_keys(
            settings,
            _WHERE,
            read=("quant_method", "config_groups", "format", "ignore", "sparsity_config"),
            harmless=("global_compression_ratio", "version"),
            only={
                "quantization_status": ("compressed", "frozen"),
                "transform_config": (),
                "kv_cache_scheme": (),
                "run_compressed": (True,),
            },
        )
        sparsity = settings.get("sparsity_config") or {"format": "dense"}
        if not isinstance(sparsity, dict) or sparsity.get("format") != "dense":
            raise UnsupportedModelError(f"{_WHERE}.sparsity_config is {sparsity!r:.200}; its format must be 'dense'")
        layout = keys.one_of(settings, _WHERE, "format", (_PACKED, *_PLAIN, _MIXED))
        listed = settings.get("config_groups")
        if not isinstance(listed, dict) or not listed:
            raise ConfigError(f"{_WHERE}.config_groups is {listed!r:.200}; it must be an object of groups")
        groups = tuple(_group(group, f"{_WHERE}.config_groups.{name}", layout) for name, group in listed.items())
        ignore = keys.names(settings, _WHERE, "ignore")
        _check_patterns((*ignore, *(target for group in groups for target in group.targets)))
        return cls(groups, ignore)

    def stored(self, module: keys.Names) -> StoredMatrix | None:
        group = self._group(module)
        return None if group is None else group.stored

    def _group(self, module: keys.Names) -> Group | None:
        if any(_matches(name, module) for name in self.ignore):
            return None
        found = [(_rank(t), i) for i, group in enumerate(self.groups) for t in group.targets if _matches(t, module)]
        return self.groups[min(found)[1]] if found else None

    def head_is_stored(self, head: keys.Names) -> bool:
        return self._group(head) is not None

    def unmatched(self, modules: Sequence[keys.Names]) -> list[str]:
        targets = [target for group in self.groups for target in group.targets]
        return [target for target in targets if not any(_matches(target, module) for module in modules)]

    def parts(self, layer: Layer) -> dict[str, Part]:
        group = self._group(layer.names)
        assert group is not None
        return _packed_parts(layer) if group.packed else _plain_parts(layer, group)

    def read(self, layer: Layer, tensors: Tensors) -> Parts:
        group = self._group(layer.names)
        assert group is not None
        if group.packed:
            return _read_packed(layer, tensors)
        scales = for_each_output(tensors.finite("weight_scale"), layer)
        return Parts(tensors.read("weight") if layer.stored.kind == "int8" else fp8_values(tensors), scales)


def _bits(layer: Layer) -> int:
    return 4 if layer.stored.kind == "int4" else 8


def _packed_parts(layer: Layer) -> dict[str, Part]:
    bits, stored = _bits(layer), layer.stored
    fields = 32 // bits
    if layer.inputs % fields or (stored.zeros and layer.outputs % fields):
        raise ConfigError(
            f"{layer.module} has {layer.outputs} outputs and {layer.inputs} inputs; {_PACKED} of {bits} bits needs "
            f"multiples of {fields}"
        )
    parts = {
        "weight_packed": Part(((layer.outputs, layer.inputs // fields),), ("I32",)),
        "weight_scale": Part(((layer.outputs, layer.groups),), SCALE_DTYPES),
        "weight_shape": Part(((2,),), ("I64", "I32")),
    }
    if stored.zeros:
        parts["weight_zero_point"] = Part(((layer.outputs // fields, layer.groups),), ("I32",))
    if stored.order:
        parts["weight_g_idx"] = Part(((layer.inputs,),), ("I32",))
    return parts


def _read_packed(layer: Layer, tensors: Tensors) -> Parts:
    shape = tuple(tensors.read("weight_shape").tolist())
    if shape != (layer.outputs, layer.inputs):
        raise tensors.fault("weight_shape", f"the values {(layer.outputs, layer.inputs)}", str(shape))
    values, zeros = rows(tensors.read("weight_packed")), None
    four = _bits(layer) == 4
    if layer.stored.zeros:
        stored = rows(tensors.read("weight_zero_point").T)  # (A, O) from here on
        numbers = nibbles(stored) if four else signed(stored)
        zeros = np.ascontiguousarray(numbers.T)
    order = group_index(layer, tensors, "weight_g_idx", "actorder is not group") if layer.stored.order else None
    return Parts(values if four else signed(values), tensors.finite("weight_scale"), zeros, order)


def _plain_parts(layer: Layer, group: Group) -> dict[str, Part]:
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "channel": ((layer.outputs, 1), (layer.outputs,)),
        "tensor": ((), (1,), (1, 1)),
        "block": (block_scales(layer),),
    }
    dtype = "I8" if layer.stored.kind == "int8" else "F8_E4M3"
    return {
        "weight": Part(((layer.outputs, layer.inputs),), (dtype,)),
        "weight_scale": Part(shapes[group.strategy], SCALE_DTYPES),
    }


def _matches(name: str, module: keys.Names) -> bool:
    """Targets and ignored names: "re:" and a pattern for the beginning of the name, a whole name, or the class."""
    if name.startswith("re:"):
        return any(re.match(name.removeprefix("re:"), own) for own in module)
    return name in (*module, _LINEAR)


def _rank(target: str) -> int:
    """A name comes before a pattern, a pattern before the class of all linear layers."""
    return 2 if target == _LINEAR else 1 if target.startswith("re:") else 0


def _check_patterns(listed: Sequence[str]) -> None:
    for name in listed:
        if name.startswith("re:"):
            try:
                re.compile(name.removeprefix("re:"))
            except re.error as error:
                raise ConfigError(f"{_WHERE} has {name!r}; it must be a regular expression ({error})") from error


def _group(entry: Any, where: str, overall: str) -> Group:
    if not isinstance(entry, dict):
        raise UnsupportedModelError(f"{where} is {entry!r:.200}; it must be an object, not the name of a preset")
    keys.check_keys(
        entry, where, read=("targets", "weights", "input_activations", "format"), only={"output_activations": ()}
    )
    layout = keys.one_of(entry, where, "format", (_PACKED, *_PLAIN), None if overall == _MIXED else overall)
    weights = entry.get("weights")
    if not isinstance(weights, dict):
        raise UnsupportedModelError(f"{where}.weights is {weights!r:.200}; it must be an object")
    packed = layout == _PACKED
    stored, strategy = _weights(weights, f"{where}.weights", packed)
    if layout in ("int-quantized", "float-quantized") and (stored.kind == "fp8") != (layout == "float-quantized"):
        raise ConfigError(f"{where}: format is {layout!r}, but weights.type is {weights['type']!r}")
    activations = _activations(entry.get("input_activations"), f"{where}.input_activations", stored, strategy)
    targets = keys.names(entry, where, "targets")
    if not targets:
        raise ConfigError(f"{where}.targets is empty; it must name layers, or {_LINEAR!r}")
    matrix = StoredMatrix(stored.kind, stored.group, stored.zeros, stored.order, activations)
    return Group(targets, matrix, packed, strategy)


def _weights(weights: Mapping[str, Any], where: str, packed: bool) -> tuple[StoredMatrix, str]:
    """How weights are stored, activations left open, and the strategy."""
    keys.check_keys(
        weights,
        where,
        read=(*_ARGUMENTS, "actorder"),
        harmless=_HARMLESS,
        only={"dynamic": (), "block_structure": ([BLOCK, BLOCK], f"{BLOCK}x{BLOCK}")},
    )
    kind = keys.one_of(weights, where, "type", ("int",) if packed else ("int", "float"))
    bits = keys.one_of(weights, where, "num_bits", (4, 8) if packed else (8,))
    strategy = keys.one_of(weights, where, "strategy", _STRATEGIES[_PACKED if packed else kind])
    symmetric = keys.one_of(weights, where, "symmetric", (True, False) if packed else (True,), True)
    group = keys.group_size(weights, where) if strategy == "group" else None
    if strategy == "group" and group is None:
        raise ConfigError(f"{where}.group_size is -1; with strategy 'group' it must be one of {list(keys.GROUPS)}")
    if strategy == "block":
        group = BLOCK
        if weights.get("block_structure") is None:
            raise ConfigError(f"{where}.block_structure is None; with strategy 'block' it must be {[BLOCK, BLOCK]}")
    order = keys.one_of(weights, where, "actorder", ("group", "dynamic", "weight", "static", False), False)
    by_group = order in ("group", "dynamic")
    if by_group and not (packed and group is not None):
        raise UnsupportedModelError(f"{where}.actorder is {order!r}; it is supported with {_PACKED} and groups only")
    stored = StoredMatrix("fp8" if kind == "float" else "int4" if bits == 4 else "int8", group, not symmetric, by_group)
    return stored, strategy


def _activations(settings: Any, where: str, stored: StoredMatrix, strategy: str) -> Any:
    """What activations are rounded to. With blocks they keep their type, as said in `fp8`."""
    if settings is None:
        return None
    if not isinstance(settings, dict):
        raise ConfigError(f"{where} is {settings!r:.200}; it must be an object or null")
    in_blocks = strategy == "block"
    keys.check_keys(settings, where, read=_ARGUMENTS, harmless=_HARMLESS)
    keys.one_of(settings, where, "num_bits", (8,))
    kind = keys.one_of(settings, where, "type", ("float",) if stored.kind == "fp8" else ("int",))
    keys.one_of(settings, where, "symmetric", (True,), True)
    keys.one_of(settings, where, "dynamic", (True,))
    keys.one_of(settings, where, "strategy", ("group",) if in_blocks else ("token",))
    if in_blocks:
        keys.one_of(settings, where, "group_size", (BLOCK,))
        return None
    return "int8" if kind == "int" else "fp8"
