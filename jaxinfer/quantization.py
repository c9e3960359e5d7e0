"""Weights in few bits: the schemes by name, which parameters they are for, and rounding one of them on its device.

Calibration-free: what `--quantization` does at load. Norms, biases and the vocabulary matrices keep their type.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh

from jaxinfer.config import ConfigError
from jaxinfer.models.axes import LogicalAxes
from jaxinfer.runtime.sharding import TP_AXIS, named_sharding, partition_spec
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.qtensor import Activations, Kind, QTensor, quantize
from pallas_kernels.quantized_matmul.layout import for_target

GROUPS = (128, 64, 32)  # inputs of an int4 group: the largest that divides a device's share is taken


@dataclass(frozen=True)
class Scheme:
    """How a matrix is rounded. Without `grouped` there is one scale for each output."""

    kind: Kind
    grouped: bool = False
    activations: Activations | None = None


# The names that --quantization takes, as vLLM and llm-compressor use them.
SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "int8": Scheme("int8"),
        "int4": Scheme("int4", grouped=True),
        "fp8": Scheme("fp8"),
        "w8a8": Scheme("int8", activations="int8"),
        "fp8-dynamic": Scheme("fp8", activations="fp8"),
    }
)

# Paths of the matrices, and how many of their last axes are inputs.
MATRICES: Mapping[str, int] = MappingProxyType(
    {
        r"layers\.\d+\.attention\.qkv\.weight": 1,
        r"layers\.\d+\.attention\.out\.weight": 3,
        r"layers\.\d+\.mlp\.(gate_up|down)\.weight": 1,
    }
)


def input_axes(path: str) -> int | None:
    """How many of a parameter's last axes are inputs, if it is a matrix that schemes are for."""
    return next((count for pattern, count in MATRICES.items() if re.fullmatch(pattern, path)), None)


@dataclass(frozen=True)
class MatrixRounding:
    """What becomes of one matrix: where its parts go, and the arithmetic. Build it with `rounding_of`."""

    scheme: Scheme
    group: int | None
    inputs: int
    axes: LogicalAxes  # of the weight
    mesh: Mesh

    def apply(self, weight: Any) -> QTensor:
        """Rounds a weight (*O, *I) that lies sharded on the mesh, or a `ShapeDtypeStruct` of one."""
        run = _program(self.scheme, self.group, self.inputs, DeviceTarget.of(self.mesh.devices.flat[0]))
        shardings = self._shardings(jax.eval_shape(run, weight))
        with jax.set_mesh(self.mesh):
            if isinstance(weight, jax.ShapeDtypeStruct):
                shapes = jax.eval_shape(run, weight)
                return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
            return _jitted(run, _Frozen(shardings))(weight)

    def _shardings(self, shape: QTensor) -> QTensor:
        """A `QTensor` of shardings: outputs as the weight has them; groups of inputs as its first input axis."""
        outputs, inputs = self.axes[: -self.inputs], self.axes[-self.inputs]
        values = named_sharding(self.mesh, (*outputs, inputs))
        scales = named_sharding(self.mesh, (*outputs, inputs if shape.scales.shape[-1] > 1 else None))
        return jax.tree.map(lambda leaf: values if leaf is shape.values else scales, shape)


def rounding_of(path: str, weight: Any, axes: LogicalAxes, scheme: Scheme, mesh: Mesh) -> MatrixRounding | None:
    """How `scheme` rounds the parameter `path`; None for those that keep their type.

    Raises ConfigError, naming the parameter, if no group size divides a device's share of its inputs.
    """
    inputs = input_axes(path)
    if inputs is None:
        return None
    count = 1
    for size in weight.shape[-inputs:]:
        count *= size
    group = None
    if scheme.grouped:
        share = count // (mesh.shape[TP_AXIS] if partition_spec(axes)[-inputs] is not None else 1)
        group = next((size for size in GROUPS if share % size == 0), None)
        if group is None:
            raise ConfigError(
                f"quantization: {path} has {share} inputs on a device; one of {GROUPS} must divide them for int4"
            )
    return MatrixRounding(scheme, group, inputs, axes, mesh)


@functools.lru_cache
def _program(scheme: Scheme, group: int | None, inputs: int, target: DeviceTarget) -> Any:
    def run(weight: jax.Array) -> QTensor:
        outputs = weight.shape[: weight.ndim - inputs]
        matrix = weight.reshape(*outputs, -1)
        return for_target(quantize(matrix, scheme.kind, group, activations=scheme.activations), target)

    return run


class _Frozen:
    """A tree of shardings as a key."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        leaves, self._structure = jax.tree.flatten(tree)
        self._leaves = tuple(leaves)

    def __hash__(self) -> int:
        return hash((self._leaves, self._structure))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and (self._leaves, self._structure) == (other._leaves, other._structure)


@functools.lru_cache
def _jitted(run: Any, shardings: _Frozen) -> Any:
    """One program for all layers' equal matrices."""
    return jax.jit(run, out_shardings=shardings.tree)
