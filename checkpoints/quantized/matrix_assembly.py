"""One quantized matrix in host memory, gathered from the linear layers of a source."""

from __future__ import annotations

from typing import Any

import numpy as np

from checkpoints.files import CheckpointError
from checkpoints.quantized.mapping import QuantizedEntry, QuantizedMapping, QuantizedMatrix
from checkpoints.quantized.protocol import Format, Parts, nibbles, pack_nibbles
from checkpoints.reader import TensorSource
from checkpoints.tensor_assembly import aligned_empty
from pallas_kernels.qtensor import STORAGE, ZEROS, QTensor, scales_dtype, stored_inputs


def read_matrix(matrix: QuantizedMatrix, format_: Format) -> QTensor:
    """The parameter in its canonical layout, as the checkpoint has it, bit by bit; the parts are numpy arrays.

    Raises:
        CheckpointError: scales that are not finite, or other values that cannot be; layers that are one matrix here and
            have their inputs in different orders. The message names file and tensor.
    """
    stored, outputs = matrix.stored, matrix.outputs
    groups = stored.groups(matrix.inputs)
    values = aligned_empty((*outputs, stored_inputs(stored.kind, matrix.inputs)), STORAGE[stored.kind])
    scales = aligned_empty((*outputs, groups), scales_dtype(stored.kind))
    zeros = aligned_empty((*outputs, groups), ZEROS[stored.kind]) if stored.zeros else None
    order: np.ndarray | None = None
    for entry in matrix.entries:
        parts = format_.read(entry.layer, entry.tensors)
        if parts.group_index is not None:
            sort = np.argsort(parts.group_index, kind="stable").astype(np.int32)
            if order is not None and not np.array_equal(sort, order):
                raise _other_order(matrix, entry)
            order = sort
            parts = _sorted(parts, sort, stored.kind == "int4")
        for target, part in ((values, parts.values), (scales, parts.scales), (zeros, parts.zeros)):
            if target is not None and part is not None:
                _place(entry, part, target)
        entry.tensors.drop()
    fields: Any = {"values": values, "scales": scales, "zeros": zeros, "order": order}
    return QTensor(**fields, kind=stored.kind, activations=stored.activations)


def _place(entry: QuantizedEntry, part: np.ndarray, target: np.ndarray) -> None:
    for placement in entry.placements:
        view = part[placement.begin : placement.end].reshape(*placement.view, -1)
        if placement.axes:
            view = view.transpose(*placement.axes, len(placement.axes))
        target[placement.index] = view


def _sorted(parts: Parts, order: np.ndarray, packed: bool) -> Parts:
    """With the inputs sorted by group."""
    values = pack_nibbles(nibbles(parts.values)[:, order]) if packed else parts.values[:, order]
    return Parts(values, parts.scales, parts.zeros, parts.group_index)


def _other_order(matrix: QuantizedMatrix, entry: QuantizedEntry) -> CheckpointError:
    suffix = next(name for name in entry.tensors.names if name.endswith("g_idx")).removeprefix(f"{entry.source}.")
    first = matrix.entries[0].source
    return entry.tensors.fault(
        suffix, f"the order of inputs of {first}, because the two are one matrix ({matrix.path})", "another"
    )


def check_no_biases(mapping: QuantizedMapping, source: TensorSource) -> None:
    """Quantizers write a bias for every linear layer. Where the model has none it must be zeros.

    Raises CheckpointError, naming file and tensor, for one that is not.
    """
    for name in mapping.no_biases:
        if source.read(name).any():
            file = source.folder / source.info(name).file
            raise CheckpointError(f"{file}: tensor {name}: expected zeros, because the model has no such bias")
        source.drop(name)
