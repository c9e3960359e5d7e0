"""Quantized weights on their devices: rounded there at load by a scheme, or stored quantized by the checkpoint.

Schemes are calibration-free: what `--quantization` does. Norms, biases and the vocabulary matrices keep their type.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxinfer.config import ConfigError
from jaxinfer.models.parameters import ParameterFacts
from jaxinfer.models.shape import degrees
from jaxinfer.models.stored_matrix import StoredMatrix
from jaxinfer.sharding import LogicalAxes, expert_size, model_size, named_sharding, partition_spec, replicated
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.mesh_axes import devices_along
from pallas_kernels.mxfp4 import BLOCK
from pallas_kernels.qtensor import (
    STORAGE,
    ZEROS,
    Activations,
    Kind,
    QTensor,
    group_unit,
    quantize,
    scales_dtype,
    stored_inputs,
)
from pallas_kernels.quantized_matmul.layout import for_target

GROUPS = (128, 64, 32)  # inputs of an int4 group: the largest that divides a device's share is taken


@dataclass(frozen=True)
class Scheme:
    """How a matrix is rounded. groups: how many inputs may share a scale, the best first; none: one for each output."""

    kind: Kind
    groups: tuple[int, ...] = ()
    activations: Activations | None = None


# The names that --quantization takes, as vLLM and llm-compressor use them.
SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "int8": Scheme("int8"),
        "int4": Scheme("int4", GROUPS),
        "fp8": Scheme("fp8"),
        "w8a8": Scheme("int8", activations="int8"),
        "fp8-dynamic": Scheme("fp8", activations="fp8"),
        "mxfp4": Scheme("mxfp4", (BLOCK,)),
    }
)


@dataclass(frozen=True)
class MatrixRounding:
    """What becomes of one matrix: where its parts go, and the arithmetic. Build it with `rounding_of`."""

    scheme: Scheme
    group: int | None
    inputs: int  # how many axes of the weight are inputs
    axes: LogicalAxes  # of the weight
    mesh: Mesh

    def apply(self, weight: Any) -> QTensor:
        """Rounds a weight (*O, *I) that lies sharded on the mesh, or a `ShapeDtypeStruct` of one."""
        shards = _shards(self.axes, self.inputs, self.mesh)
        target, leading = DeviceTarget.of(self.mesh.devices.flat[0]), _leading(self.axes)
        run = _program(self.scheme, self.group, self.inputs, target, shards, leading)
        return _placed(run, weight, self.axes, self.inputs, self.mesh)


def rounding_of(path: str, weight: Any, facts: ParameterFacts, scheme: Scheme, mesh: Mesh) -> MatrixRounding | None:
    """How `scheme` rounds the parameter `path`; None for those that keep their type.

    Raises ConfigError, naming the parameter, if no group size divides a device's share of its inputs.
    """
    axes, inputs = facts.axes, facts.inputs
    if inputs is None or not facts.quantizable:
        return None
    group = None
    if scheme.groups:
        count = math.prod(weight.shape[-inputs:])
        share = count // _input_shards(axes, inputs, mesh)
        group = largest_group(path, share, scheme, _way_out(axes, weight.shape, count, scheme.groups[-1], mesh))
    return MatrixRounding(scheme, group, inputs, axes, mesh)


def largest_group(path: str, share: int, scheme: Scheme, way_out: str = "") -> int:
    """The best of a scheme's groups for `share` inputs on a device.

    Raises ConfigError, naming the parameter and with the way out, if there is none.
    """
    group = next((size for size in scheme.groups if share % size == 0), None)
    if group is None:
        several = "one of " * (len(scheme.groups) > 1) + ", ".join(map(str, scheme.groups))
        raise ConfigError(
            f"quantization: {path} has {share} inputs on a device; {several} must divide them for {scheme.kind}"
            f"{way_out}"
        )
    return group


def stored_parts(outputs: tuple[int, ...], inputs: int, stored: StoredMatrix) -> QTensor:
    """The shapes of a matrix's parts, outputs *O and I inputs as one axis, as `ShapeDtypeStruct`s."""
    groups = stored.groups(inputs)

    def part(*sizes: int, dtype: np.dtype) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    return QTensor(
        part(*outputs, stored_inputs(stored.kind, inputs), dtype=STORAGE[stored.kind]),
        part(*outputs, groups, dtype=scales_dtype(stored.kind)),
        part(*outputs, groups, dtype=ZEROS[stored.kind]) if stored.zeros else None,
        part(inputs, dtype=np.dtype(np.int32)) if stored.order else None,
        kind=stored.kind,
        activations=stored.activations,
    )


