"""Quantized matrices: which parameters they are, and how a checkpoint stores one. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from jaxinfer.config import (
    ConfigError,
    FeedForward,
    LayerConfig,
    LinearConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
)
from jaxinfer.models.shape import ModelShape

if TYPE_CHECKING:
    from pallas_kernels.qtensor import Activations, Kind

# The matrices of a layer that can be quantized, and the logical axes of their inputs: what their parameters say of
# themselves, for those who plan without making a decoder.
_WHOLE: Mapping[str, tuple[str, ...]] = {
    "attention.qkv": ("embed",),
    "attention.q": ("embed",),  # q, k and v stand in place of qkv where one of them is two factors
    "attention.k": ("embed",),
    "attention.v": ("embed",),
    "attention.out": ("kv_heads", "q_group", "head"),
    "attention.linear": ("embed",),  # where it has replaced attention
    "mlp.gate_up": ("embed",),
    "mlp.gate": ("embed",),  # gate and up stand in place of gate_up where one of them is two factors
    "mlp.up": ("embed",),  # or where there is no gate
    "mlp.down": ("mlp",),
    "mlp.linear": ("embed",),  # where it has replaced the MLP
    "moe.gate_up": ("embed",),
    "moe.down": ("mlp",),
    "moe.shared.gate_up": ("embed",),
    "moe.shared.down": ("mlp",),
}
_FACTORED = (*(f"attention.{name}" for name in ("q", "k", "v", "out")), "mlp.gate", "mlp.up", "mlp.down")
MATRICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **_WHOLE,
        **{f"{name}.inner": _WHOLE[name] for name in _FACTORED},
        **{f"{name}.outer": ("rank",) for name in _FACTORED},
    }
)


def matrices_of(layer: LayerConfig) -> tuple[str, ...]:
    """Those of `MATRICES` that a layer has."""
    ranks, names = layer.ranks, []
    if isinstance(layer.mixer, LinearConfig):
        names = ["attention.linear"]
    elif layer.mixer is not None:
        apart = ranks.q or ranks.k or ranks.v
        names = ["attention.q", "attention.k", "attention.v"] if apart else ["attention.qkv"]
        names.append("attention.out")
    if isinstance(layer.feed_forward, LinearConfig):
        names.append("mlp.linear")
    elif isinstance(layer.feed_forward, MoeConfig):
        names += ["moe.gate_up", "moe.down"]
        names += ["moe.shared.gate_up", "moe.shared.down"] if layer.feed_forward.shared is not None else []
    elif layer.feed_forward is not None:
        gate = ["mlp.gate", "mlp.up"] if ranks.gate or ranks.up else ["mlp.gate_up"]
        names += [*(gate if layer.feed_forward.gated else ["mlp.up"]), "mlp.down"]
    given = {name for name in names if name in _FACTORED and name.split(".")[1] in ranks.given}
    return tuple(end for name in names for end in ((f"{name}.inner", f"{name}.outer") if name in given else (name,)))


def matrix_names(config: ModelConfig) -> Iterator[str]:
    """The matrices of the layers, as quantization policies name them: paths of parameters without ".weight"."""
    for index, layer in enumerate(config.layers):
        for end in matrices_of(layer):
            yield f"layers.{index}.{end}"


def input_axes(path: str) -> int | None:
    """How many of a parameter's last axes are inputs, if it is a matrix that can be quantized."""
    end = _end(path)
    return None if end is None else len(MATRICES[end])


def input_sizes(path: str, config: ModelConfig) -> tuple[int, ...]:
    """Sizes of a matrix's input axes on one device. path: with or without ".weight"."""
    end, layer = _end(path), config.layers[layer_of(path) or 0]
    assert end is not None, f"{path} is no matrix of few bits"
    mixer, mlp = layer.attention, mlp_of(end, layer.feed_forward)
    sizes = {"embed": config.hidden_size, "mlp": 0 if mlp is None else mlp.intermediate_size}
    if mixer is not None:
        sizes |= {"kv_heads": mixer.num_kv_heads, "q_group": mixer.group_size, "head": mixer.head_dim}
    if end.endswith(".outer"):
        sizes["rank"] = layer.ranks.given[end.split(".")[1]]
    return tuple(sizes[axis] for axis in MATRICES[end])


def mlp_of(path: str, feed_forward: FeedForward | LinearConfig | None) -> MlpConfig | None:
    """The MLP that a layer's parameter belongs to, by its path: the layer's own, each expert's, or the shared one; None
    in a layer without one."""
    if isinstance(feed_forward, MoeConfig):
        return feed_forward.shared if "moe.shared." in path else feed_forward.expert
    return feed_forward if isinstance(feed_forward, MlpConfig) else None


def _end(path: str) -> str | None:
    found = re.fullmatch(r"layers\.\d+\.(.+?)(\.weight)?", path)
    return found[1] if found is not None and found[1] in MATRICES else None


def layer_of(path: str) -> int | None:
    """The layer that a parameter belongs to, by its dotted path; None outside of the layers."""
    found = re.match(r"layers\.(\d+)\.", path)
    return None if found is None else int(found[1])


@dataclass(frozen=True)
class StoredMatrix:
    """How a checkpoint stores a quantized matrix; it becomes a `pallas_kernels.qtensor.QTensor` of the same parts.

    Attributes:
        kind: what the numbers are.
        group: inputs that share a scale; None: all of them.
        zeros: has zero points.
        order: its inputs are sorted by group, and a permutation says which is which (act-order).
        activations: what activations are rounded to, token by token, before the product; None: they keep their type.
    """

    kind: Kind
    group: int | None = None
    zeros: bool = False
    order: bool = False
    activations: Activations | None = None

    def groups(self, inputs: int) -> int:
        """A: how many scales an output has. The caller has checked that the group divides the inputs."""
        return 1 if self.group is None else inputs // self.group


def check_stored(
    stored: Mapping[str, StoredMatrix], quantization: str | None, config: ModelConfig, shape: ModelShape
) -> None:
    """Raises ConfigError where matrices that a checkpoint stores quantized cannot be used as asked.

    quantization: the scheme that weights are to be rounded with at load, if any. shape: the sizes on the mesh.
    """
    if not stored:
        return
    if quantization is not None:
        kinds = sorted({matrix.kind for matrix in stored.values()})
        raise ConfigError(
            f"quantization is {quantization!r}, but the checkpoint is quantized already ({', '.join(kinds)}); "
            "it must be None"
        )
    for layer in config.layers:
        parts = layer.feed_forward.mlps if isinstance(layer.feed_forward, MoeConfig) else [layer.mlp]
        for mlp in parts:
            if mlp is not None and mlp.intermediate_size % shape.tp:
                raise ConfigError(
                    f"tensor_parallel_size is {shape.tp}; with quantized matrices it must divide the intermediate "
                    f"size, {mlp.intermediate_size}"
                )
