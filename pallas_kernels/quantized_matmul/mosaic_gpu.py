"""The quantized product for Hopper GPUs and weights in int4: the launch of the kernel in `mosaic_gpu_kernel.py`.

XLA writes the widened weight to memory there, and reads it back: 4.5 bytes for each weight, where a kernel reads half a
byte and its share of the scales. By the public figures of an H200, 4.8 TB/s and 989 TFLOPS in bfloat16, these 4.5 bytes
take 0.94 ps, the packed ones 0.11 ps, and the products 0.002 ps for each token:

- up to 32 tokens memory is the limit. Tiles have 256 outputs, and four warpgroups widen them;
- beyond, sums need the registers of two more warpgroups: tiles have 128 outputs and up to 128 tokens. Every further
  tile of tokens finds the packed weight in the level 2 cache, and widens it again;
- with 512 tokens the products take 1.04 ps at best, so that the kernel is ahead if it multiplies at 53 % of the rate of
  XLA's product. With 1,024 tokens it would have to reach 69 %, which it is not trusted with before it was measured: its
  warpgroups wait for the product of every group. There XLA serves (`api.GPU_KERNEL_TOKENS`).

Blocks of threads stay, one on each multiprocessor, and take one tile after another. Where there are fewer tiles than
processors the inputs are cut into parts, and XLA adds up their sums. Up to 32 tokens parts do not depend on how many
tokens there are.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.mosaic_gpu_int4 import permuted
from pallas_kernels.qtensor import QTensor
from pallas_kernels.quantized_matmul.mosaic_gpu_kernel import launch
from pallas_kernels.quantized_matmul.mosaic_gpu_plan import HopperMatmulPlan, plan_of


@functools.partial(jax.jit, static_argnames=("target", "merge", "interpret", "count_copies"))
def quantized_matmul(
    x: jax.Array,
    weight: QTensor,
    *,
    target: DeviceTarget,
    merge: bool,
    interpret: Any = False,
    count_copies: bool = False,
) -> Any:
    """See `api.quantized_matmul`. Jitted so that a model's equal layers are traced and lowered once.

    Args:
        interpret: an `InterpretGPUParams` of Pallas runs the kernel on the CPU.
        count_copies: for debugging: a second result, () int32, says how many bytes of values, scales and zero points
            left memory.
    """
    del target, merge  # a device's own share has no split axis
    num_tokens, num_inputs = x.shape
    if weight.values.dtype != jnp.uint8:
        raise ValueError(f"weight.values is {weight.values.dtype}; the kernel reads int4 as pairs in uint8")
    values = weight.values.reshape(-1, num_inputs // 2)
    scales, zeros = (
        None if part is None else part.reshape(values.shape[0], -1) for part in (weight.scales, weight.zeros)
    )
    plan = plan_of(
        num_tokens,
        values.shape[0],
        num_inputs,
        weight.group,
        zeros=zeros is not None,
        count_copies=count_copies,
    )
    padding = plan.token_tiles * plan.tile - num_tokens
    assert scales is not None
    out = launch(plan, jnp.pad(permuted(x), ((0, padding), (0, 0))), values, scales, zeros, interpret)
    y = _in_place(plan, jnp.sum(out[0], axis=0))[:, :num_tokens].T.reshape(num_tokens, *weight.outputs)
    return (y, jnp.sum(out[1], dtype=jnp.int32)) if count_copies else y


def _in_place(plan: HopperMatmulPlan, sums: jax.Array) -> jax.Array:
    """Sums without the outputs that the last tile computed twice: (row_tiles * rows, T) as (N, T)."""
    whole = (plan.row_tiles - 1) * plan.rows
    if whole + plan.rows == plan.num_outputs:
        return sums
    return jnp.concatenate([sums[:whole], sums[whole + plan.rows - (plan.num_outputs - whole) :]])
