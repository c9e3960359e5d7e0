"""What every backend of the quantized product must do. A backend's test subclasses `QuantizedMatmulContract`."""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.qtensor import QTensor
from pallas_kernels.quantized_matmul import OP, quantized_matmul, reference
from pallas_kernels.quantized_matmul.api import case_of
from tests.pallas_kernels.contract import OpContract
from tests.pallas_kernels.quantized_matmul import cases
from tests.pallas_kernels.quantized_matmul.cases import Product

# Of the largest output of a token. float32: rounding of sums of hundreds. bfloat16: activations are given in it, and a
# backend may round widened weights to it (4e-3 each).
TOLERANCE = {np.dtype(jnp.float32): 1e-5, np.dtype(jnp.bfloat16): 1e-2}

PRODUCTS = (
    Product(),
    Product(tokens=1, outputs=(3, 7), inputs=50),
    Product(tokens=130, outputs=(200,), inputs=96, dtype=jnp.bfloat16),
    Product(activations="int8", tokens=1),
    Product(activations="int8", tokens=33, outputs=(2, 5, 3), inputs=72, dtype=jnp.bfloat16),
    Product("fp8", tokens=9, outputs=(33,), inputs=40),
    Product("fp8", tokens=16, dtype=jnp.bfloat16, activations="fp8"),
    Product("fp8", outputs=(130,), inputs=256, group=128, dtype=jnp.bfloat16),
    Product("fp8", tokens=3, inputs=256, group=128, activations="fp8"),
    Product("int4", group=32),
    Product("int4", tokens=2, outputs=(65,), inputs=384, group=128, dtype=jnp.bfloat16),
    Product("int4", tokens=17, inputs=128, group=64, zeros=True),
    Product("int4", tokens=4, inputs=128, group=32, zeros=True, order=True, dtype=jnp.bfloat16),
    Product("int4", inputs=26),
    Product("int8", group=16, order=True),
    Product(tokens=512, outputs=(24,), inputs=16),
    Product("int4", tokens=19, outputs=(72,), inputs=192, group=64, zeros=True, dtype=jnp.bfloat16),
    Product("int4", tokens=2, outputs=(2, 36), inputs=384, group=128, dtype=jnp.bfloat16),
    Product("int4", tokens=17, outputs=(2, 150), inputs=320, group=64, zeros=True, dtype=jnp.bfloat16),
    Product("int4", tokens=3, outputs=(3, 5, 10), inputs=192, group=16, zeros=True, order=True),
    Product("int4", tokens=70, outputs=(9,), inputs=512, dtype=jnp.bfloat16),
    Product("mxfp4", tokens=1, outputs=(3, 7), inputs=96, group=32),
    Product("mxfp4", tokens=9, outputs=(33,), inputs=320, group=32, dtype=jnp.bfloat16),
    Product("mxfp4", tokens=70, outputs=(2, 36), inputs=32, group=32, dtype=jnp.bfloat16),
)


class QuantizedMatmulContract(OpContract):
    """Compares a backend with the oracle. Override `target` and `backend`, and `call` if it needs more than that."""

    seeds = range(2)

    def call(self, x: jax.Array, weight: QTensor) -> jax.Array:
        """Runs the op."""
        return _compiled(self.target, self.backend)(x, weight)

    def refusal(self, x: jax.Array, weight: QTensor) -> str | None:
        """Why the backend does not serve a product, if it does not."""
        named = {backend.name: backend for backend in OP.backends}
        return named[self.backend].supports(self.target, case_of(x, weight))

    def check(self, x: jax.Array, weight: QTensor) -> None:
        want = reference.quantized_matmul(np.asarray(x), weight)
        got = self.call(x, weight)
        chex.assert_shape(got, (x.shape[0], *weight.outputs))
        chex.assert_type(got, jnp.float32)
        flat, wanted = np.asarray(got).reshape(x.shape[0], -1), want.reshape(x.shape[0], -1)
        size = np.abs(wanted).max(axis=1)
        error = np.abs(flat - wanted).max(axis=1)
        # A device may flush what is below the smallest normal number.
        limit = TOLERANCE[np.dtype(x.dtype)] * size + np.finfo(np.float32).tiny * x.shape[1]
        worst = int((error - limit).argmax())
        assert (error <= limit).all(), f"token {worst}: error {error[worst]:.3e} of {size[worst]:.3e}"

    @pytest.mark.parametrize("product", PRODUCTS, ids=str)
    def test_matches_the_oracle(self, product: Product) -> None:
        for seed in self.seeds:
            x, weight = cases.build(product, np.random.default_rng(seed))
            if (reason := self.refusal(x, weight)) is not None:
                pytest.skip(reason)
            self.check(x, weight)

    @pytest.mark.parametrize("product", PRODUCTS[::2], ids=str)
    def test_extreme_scales_and_activations(self, product: Product) -> None:
        x, weight = cases.build(product, np.random.default_rng(9), extreme=True)
        if (reason := self.refusal(x, weight)) is not None:
            pytest.skip(reason)
        self.check(x, weight)


@functools.lru_cache
def _compiled(target: DeviceTarget, backend: str) -> Any:
    return jax.jit(functools.partial(quantized_matmul, target=target, backend=backend))
