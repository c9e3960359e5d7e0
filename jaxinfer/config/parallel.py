"""How many devices lie along each axis of the mesh."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from jaxinfer.config.errors import is_int, require


@dataclass(frozen=True)
class ParallelConfig:
    """The mesh's axes and their sizes, in devices. Only `tensor` can be above 1; ConfigError refuses others by name.

    Attributes:
        data: parts of a step's tokens.
        pipe: stages of consecutive layers.
        tensor: parts of heads, MLP width and vocabulary.
        expert: parts of a layer's experts.
    """

    data: int = 1
    pipe: int = 1
    tensor: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        for name, size in zip(self.axes(), self.sizes, strict=True):
            require(is_int(size) and size > 0, f"parallel axis {name} is {size!r}; it must be a positive integer")
            require(size == 1 or name == "tensor", f"parallel axis {name} is {size}; only tensor can be above 1")

    @classmethod
    def axes(cls) -> tuple[str, ...]:
        """Names of the mesh axes, in their order."""
        return tuple(axis.name for axis in dataclasses.fields(cls))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Devices along each of `axes`."""
        return tuple(getattr(self, name) for name in self.axes())

    @property
    def num_devices(self) -> int:
        return math.prod(self.sizes)
