"""A step's products, gates and norms through the C++ kernels for CPUs, where they serve them; through XLA elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxinfer.models.layer_choice import LayerChoice, Matrix, Weight
from jaxinfer.models.layers.linear import Multiply, product
from jaxinfer.models.layers.mlp import Gate, gated
from jaxinfer.models.layers.moe import MultiplyExperts, expert_product
from jaxinfer.models.layers.norm import Normalize, rms_norm
from jaxinfer.sharding import LogicalAxes
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.native_cpu import norm
from pallas_kernels.native_cpu.gating import KINDS, WIDTH_MULTIPLE, gating
from pallas_kernels.native_cpu.grouped_matmul import (
    grouped_dense_matmul,
    grouped_mxfp4_matmul,
    grouped_quantized_matmul,
)
from pallas_kernels.native_cpu.matmul import MOST_INT8_INPUTS, dense_matmul, mxfp4_matmul, quantized_matmul
from pallas_kernels.native_cpu.norm import COLUMNS_MULTIPLE
from pallas_kernels.qtensor import QTensor


def native_multiply(instructions: str, count: jax.Array | None = None) -> Multiply:
    """A `Multiply` for one device.

    instructions: of the kernels that have been loaded. count: () int32, how many rows of x are real: the others are not
    computed, and zero where a kernel serves; None: all.
    """

    def multiply(
        x: jax.Array, weight: Weight, *, inputs: int = 1, merge: bool = True, axes: LogicalAxes | None = None
    ) -> jax.Array:
        options = weight.options if isinstance(weight, LayerChoice) else (weight,)
        if not _served(x, options):
            return product(x, weight, inputs=inputs, merge=merge, axes=axes)
        layer = weight.index if isinstance(weight, LayerChoice) else jnp.int32(0)
        rows = jnp.int32(x.shape[0]) if count is None else count
        flat = x.reshape(x.shape[0], -1)
        first = options[0]
        if isinstance(first, QTensor):
            outputs = first.outputs
            run = mxfp4_matmul if first.kind == "mxfp4" else quantized_matmul
            y = run(flat, *_parts(options), layer, rows, instructions=instructions)
        else:
            outputs = first.shape[: first.ndim - inputs]
            matrices = [w.reshape(-1, flat.shape[1]) for w in options if not isinstance(w, QTensor)]
            y = dense_matmul(flat, matrices, layer, rows, instructions=instructions)
        return y.reshape(x.shape[0], *outputs)

    return multiply


def native_gate(instructions: str, count: jax.Array) -> Gate:
    """A `Gate` for one device; arguments as for `native_multiply`."""

    def gate(
        gate_up: jax.Array, activation: str, limit: float | None = None, rows: jax.Array | None = None
    ) -> jax.Array:
        if activation not in KINDS or gate_up.shape[2] % WIDTH_MULTIPLE:
            return gated(gate_up, activation, limit)
        return gating(gate_up, count if rows is None else rows, activation, instructions=instructions)

    return gate


def native_multiply_experts(instructions: str, target: DeviceTarget) -> MultiplyExperts:
    """A `MultiplyExperts` for one device. target: for what the kernels do not serve."""
    others = expert_product(target)

    def multiply(x: jax.Array, weight: Weight, group_sizes: jax.Array) -> jax.Array:
        options = weight.options if isinstance(weight, LayerChoice) else (weight,)
        if not _served(x, options):
            return others(x, weight, group_sizes)
        layer = weight.index if isinstance(weight, LayerChoice) else jnp.int32(0)
        first = options[0]
        experts, *outputs, inputs = first.shape
        if isinstance(first, QTensor):
            run = grouped_mxfp4_matmul if first.kind == "mxfp4" else grouped_quantized_matmul
            y = run(x, *_parts(options, experts), layer, group_sizes, instructions=instructions)
        else:
            matrices = [w.reshape(experts, -1, inputs) for w in options if not isinstance(w, QTensor)]
            y = grouped_dense_matmul(x, matrices, layer, group_sizes, instructions=instructions)
        return y.reshape(x.shape[0], *outputs)

    return multiply


def native_normalize(instructions: str, count: jax.Array) -> Normalize:
    """A `Normalize` for one device; arguments as for `native_multiply`. A norm over several axes is XLA's."""

    def normalize(x: jax.Array, weight: jax.Array, *, eps: float, offset: float, scale_float32: bool) -> jax.Array:
        if weight.ndim != 1 or weight.dtype != x.dtype or weight.size % COLUMNS_MULTIPLE:
            return rms_norm(x, weight, eps=eps, offset=offset, scale_float32=scale_float32)
        rows = x.reshape(-1, weight.size)  # heads of a token stand one behind the other
        real = count * (rows.shape[0] // x.shape[0])
        y = norm.normalize(
            rows, weight, real, eps=eps, offset=offset, scale_float32=scale_float32, instructions=instructions
        )
        return y.reshape(x.shape)

    return normalize


def _parts(options: Sequence[Matrix], *experts: int) -> tuple[list[jax.Array], list[jax.Array]]:
    """Values (*E, O, inputs as they are stored) and scales of all: (*E, O), or (*E, O, A) of mxfp4."""
    quantized = [weight for weight in options if isinstance(weight, QTensor)]
    values = [w.values.reshape(*experts, -1, w.values.shape[-1]) for w in quantized]
    groups = [(w.groups,) if w.kind == "mxfp4" else () for w in quantized]
    return values, [w.scales.reshape(*experts, -1, *of) for w, of in zip(quantized, groups, strict=True)]


def _served(x: jax.Array, options: Sequence[Matrix]) -> bool:
    """Whether the kernels have this product: one type for both factors, or a form in which a CPU keeps few bits."""
    first = options[0]
    if not isinstance(first, QTensor):
        return first.dtype == x.dtype
    if first.kind == "mxfp4":
        return first.values.dtype == jnp.uint8
    plain = first.groups == 1 and first.zeros is None and first.order is None and first.inputs <= MOST_INT8_INPUTS
    return plain and first.kind == first.activations == "int8"
