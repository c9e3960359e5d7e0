"""The quantized product on the device itself: `pytest -m gpu`, `pytest -m tpu`. Elsewhere everything skips.

The contract that the interpreter runs, and weights of a model's size against a product in float32.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.qtensor import QTensor, dequantize, quantize
from pallas_kernels.quantized_matmul import OP, quantized_matmul
from pallas_kernels.quantized_matmul.layout import for_target
from tests.pallas_kernels.quantized_matmul import cases
from tests.pallas_kernels.quantized_matmul.cases import Product
from tests.pallas_kernels.quantized_matmul.contract import TOLERANCE, QuantizedMatmulContract
from tests.pallas_kernels.quantized_matmul.test_mosaic_gpu import PRODUCTS as MORE_PRODUCTS

# Outputs, inputs and group of weights in int4; the last one is what a rehearsal runs.
SIZES = ((28672, 4096, 128), (4096, 14336, 64), (6144, 4096, 32), (1088, 896, 896), (160, 256, 128))


class OnDevice(QuantizedMatmulContract):
    @pytest.fixture(autouse=True)
    def _on_the_device(self, device: str) -> None:
        named = {backend.name: backend for backend in OP.backends}
        usual = Product("int4", outputs=(64,), inputs=128, group=128, dtype=jnp.bfloat16)
        if (reason := self.refusal(*cases.build(usual, np.random.default_rng(0)))) is not None:
            pytest.skip(f"{named[self.backend].name}: {reason}")

    @property
    def target(self) -> DeviceTarget:
        return DeviceTarget.of(jax.devices()[0])

    def call(self, x: jax.Array, weight: QTensor) -> jax.Array:
        if self.target.platform == "cpu":  # XLA:CPU lacks products of bfloat16
            x = x.astype(jnp.float32)
        return super().call(x, for_target(weight, self.target) if self.target.platform == "tpu" else weight)

    @pytest.mark.parametrize("product", MORE_PRODUCTS, ids=str)
    def test_what_the_contract_leaves_out(self, product: Product) -> None:
        for extreme in (False, True):
            x, weight = cases.build(product, np.random.default_rng(5), extreme=extreme)
            if (reason := self.refusal(x, weight)) is not None:
                pytest.skip(reason)
            self.check(x, weight)

    @pytest.mark.parametrize("tokens", [1, 8, 16, 32, 64, 200, 512])
    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize("zeros", [False, True])
    def test_the_size_of_a_model(self, size: tuple[int, int, int], zeros: bool, tokens: int, rehearsed: bool) -> None:
        """Right, and the same bits when it runs again."""
        if rehearsed and size != SIZES[-1]:
            pytest.skip("a rehearsal runs the smallest weight")
        outputs, inputs, group = size
        x, weight = _inputs(outputs, inputs, group, zeros, tokens)
        if (reason := self.refusal(x, weight)) is not None:
            pytest.skip(reason)
        run = jax.jit(functools.partial(quantized_matmul, target=self.target, backend=self.backend))
        factor = x.astype(jnp.float32) if self.target.platform == "cpu" else x
        weight_there = for_target(weight, self.target) if self.target.platform == "tpu" else weight
        got = run(factor, weight_there)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(run(factor, weight_there)), err_msg="two runs differ")
        want = jax.jit(_exact)(x, weight)
        error = jnp.abs(got - want).max(axis=1) / jnp.abs(want).max(axis=1)
        worst = int(jnp.argmax(error))  # argmax finds a NaN first
        assert float(error[worst]) <= TOLERANCE[np.dtype(jnp.bfloat16)], f"token {worst}: {float(error[worst]):.2e}"


def _inputs(outputs: int, inputs: int, group: int, zeros: bool, tokens: int) -> tuple[jax.Array, QTensor]:
    """Made on the device: numpy would need seconds for each weight."""
    keys = jax.random.split(jax.random.key(outputs + inputs + tokens), 3)
    dense = jax.random.normal(keys[0], (outputs, inputs), jnp.float32)
    weight = jax.jit(functools.partial(quantize, kind="int4", group=group))(dense)
    points = jax.random.randint(keys[1], weight.scales.shape, 0, 16).astype(jnp.uint8) if zeros else None
    x = jax.random.normal(keys[2], (tokens, inputs), jnp.float32).astype(jnp.bfloat16)
    return x, QTensor(weight.values, weight.scales, points, kind="int4")


def _exact(x: jax.Array, weight: QTensor) -> jax.Array:
    return jnp.matmul(x.astype(jnp.float32), dequantize(weight).T, precision=jax.lax.Precision.HIGHEST)


@pytest.mark.gpu
class TestMosaicGpu(OnDevice):
    backend = "mosaic_gpu"


@pytest.mark.tpu
class TestMosaicTpu(OnDevice):
    backend = "mosaic_tpu"

    def refusal(self, x: jax.Array, weight: QTensor) -> str | None:
        return super().refusal(x, for_target(weight, self.target))


@pytest.mark.gpu
@pytest.mark.tpu
class TestXla(OnDevice):
    backend = "xla"
