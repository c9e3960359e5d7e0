"""Scales of a matrix's inputs, moved into the parameters before it, so that the float model stays the same.

Multiplying input i of a matrix by s[i] and dividing what it is multiplied with by s[i] changes nothing but what
rounding does to the matrix. What comes before it takes the division where it is linear and serves this matrix alone:

    attention.qkv   the weight of `attention_norm`; families without a norm there (OLMo 2) have no place for it
    attention.out   the value rows of `qkv` and their bias; query heads that share a value head share its scales
    mlp.gate_up     the weight of `mlp_norm`; so does mlp.up, where there is no gate, and a matrix that has replaced
                    attention or MLP; not matrices beside factors, which share a norm
    mlp.down        the `up` rows of `gate_up` and their bias: the activation function sees `gate` only; without a
                    gate there is nothing linear before it

A norm is stored in the model's type, and may store its weight less one (Gemma), so that the divided weight is rounded.
The matrix then takes the scale that the rounded norm stands for, not the one that was asked for: what is folded is
exact. Rows of a quantized matrix are divided before it is rounded. Rows or biases that stay in bfloat16 are divided
by powers of two, which is exact as well.

Legend: K KV heads, G query heads of one, H head_dim, D model, F MLP width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxinfer.config import ModelConfig
from jaxinfer.models.stored_matrix import MATRICES, input_sizes, matrices_of

NORMS = {
    "attention.qkv": "attention_norm.weight",
    "mlp.gate_up": "mlp_norm.weight",
    "mlp.up": "mlp_norm.weight",
    "attention.linear": "attention_norm.weight",
    "mlp.linear": "mlp_norm.weight",
}
PRODUCERS = {"attention.out": "attention.qkv", "mlp.down": "mlp.gate_up"}
LARGEST = 2.0**12  # of a scale, and 1 / LARGEST the smallest: beyond it quantized numbers gain nothing


def refusal(name: str, config: ModelConfig, dtype: np.dtype) -> str | None:
    """Why the inputs of the matrix `name`, layers.3.mlp.down, cannot be scaled; None if they can."""
    end, layer = name.split(".", 2)[2], config.layers[int(name.split(".")[1])]
    if end == "mlp.down" and layer.mlp is not None and not layer.mlp.gated:
        return "no gate: nothing linear before it to take the scale"
    if end in PRODUCERS and PRODUCERS[end] in matrices_of(layer):
        return None
    if end not in NORMS or (end == "mlp.up" and layer.mlp is not None and layer.mlp.gated):
        return "two factors in this layer: what comes before it does not serve it alone"
    if not config.pre_norm:
        return "no norm before it to take the scale"
    if config.norm_offset and not config.norm_scale_float32 and dtype != np.float32:
        return f"its norm adds {config.norm_offset:g} to its weight in {dtype}, which rounds"
    return None


def sharing(name: str, config: ModelConfig) -> tuple[int, int, int]:
    """(blocks, copies, size): inputs of the matrix `name` seen so share their scale over `copies`."""
    sizes = input_sizes(name, config)
    if len(sizes) == 1:
        return (1, 1, *sizes)
    kv_heads, group, head_dim = sizes  # what attention gives: query heads of one KV head mix the same values
    return (kv_heads, group, head_dim)


def powers_of_two(scales: np.ndarray) -> np.ndarray:
    return np.exp2(np.round(np.log2(scales))).astype(np.float32)


def fold(
    layer: Mapping[str, np.ndarray], scales: Mapping[str, np.ndarray], config: ModelConfig, dtype: np.dtype
) -> dict[str, np.ndarray]:
    """A layer's parameters with the scales in them: matrices in float32, all else in `dtype`.

    layer: {path in the layer: canonical array}. scales: {end of a matrix's name: (I,) float32}, already shared and,
    where rows or biases keep bfloat16, powers of two.
    """
    folded = dict(layer)
    for end, scale in scales.items():
        matrix = f"{end}.weight"
        weight = folded[matrix].astype(np.float32)
        inputs = weight.shape[-len(MATRICES[end]) :]
        if end in NORMS:
            folded[NORMS[end]], scale = _fold_norm(folded[NORMS[end]], scale, config.norm_offset, dtype)
        folded[matrix] = weight * scale.reshape(inputs)
        if end in PRODUCERS:
            _fold_rows(folded, PRODUCERS[end], scale, dtype)
    return folded


def _fold_norm(norm: np.ndarray, scale: np.ndarray, offset: float, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The norm's weight over the scale as `dtype` stores it, and the scale that this is. Where it cannot be: 1."""
    whole = norm.astype(np.float32) + np.float32(offset)
    divided = (whole / scale - np.float32(offset)).astype(dtype)
    kept = divided.astype(np.float32) + np.float32(offset)
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = whole / kept
    possible = np.isfinite(exact) & (exact > 0)
    return np.where(possible, divided, norm), np.where(possible, exact, np.float32(1))


def _fold_rows(folded: dict[str, np.ndarray], producer: str, scale: np.ndarray, dtype: np.dtype) -> None:
    """Divides the rows of the matrix before, and their bias, by the scales of what they become."""
    if producer == "attention.qkv":  # rows (K, G + 2, H): the last of the axis are values
        kv_heads, parts, head_dim = folded[f"{producer}.weight"].shape[:3]
        index: tuple[slice | int, ...] = (slice(None), parts - 1)
        rows = scale.reshape(kv_heads, parts - 2, head_dim)[:, 0]
    else:  # rows (2, F): gate, up
        index, rows = (1,), scale
    weight = folded[f"{producer}.weight"].astype(np.float32, copy=True)
    weight[index] /= rows[..., None]
    folded[f"{producer}.weight"] = weight
    name = f"{producer}.bias"
    if name in folded:
        bias = folded[name].astype(np.float32, copy=True)
        bias[index] /= rows
        folded[name] = bias.astype(dtype)
