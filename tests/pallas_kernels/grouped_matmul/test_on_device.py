"""The grouped product on the device itself: `pytest -m gpu`, `pytest -m tpu`. Elsewhere everything skips.

The contract that the interpreters run, and the products of models against each row's own in float32.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.grouped_matmul.api import OP, case_of
from pallas_kernels.qtensor import QTensor, dequantize, quantize
from pallas_kernels.quantized_matmul.layout import for_target
from tests.pallas_kernels.grouped_matmul.contract import TOLERANCE, Grouped, GroupedMatmulContract

# Experts, outputs and inputs of Qwen3-30B-A3B's and gpt-oss-20b's products; the last one is what a rehearsal runs.
SIZES = ((128, 1536, 2048), (128, 2048, 768), (32, 5760, 2880), (32, 2880, 2880), (4, 128, 64))


class OnDevice(GroupedMatmulContract):
    @pytest.fixture(autouse=True)
    def _on_the_device(self, device: str) -> None:
        usual = Grouped(outputs=(64,), inputs=128, dtype=jnp.bfloat16)
        if (reason := self.refusal(usual)) is not None:
            pytest.skip(f"{self.backend}: {reason}")

    @property
    def target(self) -> DeviceTarget:
        return DeviceTarget.of(jax.devices()[0])

    @pytest.mark.parametrize("rows", [1, 8, 64, 512, 4096])
    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize(("kind", "group"), [(None, None), ("int4", 32), ("mxfp4", 32)])
    def test_the_size_of_a_model(
        self, size: tuple[int, int, int], rows: int, kind: str | None, group: int | None, rehearsed: bool
    ) -> None:
        """Right, the same bits when it runs again, and those of a row that is alone."""
        if rehearsed and (size != SIZES[-1] or rows > 64):
            pytest.skip("a rehearsal runs the smallest weight")
        x, wide, expert = _inputs(*size, rows)
        weight = wide if kind is None else for_target(quantize(wide, kind, group), self.target, leading=1)  # type: ignore[arg-type]
        (backend,) = [one for one in OP.backends if one.name == self.backend]
        if (reason := backend.supports(self.target, case_of(x, weight))) is not None:
            pytest.skip(reason)
        run = jax.jit(functools.partial(grouped_matmul, target=self.target, backend=self.backend))
        sizes = jnp.bincount(expert, length=size[0]).astype(jnp.int32)
        got = run(x, weight, sizes)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(run(x, weight, sizes)), err_msg="two runs differ")
        exact = dequantize(weight) if isinstance(weight, QTensor) else wide
        want = jax.jit(_exact)(x, exact, expert)
        error = jnp.abs(got - want).max(axis=1) / jnp.abs(want).max(axis=1)
        worst = int(jnp.argmax(error))  # argmax finds a NaN first
        assert float(error[worst]) <= TOLERANCE[np.dtype(jnp.bfloat16)], f"row {worst}: {float(error[worst]):.2e}"
        if self.backend == "xla":  # whose products do not promise it
            return
        alone = run(x[-1:], weight, jnp.zeros_like(sizes).at[expert[-1]].set(1))
        np.testing.assert_array_equal(np.asarray(alone[0]), np.asarray(got[-1]), err_msg="company changes bits")


def _inputs(experts: int, outputs: int, inputs: int, rows: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows, weights, and the expert of each row, not falling. Made on the device: numpy would need seconds."""
    keys = jax.random.split(jax.random.key(experts + outputs + inputs + rows), 3)
    weight = jax.random.normal(keys[0], (experts, outputs, inputs), jnp.bfloat16)
    x = jax.random.normal(keys[1], (rows, inputs), jnp.bfloat16)
    return x, weight, jnp.sort(jax.random.randint(keys[2], (rows,), 0, experts))


def _exact(x: jax.Array, weight: jax.Array, expert: jax.Array) -> jax.Array:
    """Row by row, so that no weight is copied for all of them."""

    def product(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        values, index = row
        matrix = jax.lax.dynamic_index_in_dim(weight, index, keepdims=False).astype(jnp.float32)
        return jnp.matmul(matrix, values.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)

    return jax.lax.map(product, (x, expert))


@pytest.mark.gpu
class TestMosaicGpu(OnDevice):
    backend = "mosaic_gpu"


@pytest.mark.tpu
class TestMosaicTpu(OnDevice):
    backend = "mosaic_tpu"


@pytest.mark.gpu
@pytest.mark.tpu
class TestXla(OnDevice):
    backend = "xla"
