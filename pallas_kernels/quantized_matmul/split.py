"""A weight whose axes are split over the devices of a mesh, and a kernel that runs on every device with its share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from pallas_kernels.mesh_axes import MeshAxes, devices_along, names_of
from pallas_kernels.qtensor import QTensor


@dataclasses.dataclass(frozen=True)
class Split:
    """How the axes (*O, I) of a weight lie on a mesh of more than one device.

    Attributes:
        axes: the mesh axes of each of them.
    """

    mesh: AbstractMesh
    axes: tuple[MeshAxes, ...]

    @property
    def outputs(self) -> int:
        """Over how many devices the outputs are split."""
        return math.prod(devices_along(self.mesh.shape, axis) for axis in self.axes[:-1])

    @property
    def inputs(self) -> int:
        """Over how many devices the inputs are split."""
        return devices_along(self.mesh.shape, self.axes[-1])

    def on_every_device(self, run: Callable[..., jax.Array], weight: QTensor) -> Callable[..., jax.Array]:
        """`run` (x, weight) -> (T, *O) once on every device, with its share of a weight without `order`."""
        *outputs, inputs = self.axes
        whole, groups = (PartitionSpec(*axes) for axes in weight.axes_of_parts(self.axes))

        def share(x: jax.Array, values: jax.Array, scales: jax.Array, zeros: jax.Array | None) -> jax.Array:
            y = run(x, dataclasses.replace(weight, values=values, scales=scales, zeros=zeros))
            return y if inputs is None else jax.lax.psum(y, inputs)

        # No output is replicated that psum has not made so, and a kernel's loops start from constants, which check_vma
        # would refuse to carry.
        mapped = jax.shard_map(
            share,
            mesh=self.mesh,
            in_specs=(PartitionSpec(None, inputs), whole, groups, groups),
            out_specs=PartitionSpec(None, *outputs),
            check_vma=False,
        )
        return lambda x, weight: mapped(x, weight.values, weight.scales, weight.zeros)


def split_of(split: PartitionSpec | None, weight: QTensor) -> Split | None:
    """How a weight lies on the current mesh; None if that has one device, or the caller is mapped over it already.

    Raises:
        ValueError: `split` names no axis of the mesh, has more axes than the weight, or does not divide one of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or all(kind == AxisType.Manual for kind in mesh.axis_types):
        return None
    axes: tuple[MeshAxes, ...] = () if split is None else tuple(split)
    shape = (*weight.outputs, weight.groups if weight.groups > 1 else weight.inputs)
    if len(axes) > len(shape) or any(name not in mesh.shape for axis in axes for name in names_of(axis)):
        raise ValueError(
            f"split is {split}; it must give for each of {len(shape)} axes of the weight None or one of the mesh's "
            f"axes, {', '.join(map(repr, mesh.shape))}"
        )
    axes += (None,) * (len(shape) - len(axes))
    for size, axis in zip(shape, axes, strict=True):
        devices = devices_along(mesh.shape, axis)
        if size % devices:
            raise ValueError(
                f"split is {split}; {devices} devices must divide each split axis of the weight "
                f"{weight.shape}, and its {weight.groups} groups"
            )
    if weight.packed_outputs and any(axis is not None for axis in axes[-1 - len(weight.packed_outputs) : -1]):
        raise ValueError(
            f"split is {split}; the last {len(weight.packed_outputs)} output axes of the weight lie in one with others"
        )
    return Split(mesh, axes)
