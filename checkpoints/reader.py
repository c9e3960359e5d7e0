"""Streaming reader of safetensors files: one file, or shards named by `model.safetensors.index.json`.

A file is mapped into memory, its header is checked completely before any tensor is handed out, and pages are given
back to the system with `TensorSource.drop`, so that reading a checkpoint never holds more than the tensor in hand.

Format (https://huggingface.co/docs/safetensors): 8 bytes little-endian length L, L bytes of JSON, then the data.
The JSON maps a name to `{"dtype", "shape", "data_offsets": [begin, end]}`, offsets counted from the end of the header;
`__metadata__` maps strings to strings. The tensors tile the data section without holes or overlaps.
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from checkpoints.files import CheckpointError, plain_file_name, read_json_object
from checkpoints.side_files import (
    INDEX_FILE,
    MAX_HEADER_BYTES,
    SINGLE_FILE,
    check_weights,
    unnamed_model_files,
)

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


class TensorInfo(NamedTuple):
    """What the header says about a tensor. `dtype` is the safetensors name (a key of `DTYPES`), `file` a plain name."""

    shape: tuple[int, ...]
    dtype: str
    file: str


@dataclass(frozen=True)
class _Extent:
    info: TensorInfo
    begin: int  # bytes from the start of the file
    end: int


class _MappedFile:
    """One safetensors file: its checked header and, while open, its read-only mapping."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                header_bytes = _header_length(path, file.read(8), size)
                self.extents = _parse_header(path, file.read(header_bytes), 8 + header_bytes, size)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error

    def view(self, name: str) -> np.ndarray:
        extent = self.extents[name]
        dtype = DTYPES[extent.info.dtype]
        count = math.prod(extent.info.shape)
        return np.frombuffer(self._map, dtype, count, extent.begin).reshape(extent.info.shape)

    def drop(self, name: str) -> None:
        extent = self.extents[name]
        begin = extent.begin - extent.begin % mmap.PAGESIZE  # dropping a neighbour's page too only costs a re-read
        if extent.end > begin:
            self._map.madvise(mmap.MADV_DONTNEED, begin, extent.end - begin)


class TensorSource:
    """The tensors of one checkpoint folder by name. Make it with `open_checkpoint`; usable as a context manager."""

    def __init__(self, folder: Path, files: list[_MappedFile]) -> None:
        self.folder = folder
        self._home: dict[str, _MappedFile] = {}
        for file in files:
            for name in file.extents:
                if name in self._home:
                    raise CheckpointError(
                        f"{file.path}: tensor {name} is also in {self._home[name].path.name}; expected it once"
                    )
                self._home[name] = file

    @property
    def names(self) -> tuple[str, ...]:
        """All tensor names, file by file, in the order of their bytes."""
        return tuple(self._home)

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the safetensors files, sorted."""
        return tuple(sorted({file.path.name for file in self._home.values()}))

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def info(self, name: str) -> TensorInfo:
        return self._file(name).extents[name].info

    def read(self, name: str) -> np.ndarray:
        """A read-only view of the tensor's bytes in the file (no copy). Use `drop(name)` when done with it."""
        return self._file(name).view(name)

    def drop(self, name: str) -> None:
        """Give the tensor's pages back to the system; views stay valid and read the file again when touched."""
        self._file(name).drop(name)

    def close(self) -> None:
        """Forget the files. Their mappings end when the last view of them is gone."""
        self._home = {}

    def _file(self, name: str) -> _MappedFile:
        if name not in self._home:
            raise CheckpointError(f"{self.folder}: tensor {name} is missing")
        return self._home[name]

    def __enter__(self) -> TensorSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(folder: str | Path) -> TensorSource:
    """Map the safetensors files of a Hugging Face folder and check every header.

    Raises:
        CheckpointError: no safetensors (a hint says how to get them from pytorch_model.bin), a truncated file, a
            corrupt header, overlapping tensors or holes, an index that disagrees with the files, a duplicate tensor.
            The message names file, tensor, what was expected and what was found.
    """
    folder = Path(folder)
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if index.exists():
        weight_map = _weight_map(index)
        if single.exists() and SINGLE_FILE not in weight_map.values():
            return _open_merged(folder, single, weight_map)
        return _open_shards(folder, index, weight_map)
    files = [SINGLE_FILE] if single.exists() else unnamed_model_files(folder)
    if not files:
        found = sorted(path.name for path in folder.glob("*.safetensors"))
        if not found:
            check_weights(folder)
        raise CheckpointError(
            f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}; found {found or 'no safetensors file'}"
        )
    return TensorSource(folder, [_MappedFile(folder / name) for name in files])


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is {weight_map!r:.80}; expected an object of tensor -> file")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not plain_file_name(file):
            raise CheckpointError(f"{index}: tensor {name} is in {file!r}; expected the name of a file in this folder")
    return weight_map


