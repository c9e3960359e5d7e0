"""Parameters in host memory: gathered from the tensors of a source, and laid out for a tensor-parallel degree.

One parameter at a time, in blocks whose source pages are given back: the host holds the parameter in its target type
and one block beside it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from checkpoints.folder import CheckpointError
from checkpoints.reader import TensorSource
from checkpoints.rules import Entry, Placement, TensorMapping
from jaxinfer.models.shape import LayerShape, ModelShape
from jaxinfer.models.stored import layer_of

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

    If `checksums` is given, it gets {source tensor: SHA-256 (hex) of its values in `dtype`, in the source's order}.
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
    view = source.read(name)[placement.begin : placement.end].reshape(placement.view)
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


def _repeat_qkv(array: np.ndarray, shape: LayerShape) -> np.ndarray:
    """(K, G + 2, ...) -> (K', G' + 2, ...): query heads are dealt out, key and value are copied."""
    copies = shape.kv_heads // array.shape[0]
    rest = array.shape[2:]
    result = aligned_empty((shape.kv_heads, shape.group + 2, *rest), array.dtype)
    group = array.shape[1] - 2
    split = result.reshape(array.shape[0], copies, shape.group + 2, *rest)
    split[:, :, : shape.group] = array[:, :group].reshape(array.shape[0], copies, shape.group, *rest)
    split[:, :, shape.group :] = array[:, None, group:]
    return result


def _repeat_heads(array: np.ndarray, shape: LayerShape) -> np.ndarray:
    return np.repeat(array, shape.kv_heads // array.shape[0], axis=0)


def _deal_query_norm(array: np.ndarray, shape: LayerShape) -> np.ndarray:
    return array.reshape(shape.kv_heads, shape.group, array.shape[-1])


def _deal_out(array: np.ndarray, shape: LayerShape) -> np.ndarray:
    return array.reshape(array.shape[0], shape.kv_heads, shape.group, array.shape[-1])


# End of the parameter's path -> canonical layout to that of `shape`, where KV heads are repeated.
_HEAD_LAYOUTS: Mapping[str, Callable[[np.ndarray, LayerShape], np.ndarray]] = {
    "attention.qkv.weight": _repeat_qkv,
    "attention.qkv.bias": _repeat_qkv,
    "attention.q_norm.weight": _deal_query_norm,
    "attention.k_norm.weight": _repeat_heads,
    "attention.out.weight": _deal_out,
}


def expand(path: str, array: np.ndarray, target: tuple[int, ...], shape: ModelShape) -> np.ndarray:
    """A canonical parameter in the layout of `shape`: KV heads repeated, vocabulary and MLP width padded with zeros.

    `target` is the parameter's shape there. Returns `array` itself where nothing changes.
    """
    if array.shape == target:
        return array
    for end, layout in _HEAD_LAYOUTS.items():
        if path.endswith(end):
            return layout(array, shape.layers[layer_of(path) or 0])
    padded = aligned_empty(target, array.dtype)
    kept = tuple(slice(0, size) for size in array.shape)
    padded[kept] = array
    for axis, (old, new) in enumerate(zip(array.shape, target, strict=True)):
        if new > old:
            padded[(slice(None),) * axis + (slice(old, None),)] = 0
    return padded
