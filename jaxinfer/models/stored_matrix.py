"""Quantized matrices: which parameters they are, and how a checkpoint stores one. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from jaxinfer.config import ConfigError, FeedForward, MlpConfig, ModelConfig, MoeConfig
from jaxinfer.models.shape import ModelShape, degrees

if TYPE_CHECKING:
    from pallas_kernels.qtensor import Activations, Kind

# The matrices of a layer that can be quantized, and the logical axes of their inputs: what their parameters say of
# themselves, for those who plan without making a decoder.
MATRICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attention.qkv": ("embed",),
        "attention.out": ("kv_heads", "q_group", "head"),
        "mlp.gate_up": ("embed",),
        "mlp.down": ("mlp",),
        "moe.gate_up": ("embed",),
        "moe.down": ("expert_mlp",),
        "moe.shared.gate_up": ("embed",),
        "moe.shared.down": ("mlp",),
    }
)


def input_axes(path: str) -> int | None:
    """How many of a parameter's last axes are inputs, if it is a matrix that can be quantized."""
    end = _end(path)
    return None if end is None else len(MATRICES[end])


def input_sizes(path: str, config: ModelConfig) -> tuple[int, ...]:
    """Sizes of a matrix's input axes on one device. path: with or without ".weight"."""
    end, layer = _end(path), config.layers[layer_of(path) or 0]
    assert end is not None, f"{path} is no matrix of few bits"
    mixer = layer.mixer
    sizes = {
        "embed": config.hidden_size,
        "kv_heads": mixer.num_kv_heads,
        "q_group": mixer.group_size,
        "head": mixer.head_dim,
        "mlp": mlp_of(end, layer.feed_forward).intermediate_size,
        "expert_mlp": mlp_of(end, layer.feed_forward).intermediate_size,
    }
    return tuple(sizes[axis] for axis in MATRICES[end])


OF_DENSE_LAYERS = tuple(name for name in MATRICES if not name.startswith("moe."))


def mlp_of(path: str, feed_forward: FeedForward) -> MlpConfig:
    """The MLP that a layer's parameter belongs to, by its path: the layer's own, each expert's, or the shared one."""
    if isinstance(feed_forward, MlpConfig):
        return feed_forward
    if "moe.shared." not in path:
        return feed_forward.expert
    assert feed_forward.shared is not None, f"{path}: the layer has no shared experts"
    return feed_forward.shared


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
        part = layer.feed_forward
        split = [(part, shape.tp)] if isinstance(part, MlpConfig) else [(part.expert, shape.tp // shape.ep)]
        if isinstance(part, MoeConfig) and part.shared is not None:
            split.append((part.shared, shape.tp))
        for mlp, devices in split:
            if mlp.intermediate_size % devices:
                what = "it" if shape.ep == 1 else str(devices)
                raise ConfigError(
                    f"{degrees(shape.tp, shape.ep)}; with quantized matrices {what} must divide the intermediate "
                    f"size, {mlp.intermediate_size}"
                )