def _open_merged(folder: Path, single: Path, weight_map: dict[str, str]) -> TensorSource:
    """One file beside the index of the shards that it was merged from: good, as in transformers, if those are gone."""
    if there := sorted(file for file in set(weight_map.values()) if (folder / file).exists()):
        raise CheckpointError(
            f"{folder}: has both {SINGLE_FILE} and {INDEX_FILE} with its shards ({there[0]}, ...); expected one, as "
            "they may hold different weights"
        )
    source = TensorSource(folder, [_MappedFile(single)])
    if differing := sorted(set(source.names) ^ weight_map.keys()):
        raise CheckpointError(
            f"{folder}: {SINGLE_FILE} and {INDEX_FILE} do not name the same tensors ({differing[0]}, ...)"
        )
    return source


def _open_shards(folder: Path, index: Path, weight_map: dict[str, str]) -> TensorSource:
    for name, file in weight_map.items():
        if not (folder / file).exists():
            raise CheckpointError(f"{index}: tensor {name} is in {file}; there is no such file in {folder}")
    source = TensorSource(folder, [_MappedFile(folder / file) for file in sorted(set(weight_map.values()))])
    for name, file in weight_map.items():
        if name not in source:
            raise CheckpointError(f"{folder / file}: tensor {name} is missing; {INDEX_FILE} says it is in this file")
        if source.info(name).file != file:
            found = source.info(name).file
            raise CheckpointError(f"{index}: tensor {name} is said to be in {file}; found it in {found}")
    for name in source.names:
        if name not in weight_map:
            raise CheckpointError(f"{folder / source.info(name).file}: tensor {name} is not named by {INDEX_FILE}")
    return source


def _header_length(path: Path, prefix: bytes, size: int) -> int:
    if len(prefix) < 8:
        raise CheckpointError(f"{path}: truncated: expected at least 8 bytes, found {size}")
    length = int.from_bytes(prefix, "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: header length is {length}; expected 2 to {MAX_HEADER_BYTES} bytes")
    if 8 + length > size:
        raise CheckpointError(f"{path}: truncated: the header ends at byte {8 + length}, the file at byte {size}")
    return length


def _parse_header(path: Path, text: bytes, data_start: int, size: int) -> dict[str, _Extent]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys(path))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is {type(header).__name__}; expected a JSON object")
    header.pop("__metadata__", None)
    extents = {name: _extent(path, name, entry, data_start) for name, entry in header.items()}
    ordered = sorted(extents.items(), key=lambda item: (item[1].begin, item[1].end))
    position = data_start
    for name, extent in ordered:
        if extent.begin != position:
            kind = "overlaps the tensor before it" if extent.begin < position else "leaves a hole before it"
            raise CheckpointError(
                f"{path}: tensor {name} {kind}: expected it to begin at byte {position - data_start} of the data, "
                f"found {extent.begin - data_start}"
            )
        position = extent.end
    if position != size:
        kind = "truncated" if position > size else "has bytes that belong to no tensor"
        raise CheckpointError(f"{path}: {kind}: the last tensor ends at byte {position}, the file at byte {size}")
    return dict(ordered)


def _unique_keys(path: Path) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key, value in pairs:
            if key in built:
                raise CheckpointError(f"{path}: the header names {key} twice; expected it once")
            built[key] = value
        return built

    return build


def _extent(path: Path, name: str, entry: Any, data_start: int) -> _Extent:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: tensor {name}: expected dtype, shape and data_offsets; found {entry!r:.120}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name}: dtype is {dtype!r}; known are {', '.join(DTYPES)}")
    if not _natural_numbers(shape):
        raise CheckpointError(f"{path}: tensor {name}: shape is {shape!r:.80}; expected a list of sizes")
    if not _natural_numbers(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: tensor {name}: data_offsets is {offsets!r:.80}; expected [begin, end]")
    begin, end = offsets
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise CheckpointError(
            f"{path}: tensor {name}: expected {expected} bytes for {dtype} {tuple(shape)}, found {end - begin}"
        )
    return _Extent(TensorInfo(tuple(shape), dtype, path.name), data_start + begin, data_start + end)


def _natural_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
