"""What formats have in common: which tensors a linear layer has in the file, and the parts that become a `QTensor`.

Legend: O outputs, I inputs, A groups of inputs, g = I // A.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from checkpoints.files import CheckpointError
from checkpoints.quantized.keys import Names
from checkpoints.reader import TensorSource
from jaxinfer.models.stored_matrix import StoredMatrix

Shape = tuple[int, ...]
SCALE_DTYPES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Layer:
    """A linear layer of the checkpoint; its tensors are called `module`.SUFFIX.

    Attributes:
        names: see `keys.Names`.
        experts: E, where the tensors of so many layers of one shape are stacked, as those of a mixture's experts can
            be; None: it is one.
        parameter: what the weight is called in `module`, in formats that name its tensors after it.
    """

    names: Names
    outputs: int  # O
    inputs: int  # I
    stored: StoredMatrix
    experts: int | None = None
    parameter: str = "weight"

    @property
    def module(self) -> str:
        return self.names[0]

    @property
    def groups(self) -> int:
        """A."""
        return self.stored.groups(self.inputs)


@dataclass(frozen=True)
class Part:
    """What the header must say of one tensor of a layer. also: another suffix that some files have for it."""

    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    required: bool = True
    also: str | None = None


@dataclass(frozen=True)
class Parts:
    """A weight (O, I), or (E, O, I) of stacked layers, as `QTensor` has it, in numpy, its inputs in the order of the
    activations.

    Attributes:
        values: (O, I) int8 or float8_e4m3fn, or (O, I // 2) uint8 for int4 and mxfp4.
        scales: (O, A) float32; uint8 exponents for mxfp4.
        zeros: (O, A) of the type that `pallas_kernels.qtensor.ZEROS` says, or None.
        group_index: (I,) int32, the group of every input where they are not contiguous (act-order), else None.
    """

    values: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None
    group_index: np.ndarray | None = None


class Tensors:
    """The tensors of one layer, headers checked against the format's `parts`, values read as they are asked for."""

    def __init__(self, source: TensorSource, layer: Layer, parts: Mapping[str, Part]) -> None:
        """Raises CheckpointError naming file and tensor if one is missing, misshaped or of another type."""
        self._source, self._layer = source, layer
        self._of = {suffix: self._name(suffix, part) for suffix, part in parts.items()}
        self._of = {suffix: name for suffix, name in self._of.items() if self._check(name, suffix, parts[suffix])}

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are there, in the file's spelling."""
        return tuple(self._of.values())

    def _name(self, suffix: str, part: Part) -> str:
        other = f"{self._layer.module}.{part.also}"
        return other if part.also is not None and other in self._source else f"{self._layer.module}.{suffix}"

    def _check(self, name: str, suffix: str, part: Part) -> bool:
        if name not in self._source:
            if not part.required:
                return False
            stacked = "" if self._layer.experts is None else f" for each of {self._layer.experts} experts"
            raise CheckpointError(
                f"{self._source.folder}: tensor {name} is missing; expected shape {_either(part.shapes)} in a linear "
                f"layer of {self._layer.outputs} outputs and {self._layer.inputs} inputs{stacked}"
            )
        info = self._source.info(name)
        if info.shape not in part.shapes:
            raise self.fault(suffix, f"shape {_either(part.shapes)}", str(info.shape))
        if info.dtype not in part.dtypes:
            raise self.fault(suffix, f"dtype {', '.join(part.dtypes)}", info.dtype)
        return True

    def __contains__(self, suffix: object) -> bool:
        return suffix in self._of

    def read(self, suffix: str) -> np.ndarray:
        """A view of the tensor in the file."""
        return self._source.read(self._of[suffix])

    def finite(self, suffix: str) -> np.ndarray:
        """A tensor of floating point as float32, which holds all values of its type."""
        values = self.read(suffix).astype(np.float32)
        if not np.isfinite(values).all():
            raise self.fault(suffix, "finite values", "NaN or infinity")
        return values

    def fault(self, suffix: str, expected: str, found: str) -> CheckpointError:
        """The error for a tensor that is not as expected."""
        name = self._of[suffix]
        file = self._source.folder / self._source.info(name).file
        return CheckpointError(f"{file}: tensor {name}: expected {expected}, found {found}")

    def drop(self) -> None:
        """Give the pages back; see `TensorSource.drop`."""
        for name in self.names:
            self._source.drop(name)


def _either(shapes: Sequence[Shape]) -> str:
    return " or ".join(map(str, shapes))


class Format(ABC):
    """A format of quantized checkpoints with the settings of one of them. `checkpoints.quantized.parse` makes it.

    Attributes:
        method: its name, as `quant_method` gives it.
    """

    method: str

    @abstractmethod
    def stored(self, module: Names) -> StoredMatrix | None:
        """How the weight of a linear layer is stored; None: as without quantization."""

    @abstractmethod
    def parts(self, layer: Layer) -> dict[str, Part]:
        """The tensors of a layer by suffix. Raises ConfigError if the format cannot hold a weight of these sizes."""

    @abstractmethod
    def read(self, layer: Layer, tensors: Tensors) -> Parts:
        """The weight of a layer. Raises CheckpointError, naming file and tensor, for values that cannot be."""

    def head_is_stored(self, head: Names) -> bool:
        """Whether the output matrix is quantized, which is not supported."""
        del head
        return False

    def unmatched(self, modules: Sequence[Names]) -> list[str]:
        """Settings that are to match linear layers and match none of these."""
        del modules
        return []


def packed_rows(words: np.ndarray) -> np.ndarray:
    """int32 words (R, C) as their bytes, lowest first: (R, 4 C) uint8. A copy."""
    return np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)


def nibbles(data: np.ndarray) -> np.ndarray:
    """Bytes (R, C) as numbers 0..15, the low half first: (R, 2 C) uint8."""
    numbers = np.empty((data.shape[0], data.shape[1], 2), np.uint8)
    np.bitwise_and(data, 15, out=numbers[..., 0])
    np.right_shift(data, 4, out=numbers[..., 1])
    return numbers.reshape(data.shape[0], -1)


def pack_nibbles(numbers: np.ndarray) -> np.ndarray:
    """The inverse of `nibbles`, which is how `QTensor` stores int4."""
    high = numbers[:, 1::2] << 4
    return np.bitwise_or(numbers[:, 0::2], high, out=high)


def signed(data: np.ndarray) -> np.ndarray:
    """Numbers 0..255 uint8 as the same less 128, int8."""
    return (data ^ np.uint8(128)).view(np.int8)


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return math.ceil(size / block)
