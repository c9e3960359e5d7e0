"""Scales of a matrix's inputs, and a cut-off of its weights, that lose least of its outputs on calibration samples.

Quantized weights with activations as they are: channels with large activations get finer steps, as in "AWQ"
(Lin et al. 2023, arXiv:2306.00978): s = mean|x| ** alpha. Where activations are rounded too, their outliers move into
the weights, as in "SmoothQuant" (Xiao et al. 2022, arXiv:2211.10438): s = max|x| ** alpha / max|w| ** (1 - alpha). Both
search alpha over a grid that has no scaling among it; what is compared is the matrix's own outputs on sampled tokens,
with weights and activations rounded as they will be. int4 is then cut off group by group where that loses less still.

Legend: R sampled tokens, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints.quantizing.folding import LARGEST, powers_of_two
from checkpoints.quantizing.layerwise import rounded_activations
from checkpoints.quantizing.policy import Planned
from checkpoints.quantizing.rounding import best_clip, round_matrix
from checkpoints.quantizing.statistics import InputStatistics
from jaxinfer.quantization import SCHEMES
from pallas_kernels.qtensor import QTensor, dequantize

ALPHAS = tuple(step / 10 for step in range(1, 11))
FLOOR = 1e-4  # of the largest statistic: a channel that is hardly ever used is scaled like one of this


@dataclass(frozen=True)
class Found:
    """Errors are squares of what the outputs differ by, over the squares of the outputs.

    scales: (I,) float32, None: none help or none can be. clip: as `round_matrix` takes it. plain_error: rounded without
    either.
    """

    alpha: float | None
    scales: np.ndarray | None
    clip: np.ndarray | None
    plain_error: float
    error: float


class OutputError:
    """What rounding one matrix (O, I) changes in its outputs, for the sampled inputs."""

    def __init__(self, rows: np.ndarray, weight: np.ndarray) -> None:
        self._rows, self._weight = jnp.asarray(rows), jnp.asarray(weight)
        self._exact = _outputs(self._rows, self._weight)

    def __call__(self, planned: Planned, scales: np.ndarray | None, clip: np.ndarray | None = None) -> float:
        """Relative squared error; 0 for a matrix that keeps its type."""
        if planned.scheme is None:
            return 0.0
        fed, weight = self._scaled(scales)
        activations = SCHEMES[planned.scheme].activations
        if activations is not None:
            fed = rounded_activations(fed, activations)
        return float(_relative(self._exact, fed, round_matrix(weight, planned, clip)))

    def clip(self, scales: np.ndarray | None, group: int) -> np.ndarray:
        """The cut-off of every group of int4, as `round_matrix` takes it."""
        fed, weight = self._scaled(scales)
        return np.asarray(best_clip(weight, jnp.mean(jnp.square(fed), axis=0), group))

    def _scaled(self, scales: np.ndarray | None) -> tuple[jax.Array, jax.Array]:
        if scales is None:
            return self._rows, self._weight
        return self._rows / scales, self._weight * scales


@jax.jit
def _outputs(rows: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.matmul(rows, weight.T, precision=jax.lax.Precision.HIGHEST)


@partial(jax.jit)
def _relative(exact: jax.Array, fed: jax.Array, rounded: QTensor) -> jax.Array:
    signal = jnp.sum(jnp.square(exact))
    noise = jnp.sum(jnp.square(_outputs(fed, dequantize(rounded)) - exact))
    return jnp.where(signal > 0, noise / jnp.where(signal > 0, signal, 1.0), 0.0)


def search(
    statistics: InputStatistics,
    weight: np.ndarray,
    error: OutputError,
    planned: Planned,
    shared: tuple[int, int, int] | None,
    powers: bool,
) -> Found:
    """What to do with one matrix, weight (O, I) float32.

    shared: (blocks, copies, size) of its inputs, which share scales over copies; None: they cannot be scaled. powers:
    scales are powers of two.
    """
    assert planned.scheme is not None
    plain = best = error(planned, None)
    alpha, scales = None, None
    if shared is not None:
        smoothing = SCHEMES[planned.scheme].activations is not None
        for candidate in ALPHAS:
            tried = _scales(statistics, weight, candidate, shared, smoothing)
            tried = powers_of_two(tried) if powers else tried
            if (found := error(planned, tried)) < best:
                alpha, scales, best = candidate, tried, found
    clip = None
    if SCHEMES[planned.scheme].kind == "int4":
        assert planned.group is not None
        cut = error.clip(scales, planned.group)
        if (found := error(planned, scales, cut)) < best:
            clip, best = cut, found
    return Found(alpha, scales, clip, plain, best)


def _scales(
    statistics: InputStatistics, weight: np.ndarray, alpha: float, shared: tuple[int, int, int], smoothing: bool
) -> np.ndarray:
    """(I,) float32, their middle at 1."""
    if smoothing:
        inputs = _shared(statistics.largest, shared, np.max)
        weights = _shared(np.abs(weight).max(axis=0), shared, np.max)
        scales = inputs**alpha / weights ** (1 - alpha)
    else:
        scales = _shared(statistics.mean, shared, np.mean) ** alpha
    scales = scales / np.sqrt(scales.max() * scales.min())
    blocks, copies, size = shared
    scales = np.clip(scales, 1 / LARGEST, LARGEST).astype(np.float32).reshape(blocks, 1, size)
    return np.broadcast_to(scales, (blocks, copies, size)).reshape(-1)


def _shared(values: np.ndarray, shared: tuple[int, int, int], join: Callable[..., np.ndarray]) -> np.ndarray:
    """One value for each input that has a scale of its own, none of them 0."""
    joined = join(values.reshape(shared), axis=1)
    top = joined.max()
    return np.asarray(np.maximum(joined, FLOOR * top if top > 0 else 1.0))
