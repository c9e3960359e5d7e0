"""Parameters in host memory: gathered from the tensors of a source, and laid out for a tensor-parallel degree.

One parameter at a time, in blocks whose source pages are given back: the host holds the parameter in its target type
and one block beside it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from checkpoints.files import CheckpointError
from checkpoints.layouts import Placement
from checkpoints.reader import TensorSource
from checkpoints.rules import Entry, TensorMapping
from jaxinfer.sharding import LogicalAxes

BLOCK_BYTES = 16 * 1024**2
ALIGNMENT = 64  # bytes; JAX on CPU takes host memory aligned so without copying it

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that begins at a multiple of `ALIGNMENT` bytes."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def assemble(
    mapping: TensorMapping,
    source: TensorSource,
    path: str,
    dtype: np.dtype,
    checksums: dict[str, str] | None = None,
) -> np.ndarray:
    """One parameter in its canonical layout, gathered from its source tensors and rounded (to even) to `dtype`.

    If `checksums` is given, it gets {source tensor: SHA-256 (hex) of its values in `dtype`, in the order of its
    places}.
    """
    target = aligned_empty(mapping.shapes[path], dtype)
    for entry in mapping.targets[path]:
        digest = None if checksums is None else hashlib.sha256()
        for placement in entry.placements:
            _place(source, entry.source, placement, target, digest)
        if checksums is not None and digest is not None:
            checksums[entry.source] = digest.hexdigest()
    return target


def _place(
    source: TensorSource, name: str, placement: Placement, target: np.ndarray, digest: hashlib._Hash | None
) -> None:
    view = np.atleast_1d(source.read(name))[placement.begin : placement.end].reshape(placement.view)
    if placement.axes:
        view = view.transpose(placement.axes)
    region = target[placement.index]
    for begin, end in _blocks(view):
        region[begin:end] = view[begin:end]
        source.drop(name)
        if digest is not None:
            digest.update(_bytes(region[begin:end]))


def checksum(entry: Entry, parameter: np.ndarray) -> str:
    """What `assemble` notes for the entry, computed from the finished parameter."""
    digest = hashlib.sha256()
    for placement in entry.placements:
        region = parameter[placement.index]
        for begin, end in _blocks(region):
            digest.update(_bytes(region[begin:end]))
    return digest.hexdigest()


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def check_tied_head(mapping: TensorMapping, source: TensorSource) -> None:
    """An output matrix that comes with tied embeddings must equal them.

    With other values transformers unties the two, so dropping it would change the model.
    """
    if mapping.tied_head is None:
        return
    embedding = mapping.targets["embed.weight"][0]
    one, other = source.read(embedding.source), source.read(mapping.tied_head)
    for begin, end in _blocks(one):
        same = np.array_equal(one[begin:end].astype(np.float32), other[begin:end].astype(np.float32))
        source.drop(embedding.source)
        source.drop(mapping.tied_head)
        if not same:
            file = source.folder / source.info(mapping.tied_head).file
            raise CheckpointError(
                f"{file}: tensor {mapping.tied_head}: expected the values of {embedding.source}, because the config "
                "says tie_word_embeddings; found others: set tie_word_embeddings to false, or remove the tensor"
            )


def _blocks(array: np.ndarray) -> list[tuple[int, int]]:
    """Ranges of axis 0 of at most `BLOCK_BYTES`, or of one row if that is larger."""
    rows = array.shape[0]
    step = max(1, BLOCK_BYTES // max(1, array.nbytes // max(1, rows)))
    return [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def expand(array: np.ndarray, target: tuple[int, ...], axes: LogicalAxes) -> np.ndarray:
    """A canonical parameter in the layout of several devices: KV heads repeated, vocabulary and MLP width padded with
    zeros.

    `target` is the parameter's shape there, `axes` are its logical axes. Returns `array` itself where nothing changes.
    """
    if array.shape == target:
        return array
    if "kv_heads" in axes:
        return _repeat_heads(array, target, axes)
    padded = aligned_empty(target, array.dtype)
    kept = tuple(slice(0, size) for size in array.shape)
    padded[kept] = array
    for axis, (old, new) in enumerate(zip(array.shape, target, strict=True)):
        if new > old:
            padded[(slice(None),) * axis + (slice(old, None),)] = 0
    return padded


def _repeat_heads(array: np.ndarray, target: tuple[int, ...], axes: LogicalAxes) -> np.ndarray:
    """(..., K, G + n, ...) -> (..., K', G' + n, ...): query heads are distributed, the n others (k and v) are copied.

    Without an axis of query heads: (..., K, ...) -> (..., K', ...).
    """
    axis = axes.index("kv_heads")
    copies = target[axis] // array.shape[axis]
    result = aligned_empty(target, array.dtype)
    split = result.reshape(*target[:axis], array.shape[axis], copies, *target[axis + 1 :])
    before = (slice(None),) * axis
    if "q_group" not in axes:
        split[:] = np.expand_dims(array, axis + 1)
        return result
    assert axes[axis + 1] == "q_group"
    group = (array.shape[axis + 1] - target[axis + 1]) // (copies - 1)  # G', since G = copies * G'
    queries = array[(*before, slice(None), slice(0, copies * group))]
    rest = array[(*before, slice(None), slice(copies * group, None))]
    dealt = queries.reshape(*array.shape[: axis + 1], copies, group, *array.shape[axis + 2 :])
    split[(*before, slice(None), slice(None), slice(0, group))] = dealt
    split[(*before, slice(None), slice(None), slice(group, None))] = np.expand_dims(rest, axis + 1)
    return result
