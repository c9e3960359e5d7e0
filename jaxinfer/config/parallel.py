"""How many devices lie along each axis of the mesh."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from jaxinfer.config.errors import is_int, require

_SERVED = ("tensor", "expert")


@dataclass(frozen=True)
class ParallelConfig:
    """The mesh's axes and their sizes, in devices. ConfigError refuses a size above 1 of all but `tensor` and `expert`.

    Attributes:
        data: parts of a step's tokens.
        pipe: stages of consecutive layers.
        tensor: parts of an expert's width.
        expert: parts that a layer's experts are dealt in. Heads, the width of dense MLPs and of shared experts, and the
            vocabulary are split over all tensor x expert devices.
    """

    data: int = 1
    pipe: int = 1
    tensor: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        for name, size in zip(self.axes(), self.sizes, strict=True):
            require(is_int(size) and size > 0, f"parallel axis {name} is {size!r}; it must be a positive integer")
            require(
                size == 1 or name in _SERVED,
                f"parallel axis {name} is {size}; only {' and '.join(_SERVED)} can be above 1",
            )

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

    def said(self) -> str:
        """The sizes as the options that ask for them, to begin an error with."""
        if self.expert == 1:
            return f"tensor_parallel_size is {self.tensor}"
        product = f"{self.tensor} x {self.expert} = {self.tensor * self.expert}"
        return f"tensor_parallel_size x expert_parallel_size is {product}"
