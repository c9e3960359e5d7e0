"""The oracle of the quantized product: numpy in float64, straight from the formula of `qtensor.py`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from pallas_kernels.qtensor import INT4_MIDDLE, LARGEST, STORAGE, QTensor

E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # mxfp4's numbers; those from 8 on are their negatives


def quantized_matmul(x: np.ndarray, weight: QTensor) -> np.ndarray:
    """What `api.quantized_matmul` must compute, on concrete arrays: (T, *O) float64."""
    factor = activations(x, weight)
    flat = values(weight).reshape(-1, weight.inputs)
    return (factor @ flat.T).reshape(factor.shape[0], *weight.outputs)


def activations(x: np.ndarray, weight: QTensor) -> np.ndarray:
    """x (T, I) as the weight asks for it, rounded or not: float64."""
    if weight.activations is None:
        return np.asarray(x).astype(np.float64)
    return _rounded(np.asarray(jnp.asarray(x, jnp.float32)), weight.activations)


def values(weight: QTensor) -> np.ndarray:
    """The weight (*O, I) float64, inputs in the order of the activations. One number at a time, as the format says."""
    stored, scales = np.asarray(weight.values), np.asarray(weight.scales).astype(np.float64)
    if weight.kind == "mxfp4":
        scales = np.where(scales == 255, np.nan, np.exp2(scales - 127))
    zeros = None if weight.zeros is None else np.asarray(weight.zeros).astype(np.float64)
    out = np.zeros(weight.shape)
    words = weight.packed_outputs is not None
    if words:
        scales = np.moveaxis(scales, -2, -1).reshape(*weight.outputs, -1)
        zeros = None if zeros is None else np.moveaxis(zeros, -2, -1).reshape(*weight.outputs, -1)
    for i in range(weight.inputs):
        group = i // weight.group
        if words:
            word = stored[..., i // 64 * 8 + i % 16 // 2, :].reshape(weight.outputs)
            number, middle = (word >> (i % 2 * 16 + i % 64 // 16 * 4) & 15).astype(np.float64), float(INT4_MIDDLE)
        elif weight.kind == "mxfp4":
            code = stored[..., i // 2] >> (4 * (i % 2)) & 15
            number, middle = np.where(code < 8, 1.0, -1.0) * E2M1[code & 7], 0.0
        elif weight.kind == "int4":
            byte = stored[..., i // 2].astype(np.int64)
            number = (byte >> 4 if i % 2 else byte & 15).astype(np.float64)
            middle = float(INT4_MIDDLE)
        else:
            number, middle = stored[..., i].astype(np.float64), 0.0
        place = i if weight.order is None else int(np.asarray(weight.order)[i])
        out[..., place] = (number - (middle if zeros is None else zeros[..., group])) * scales[..., group]
    return out


def _rounded(x: np.ndarray, kind: str) -> np.ndarray:
    """Activations (T, I) float32 after rounding to `kind` with a scale for each token, as float64 values."""
    scales = np.abs(x).max(axis=-1, keepdims=True) * np.float32(1 / LARGEST[kind])
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(scales >= np.finfo(np.float32).tiny, x * (np.float32(1) / scales), np.float32(0))
    scaled = np.clip(scaled, -LARGEST[kind], LARGEST[kind])
    numbers = np.round(scaled) if kind == "int8" else scaled.astype(STORAGE["fp8"])
    return numbers.astype(np.float64) * scales.astype(np.float64)
