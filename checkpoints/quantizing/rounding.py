"""The arithmetic of one matrix: rounded as its plan says, clipped if asked, and how much that loses.

A rounded matrix leaves one program before it enters the next: within one, XLA drops a conversion to float8 that meets
one back, and the rounding with it. Legend: *O output axes, I inputs, A groups of them.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints.quantizing.policy import Planned
from jaxinfer.quantization import SCHEMES
from pallas_kernels.qtensor import QTensor, dequantize, quantize

# Shares of a group's largest magnitude that become the largest number of the kind; beyond it weights are cut off.
RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)


def round_matrix(weight: np.ndarray | jax.Array, planned: Planned, clip: np.ndarray | None = None) -> QTensor:
    """A weight (*O, I) of any floating type quantized, as `pallas_kernels.qtensor.quantize` does it.

    clip: (*O, A) uint8, which of `RATIOS` each group is cut off at; None: nothing is.
    """
    assert planned.scheme is not None
    scheme = SCHEMES[planned.scheme]
    return _round(weight, clip, scheme.kind, planned.group, scheme.activations)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _round(weight: jax.Array, clip: jax.Array | None, kind: Any, group: int | None, activations: Any) -> QTensor:
    if clip is not None:
        weight = _clipped(weight, jnp.asarray(RATIOS, jnp.float32)[clip])
    return quantize(weight, kind, group, activations=activations)


def _clipped(weight: jax.Array, ratio: jax.Array) -> jax.Array:
    """weight (*O, I), each group cut off at `ratio` (*O, A) of its largest magnitude."""
    grouped = weight.astype(jnp.float32).reshape(*ratio.shape, -1)
    limit = ratio[..., None] * jnp.max(jnp.abs(grouped), axis=-1, keepdims=True)
    return jnp.clip(grouped, -limit, limit).reshape(weight.shape)


@partial(jax.jit, static_argnums=2)
def best_clip(weight: jax.Array, importance: jax.Array, group: int) -> jax.Array:
    """(O, A) uint8: for each group of int4 the ratio that loses least of weight (O, I).

    importance: (I,) mean square of what each input is multiplied with, so that the loss is that of the outputs as far
    as inputs do not depend on each other.
    """
    groups = (weight.shape[0], weight.shape[1] // group)

    def loss(ratio: jax.Array) -> jax.Array:
        rounded = dequantize(quantize(_clipped(weight, jnp.full(groups, ratio)), "int4", group))
        return jnp.sum((importance * jnp.square(rounded - weight)).reshape(*groups, group), axis=-1)

    def better(index: int, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        found = loss(jnp.asarray(RATIOS, jnp.float32)[index])
        return jnp.minimum(found, best[0]), jnp.where(found < best[0], jnp.uint8(index), best[1])

    start = (jnp.full(groups, jnp.inf), jnp.zeros(groups, jnp.uint8))
    return jax.lax.fori_loop(0, len(RATIOS), better, start)[1]


@jax.jit
def _powers(weight: jax.Array, rounded: QTensor) -> tuple[jax.Array, jax.Array]:
    wide = weight.astype(jnp.float32)
    return jnp.sum(jnp.square(wide)), jnp.sum(jnp.square(wide - dequantize(rounded)))


def weight_error(weight: np.ndarray | jax.Array, rounded: QTensor) -> float:
    """Squares of what rounding changed, over the squares of the weights."""
    signal, noise = map(float, _powers(weight, rounded))
    return noise / signal if signal else 0.0


def decibels(error: float) -> float | None:
    """Signal to noise in dB of a relative squared error; None where nothing was lost."""
    return None if error <= 0 else -10 * math.log10(error)
