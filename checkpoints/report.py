"""conversion_report.json: what became of every tensor of the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoints.files import FORMAT_VERSION, REPORT_FILE, write_json
from checkpoints.layouts import Index
from checkpoints.quantizing.report import QuantizationReport
from checkpoints.reader import TensorSource
from checkpoints.rules import TensorMapping


@dataclass(frozen=True)
class TensorReport:
    """One source tensor. `region`: the part of the target that it fills, in numpy's notation, "" for all of it.

    checksum: SHA-256 (hex) of the tensor's values in `dtype`, in the source's order and C layout, little-endian.
    """

    source: str
    file: str
    source_shape: tuple[int, ...]
    source_dtype: str
    target: str
    shape: tuple[int, ...]
    region: str
    transform: str
    dtype: str
    checksum: str


@dataclass(frozen=True)
class ConversionReport:
    """A whole conversion. `ignored`: {tensor: reason}. `verification`: None unless it was asked for.

    dtype: of what is not quantized. `quantization`: what `checkpoints.quantizing.report` says, None for a dense one.
    """

    architecture: str
    dtype: str
    parameter_count: int
    parameter_bytes: int
    tensors: tuple[TensorReport, ...]
    ignored: dict[str, str]
    copied_files: tuple[str, ...]
    verification: dict[str, Any] | None
    quantization: QuantizationReport | None = None

    def write(self, folder: Path) -> None:
        quantization = None if self.quantization is None else self.quantization.to_dict()
        data = {"format_version": FORMAT_VERSION, **asdict(self), "quantization": quantization}
        write_json(folder / REPORT_FILE, data)


def tensor_reports(
    mapping: TensorMapping, source: TensorSource, dtype: str, checksums: Mapping[str, str]
) -> tuple[TensorReport, ...]:
    """One report per used tensor, in the order of the source's bytes."""
    entries = {entry.source: entry for group in mapping.targets.values() for entry in group}
    return tuple(
        TensorReport(
            source=name,
            file=entries[name].info.file,
            source_shape=entries[name].info.shape,
            source_dtype=entries[name].info.dtype,
            target=entries[name].target,
            shape=mapping.shapes[entries[name].target],
            region=", ".join(_notation(placement.index) for placement in entries[name].placements if placement.index),
            transform=entries[name].transform,
            dtype=dtype,
            checksum=checksums[name],
        )
        for name in source.names
        if name in entries
    )


def _notation(index: Index) -> str:
    """(slice(None), slice(0, 3)) -> "[:, 0:3]"."""
    parts = []
    for part in index:
        if isinstance(part, slice):
            parts.append(":" if part.start is None and part.stop is None else f"{part.start}:{part.stop}")
        else:
            parts.append(str(part))
    return f"[{', '.join(parts)}]"