@dataclass(frozen=True)
class MatrixPlacing:
    """What becomes of one matrix that the checkpoint stores quantized. Build it with `placing_of`.

    Attributes:
        as_stored: shapes of its parts, with the shardings in which they reach the devices.
    """

    as_stored: QTensor
    inputs: int
    axes: LogicalAxes  # of the weight
    mesh: Mesh

    def apply(self, parts: QTensor) -> QTensor:
        """Places parts that lie on the host, in the shapes of `as_stored`, as their device multiplies by them."""

        def place(host: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
            return jax.make_array_from_callback(like.shape, like.sharding, lambda index: host[index])

        return self._kept(jax.tree.map(place, parts, self.as_stored))

    def abstract(self) -> QTensor:
        """What `apply` returns, as `ShapeDtypeStruct`s."""
        return self._kept(self.as_stored)

    def _kept(self, weight: QTensor) -> QTensor:
        target, shards = DeviceTarget.of(self.mesh.devices.flat[0]), _shards(self.axes, self.inputs, self.mesh)
        run = _keeping(target, shards, _leading(self.axes))
        return _placed(run, weight, self.axes, self.inputs, self.mesh)


def placing_of(
    path: str, shape: tuple[int, ...], facts: ParameterFacts, stored: StoredMatrix, mesh: Mesh
) -> MatrixPlacing:
    """Where the matrix `path` goes, a weight of this shape.

    Raises ConfigError, naming the parameter, if its inputs cannot be split over the mesh between groups.
    """
    axes, inputs = facts.axes, facts.inputs
    assert inputs is not None, f"{path} is no matrix"
    outputs, count = shape[:-inputs], math.prod(shape[-inputs:])
    groups = stored.groups(count)
    tp = _input_shards(axes, inputs, mesh)
    unit = count // groups if groups > 1 else group_unit(stored.kind)
    if count % tp or (count // tp) % unit:
        raise ConfigError(
            f"{degrees(model_size(mesh), expert_size(mesh))}; {path} has {count} inputs, stored in groups of "
            f"{count // groups}: it must split them between groups{_way_out(axes, shape, count, unit, mesh)}"
        )

    plain = stored_parts(outputs, count, stored)
    return MatrixPlacing(_with_shardings(plain, _shardings(plain, axes, inputs, mesh)), inputs, axes, mesh)


def _way_out(axes: LogicalAxes, shape: tuple[int, ...], inputs: int, unit: int, mesh: Mesh) -> str:
    """For an error's end: how as many devices, or which number of them, can split a matrix of so many inputs between
    units of `unit`. Nothing where one device has all."""
    devices = model_size(mesh)
    sizes = [n for n in range(devices, 0, -1) if devices % n == 0 and inputs % n == 0 and inputs // n % unit == 0]
    if devices == 1 or not sizes:
        return ""
    if axes[0] != "experts":
        return f"; at most {sizes[0]} of the {devices} devices can share its {inputs} inputs"
    dealt = next((devices // n for n in sizes if shape[0] % (devices // n) == 0), None)
    if dealt is None:
        return ""
    return (
        f"; --expert-parallel-size {dealt} with --tensor-parallel-size {devices // dealt} deals experts to the devices"
    )


def _input_shards(axes: LogicalAxes, inputs: int, mesh: Mesh) -> int:
    """Over how many devices a weight's inputs are split."""
    return devices_along(mesh.shape, partition_spec(axes)[-inputs])


def _leading(axes: LogicalAxes) -> int:
    """How many output axes stay apart from the others: that of experts does."""
    return int(axes[0] == "experts")


def _shards(axes: LogicalAxes, inputs: int, mesh: Mesh) -> tuple[int, ...]:
    """Over how many devices each output axis of a weight, and its inputs, are split."""
    spec = partition_spec(axes)[: len(axes) - inputs + 1]
    return tuple(devices_along(mesh.shape, along) for along in spec)


def _shardings(shape: QTensor, axes: LogicalAxes, inputs: int, mesh: Mesh) -> QTensor:
    """A `QTensor` of shardings: outputs as the weight has them; groups of inputs as its first input axis."""
    of_values, of_scales = shape.axes_of_parts(axes[: len(axes) - inputs + 1])
    scales: Any = named_sharding(mesh, of_scales)
    values: Any = named_sharding(mesh, of_values)
    order: Any = replicated(mesh)  # any device may need any input
    return replace(
        shape,
        values=values,
        scales=scales,
        zeros=None if shape.zeros is None else scales,
        order=None if shape.order is None else order,
    )


def _with_shardings(shapes: QTensor, shardings: QTensor) -> QTensor:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _placed(run: Callable[[Any], QTensor], operand: Any, axes: LogicalAxes, inputs: int, mesh: Mesh) -> QTensor:
    """`run` of what lies sharded on the mesh, its result sharded too; or shapes of shapes."""
    shapes = jax.eval_shape(run, operand)
    shardings = _shardings(shapes, axes, inputs, mesh)
    with jax.set_mesh(mesh):
        if isinstance(jax.tree.leaves(operand)[0], jax.ShapeDtypeStruct):
            return _with_shardings(shapes, shardings)
        return _jitted(run, shardings)(operand)


@functools.lru_cache
def _keeping(target: DeviceTarget, shards: tuple[int, ...], leading: int) -> Callable[[QTensor], QTensor]:
    return lambda weight: for_target(weight, target, shards, leading=leading)


@functools.lru_cache
def _program(
    scheme: Scheme, group: int | None, inputs: int, target: DeviceTarget, shards: tuple[int, ...], leading: int
) -> Any:
    def run(weight: jax.Array) -> QTensor:
        outputs = weight.shape[: weight.ndim - inputs]
        matrix = weight.reshape(*outputs, -1)
        rounded = quantize(matrix, scheme.kind, group, activations=scheme.activations)
        return for_target(rounded, target, shards, leading=leading)

    return run


@functools.lru_cache
def _jitted(run: Any, shardings: QTensor) -> Any:
    """One program for all layers' equal matrices."""
    return jax.jit(run, out_shardings=shardings)
