"""The oracle of the grouped product: each row by itself, in numpy and float64."""

from __future__ import annotations

import numpy as np

from pallas_kernels.qtensor import QTensor
from pallas_kernels.quantized_matmul import reference


def grouped_matmul(x: np.ndarray, weight: np.ndarray | QTensor, group_sizes: np.ndarray) -> np.ndarray:
    """What `api.grouped_matmul` must compute, on concrete arrays: (R, *O) float64."""
    rows = reference.activations(x, weight) if isinstance(weight, QTensor) else np.asarray(x).astype(np.float64)
    experts = reference.values(weight) if isinstance(weight, QTensor) else np.asarray(weight).astype(np.float64)
    out = np.zeros((rows.shape[0], *experts.shape[1:-1]))
    first = 0
    for expert, size in enumerate(np.asarray(group_sizes)):
        for row in range(first, first + int(size)):
            out[row] = experts[expert] @ rows[row]
        first += int(size)
    return out
