"""What one axis of an array is split over: an axis of the mesh, several of them as one, or nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

MeshAxes = str | tuple[str, ...] | None  # several: parts are dealt along the last one first, as in a PartitionSpec


def names_of(axes: MeshAxes) -> tuple[str, ...]:
    """The axes by name, none or more."""
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def devices_along(sizes: Mapping[str, int], axes: MeshAxes) -> int:
    """Into how many parts an axis is split. sizes: devices along each axis of the mesh (`Mesh.shape`)."""
    return math.prod(sizes[name] for name in names_of(axes))
