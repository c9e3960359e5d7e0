"""Tiny models of the golden families in sizes that groups divide: dense tensors, and folders in a quantized format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from checkpoints.reader import open_checkpoint
from tests.checkpoints.quantized.packers import Packed
from tests.golden_recipe import build_config, load_case, tensor

HIDDEN, WIDTH, HEADS, KV_HEADS, HEAD = 128, 256, 4, 2, 32
LINEAR = re.compile(r"(model\.layers\.\d+\.(self_attn|mlp|mlp\.experts\.\d+)\.\w+_proj)\.weight")
PROMPT = [3, 17, 5, 60, 2, 41, 9, 30, 11]

# End of the layer's name -> (outputs, inputs).
SIZES = {
    "q_proj": (HEADS * HEAD, HIDDEN),
    "k_proj": (KV_HEADS * HEAD, HIDDEN),
    "v_proj": (KV_HEADS * HEAD, HIDDEN),
    "qkv_proj": ((HEADS + 2 * KV_HEADS) * HEAD, HIDDEN),
    "o_proj": (HIDDEN, HEADS * HEAD),
    "gate_proj": (WIDTH, HIDDEN),
    "up_proj": (WIDTH, HIDDEN),
    "gate_up_proj": (2 * WIDTH, HIDDEN),
    "down_proj": (HIDDEN, WIDTH),
}
# Layers that share their inputs, which quantizers sort alike.
SHARED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}


@dataclass(frozen=True)
class Tiny:
    """A dense model: its config.json, and its tensors in float32."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]

    def linears(self) -> dict[str, tuple[int, int]]:
        """{module: (outputs, inputs)} of the layers that quantizers are for."""
        found = {}
        for name, array in self.tensors.items():
            if match := LINEAR.fullmatch(name):
                found[match[1]] = array.shape
        return found


def tiny(family: str, layers: int = 1) -> Tiny:
    """A golden family in other sizes, its tensors drawn as the goldens' are."""
    case = load_case(family)
    config = build_config(case) | {
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": layers,
    }
    if config.get("head_dim") is not None:
        config["head_dim"] = HEAD
    if "moe_intermediate_size" in config:
        config["moe_intermediate_size"] = WIDTH
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = config["layer_types"][:layers]
    tensors = {}
    for name, spec in case.specs.items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if layer is None or int(layer[1]) < layers:
            tensors[name] = tensor(case.seed, name, _shape(name, spec.shape), spec.kind, spec.scale)
    return Tiny(config, tensors)


def _shape(name: str, golden: tuple[int, ...]) -> tuple[int, ...]:
    module, kind = name.rsplit(".", 1)
    end = module.rsplit(".", 1)[-1]
    if end in SIZES:
        return SIZES[end] if kind == "weight" else SIZES[end][:1]
    if end == "act_fn":  # numbers of an activation
        return golden
    if end in ("q_norm", "k_norm"):
        whole = golden[0] >= 32  # over all heads, or over one; heads of these goldens are smaller than that
        return ((HEADS if end == "q_norm" else KV_HEADS) * HEAD,) if whole else (HEAD,)
    return (golden[0], HIDDEN) if len(golden) == 2 else (HIDDEN,)


@dataclass(frozen=True)
class Pair:
    """A quantized folder, and a dense one whose weights are what the quantized ones mean."""

    quantized: Path
    dense: Path
    packed: dict[str, Packed]


def write_pair(
    root: Path,
    model: Tiny,
    settings: Mapping[str, Any],
    pack: Callable[[str, int, int], Packed | None],
    *,
    extra: Mapping[str, np.ndarray] | None = None,
) -> Pair:
    """`pack(module, outputs, inputs)` makes a layer's tensors; None leaves it dense. `extra`: tensors to add."""
    plain, quantized, packed = dict(model.tensors), dict(model.tensors), {}
    for module, (outputs, inputs) in model.linears().items():
        layer = pack(module, outputs, inputs)
        if layer is None:
            continue
        packed[module] = layer
        plain[f"{module}.weight"] = layer.value
        del quantized[f"{module}.weight"]
        quantized |= {f"{module}.{suffix}": np.ascontiguousarray(array) for suffix, array in layer.tensors.items()}
    write_folder(root / "dense", model.config, plain)
    config = model.config | {"quantization_config": dict(settings)}
    write_folder(root / "quantized", config, quantized | dict(extra or {}))
    return Pair(root / "quantized", root / "dense", packed)


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / "model.safetensors")


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder, copied. The safetensors library does not read float8 into numpy."""
    with open_checkpoint(folder) as source:
        return {name: np.array(source.read(name)) for name in source.names}


def edit_tensors(folder: Path, changes: Mapping[str, np.ndarray | None]) -> None:
    """Replace, add or (None) remove tensors."""
    tensors = read_tensors(folder) | dict(changes)
    save_file({name: array for name, array in tensors.items() if array is not None}, folder / "model.safetensors")
