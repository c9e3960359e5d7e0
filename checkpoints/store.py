"""The arrays of a converted checkpoint: one Orbax checkpoint in `params/`, in the canonical layout of one device.

Every array is one uncompressed chunk in an OCDBT store: a dozen files whatever the number of parameters, and restoring
is a read without decompression. The tree is nested dicts with string keys: "layers" / "0" / "attention" / ...
A quantized matrix is a dict of its parts (`checkpoints.storage`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from checkpoints.files import PARAMS_FOLDER, CheckpointError
from checkpoints.storage import PARTS
from jaxinfer.models.parameters import parameter_dtype
from pallas_kernels.qtensor import QTensor

# Bytes of arrays that Orbax may hold beside the tree while it writes or reads; its own default is the whole tree.
CONCURRENT_BYTES = 128 * 1024**2
RESTORE_GROUP_BYTES = 512 * 1024**2  # restored by one call; progress is reported between calls


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Inverse of `nest`."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def named_parts(path: str, matrix: QTensor) -> dict[str, Any]:
    """{path of an array in the tree: part} of a quantized matrix."""
    parts = {f"{path}.{name}": getattr(matrix, name) for name in PARTS}
    return {name: part for name, part in parts.items() if part is not None}


def save_params(folder: Path, params: Mapping[str, jax.Array]) -> dict[str, int]:
    """Write {dotted path: array on the CPU} to `folder`/params and return {file in there: bytes}.

    Arrays must be jax arrays: Orbax writes those without a copy of the tree, but copies numpy arrays.
    """
    # The limiter refuses an array that is not smaller than the limit.
    largest = max(array.nbytes for array in params.values())
    with _checkpointer(max(CONCURRENT_BYTES, largest + 1)) as checkpointer:
        checkpointer.save(folder.absolute() / PARAMS_FOLDER, args=ocp.args.PyTreeSave(nest(params)))
    root = folder / PARAMS_FOLDER
    # Orbax looks for this file, not into it, and writes the folder of this moment there, which is soon renamed.
    (root / "commit_success.txt").write_text("complete\n")
    return {
        path.relative_to(root).as_posix(): path.stat().st_size for path in sorted(root.rglob("*")) if path.is_file()
    }


class StoredParams:
    """The arrays in `folder`/params, checked against what the model needs before anything is read.

    `expected`: {dotted path: canonical shape}, and `dtype` is the numpy dtype of those. `matrices`: {dotted path:
    shapes of the parts} of what is quantized. Raises CheckpointError naming the parameter, expected and found.
    """

    def __init__(
        self,
        folder: Path,
        expected: Mapping[str, tuple[int, ...]],
        dtype: np.dtype,
        matrices: Mapping[str, QTensor] | None = None,
    ) -> None:
        self.folder = folder.absolute() / PARAMS_FOLDER
        self._shapes = dict(expected)
        self._itemsize = dtype.itemsize
        self._matrices = dict(matrices or {})
        whole = {path: (shape, parameter_dtype(path, dtype)) for path, shape in expected.items()}
        for path, matrix in self._matrices.items():
            parts = named_parts(path, matrix).items()
            whole |= {name: (tuple(part.shape), np.dtype(part.dtype)) for name, part in parts}
        largest = max(math.prod(shape) for shape, _ in whole.values())
        # The limiter refuses an array that is not smaller than the limit; one may be read as float32 at most.
        self._concurrent_bytes = max(CONCURRENT_BYTES, 4 * largest + 1)
        self._check(whole)

    def _check(self, expected: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
        with _checkpointer(self._concurrent_bytes) as checkpointer:
            metadata = _restoring(self.folder, lambda: checkpointer.metadata(self.folder).item_metadata)
        if metadata is None:  # Orbax logs the reason and goes on without
            raise CheckpointError(f"{self.folder}: cannot be restored: expected an Orbax checkpoint, found none")
        found = dict(flatten(metadata.tree))
        for path in sorted(expected.keys() - found.keys()):
            raise CheckpointError(f"{self.folder}: parameter {path} is missing; expected shape {expected[path][0]}")
        for path in sorted(found.keys() - expected.keys()):
            raise CheckpointError(f"{self.folder}: parameter {path} is left over: the model's config has no such one")
        for path, (shape, dtype) in expected.items():
            stored_shape, stored_dtype = tuple(found[path].shape), np.dtype(found[path].dtype)
            if stored_shape != shape or stored_dtype != dtype:
                raise CheckpointError(
                    f"{self.folder}: parameter {path}: expected {dtype} {shape}, found {stored_dtype} {stored_shape}"
                )

    def read(self, path: str, dtype: np.dtype) -> np.ndarray:
        """One parameter in host memory, converted to `dtype`."""
        arguments = ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype)
        return self._restore({path: 0}, {path: arguments})[path]

    def read_matrix(self, path: str) -> QTensor:
        """One quantized matrix, its parts in host memory as they are stored."""
        like = self._matrices[path]
        parts = named_parts(path, like)
        arguments = {name: ocp.RestoreArgs(restore_type=np.ndarray, dtype=part.dtype) for name, part in parts.items()}
        read = self._restore(dict.fromkeys(parts, 0), arguments)
        return dataclasses.replace(like, **{name.rsplit(".", 1)[-1]: part for name, part in read.items()})

    def restore(
        self,
        shardings: Mapping[str, jax.sharding.Sharding],
        dtype: np.dtype,
        progress: Callable[[list[str]], None],
    ) -> dict[str, jax.Array]:
        """The named parameters as jax arrays, each read straight into its sharding and converted to `dtype`.

        `progress` is called with the paths of every group that has arrived.
        """
        restored: dict[str, jax.Array] = {}
        for group in self._groups(list(shardings)):
            abstract = {
                path: jax.ShapeDtypeStruct(self._shapes[path], parameter_dtype(path, dtype), sharding=shardings[path])
                for path in group
            }
            arguments = {
                path: ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)
                for path, leaf in abstract.items()
            }
            restored |= self._restore(abstract, arguments)
            progress(group)
        return restored

    def _restore(self, abstract: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        request = ocp.args.PyTreeRestore(nest(abstract), nest(arguments), partial_restore=True)
        with _checkpointer(self._concurrent_bytes) as checkpointer:
            tree = _restoring(self.folder, lambda: checkpointer.restore(self.folder, args=request))
        return dict(flatten(tree))

    def _groups(self, paths: list[str]) -> Iterator[list[str]]:
        group: list[str] = []
        size = 0
        for path in paths:
            group.append(path)
            size += math.prod(self._shapes[path]) * self._itemsize
            if size >= RESTORE_GROUP_BYTES:
                yield group
                group, size = [], 0
        if group:
            yield group


def _restoring(folder: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, KeyError) as error:  # what Orbax and TensorStore raise for files that are not whole
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{folder}: cannot be restored: {first[0]}") from error


def _checkpointer(concurrent_bytes: int) -> ocp.Checkpointer:
    implementation = ocp.BasePyTreeCheckpointHandler(
        save_concurrent_bytes=concurrent_bytes,
        restore_concurrent_bytes=concurrent_bytes,
        use_ocdbt=True,
        use_compression=False,
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(handler_impl=implementation))
