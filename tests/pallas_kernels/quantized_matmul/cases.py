"""Seeded inputs for the quantized product: plain numpy, so that they run wherever a backend does."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from pallas_kernels import qtensor
from pallas_kernels.qtensor import ZEROS, Activations, Kind, QTensor


@dataclasses.dataclass(frozen=True)
class Product:
    """One product: T tokens, output axes, I inputs, and the weight's format. `group` None: one scale an output."""

    kind: Kind = "int8"
    tokens: int = 5
    outputs: tuple[int, ...] = (48,)
    inputs: int = 64
    group: int | None = None
    activations: Activations | None = None
    zeros: bool = False
    order: bool = False
    dtype: Any = jnp.float32

    def __str__(self) -> str:
        outputs = "x".join(map(str, self.outputs))
        text = f"{self.kind}-T{self.tokens}-O{outputs}-I{self.inputs}-g{self.group}-{np.dtype(self.dtype).name}"
        return (
            text
            + f"-a_{self.activations}" * (self.activations is not None)
            + "-zeros" * self.zeros
            + "-order" * self.order
        )


def build(product: Product, rng: np.random.Generator, *, extreme: bool = False) -> tuple[jnp.ndarray, QTensor]:
    """Activations (T, I) and a weight. Numbers of the kind are drawn themselves, so that all of them occur.

    extreme: scales from denormal to huge, tokens of zeros, tokens of one large value, groups of zeros.
    """
    groups = 1 if product.group is None else product.inputs // product.group
    shape = (*product.outputs, product.inputs)
    if product.kind == "fp8":
        bits = rng.integers(0, 256, shape).astype(np.uint8)
        bits[(bits & 0x7F) == 0x7F] = 0x38  # NaN
        values = jnp.asarray(bits.view(np.dtype(jnp.float8_e4m3fn)))
    elif product.kind == "int8":
        values = jnp.asarray(rng.integers(-127, 128, shape).astype(np.int8))
    else:
        values = qtensor.pack_int4(jnp.asarray(rng.integers(0, 16, shape)))
    scales = rng.uniform(0.5, 2.0, (*product.outputs, groups)).astype(np.float32) / 100
    if product.kind == "mxfp4":
        scales = rng.integers(115, 123, scales.shape).astype(np.uint8)
    x = rng.standard_normal((product.tokens, product.inputs)).astype(np.float32)
    if extreme:
        if product.kind == "mxfp4":
            scales = rng.integers(97, 140, scales.shape).astype(np.uint8)
            scales[rng.random(scales.shape) < 0.1] = 0  # 2^-127 is below the smallest normal number
        else:
            scales *= np.float32(10.0) ** rng.integers(-6, 6, scales.shape)
            scales[rng.random(scales.shape) < 0.1] = np.float32(1e-41)
            scales[rng.random(scales.shape) < 0.1] = 0.0
        x *= np.float32(10.0) ** rng.integers(-4, 4, (product.tokens, 1))
        x[0] = 0.0
        x[-1, 1:] = 0.0
    zeros = rng.integers(0, 16, scales.shape).astype(ZEROS.get(product.kind, np.int8)) if product.zeros else None
    order = rng.permutation(product.inputs).astype(np.int32) if product.order else None
    weight = QTensor(
        values,
        jnp.asarray(scales),
        None if zeros is None else jnp.asarray(zeros),
        None if order is None else jnp.asarray(order),
        kind=product.kind,
        activations=product.activations,
    )
    return jnp.asarray(x, product.dtype), weight
