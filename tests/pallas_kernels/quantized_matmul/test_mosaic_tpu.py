"""The TPU kernel in Pallas' TPU interpreter: the contract, with both ways of running copies, and no data race.

The kernel starts no copy of its own: Pallas' pipeline does. So there is no wait to leave out here.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.dispatch import DeviceTarget, Unsupported
from pallas_kernels.qtensor import QTensor
from pallas_kernels.quantized_matmul import mosaic_tpu, quantized_matmul
from pallas_kernels.quantized_matmul.layout import for_target
from pallas_kernels.quantized_matmul.mosaic_tpu import TpuMatmulPlan, block_specs, plan_of
from tests.pallas_kernels.interpreters import finding_races
from tests.pallas_kernels.quantized_matmul import cases
from tests.pallas_kernels.quantized_matmul.cases import Product
from tests.pallas_kernels.quantized_matmul.contract import QuantizedMatmulContract

TPU = DeviceTarget("tpu", "TPU v5 lite")


class TpuContract(QuantizedMatmulContract):
    """`mode`: "eager" runs a copy when it starts, "on_wait" when it is waited for."""

    target = TPU
    backend = "mosaic_tpu"
    seeds = range(1)
    mode: str

    def refusal(self, x: jax.Array, weight: QTensor) -> str | None:
        return super().refusal(x, for_target(weight, self.target))

    def call(self, x: jax.Array, weight: QTensor) -> jax.Array:
        kept = for_target(weight, self.target)
        if kept.order is not None:
            x, kept = x[:, kept.order], dataclasses.replace(kept, order=None)
        y = _interpreted(self.mode)(x, kept)
        jax.block_until_ready(y)
        races = interpret_pallas_call.races  # a private name: nothing public tells
        assert races is None or not races.races_found
        pltpu.reset_tpu_interpret_mode_state()
        return y


@functools.lru_cache
def _interpreted(mode: str) -> Any:
    interpret = finding_races(pltpu.InterpretParams, dma_execution_mode=mode)
    return jax.jit(functools.partial(mosaic_tpu.quantized_matmul, target=TPU, merge=True, interpret=interpret))


@pytest.mark.longer
class TestEagerCopies(TpuContract):
    mode = "eager"


@pytest.mark.longer
class TestCopiesOnWait(TpuContract):
    mode = "on_wait"


@pytest.mark.parametrize(
    "product",
    [
        Product("int4", tokens=2, outputs=(2, 75), inputs=384, group=128, zeros=True, dtype=jnp.bfloat16),
        Product("int4", tokens=3, outputs=(40,), inputs=192, group=64, order=True),
    ],
    ids=str,
)
def test_in_short(product: Product) -> None:
    contract = TestEagerCopies()
    x, weight = cases.build(product, np.random.default_rng(4))
    assert contract.refusal(x, weight) is None
    contract.check(x, weight)


@pytest.mark.longer
def test_several_tiles_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tokens, inputs and outputs, the last ones not full; activations come with their tile of inputs."""
    monkeypatch.setattr(mosaic_tpu, "_TILE_TOKENS", 16)
    monkeypatch.setattr(mosaic_tpu, "_TILE_SCALES", 1)
    monkeypatch.setattr(mosaic_tpu, "_TILE_INPUTS", 256)
    monkeypatch.setattr(mosaic_tpu, "_RESIDENT_BYTES", 0)
    _forget_traces()
    product = Product("int4", tokens=20, outputs=(200,), inputs=576, group=64, zeros=True, dtype=jnp.bfloat16)
    assert plan_of(20, 1, 200, 576, 64, True).grid == (2, 1, 2, 3)
    TestEagerCopies().check(*cases.build(product, np.random.default_rng(5)))
    _forget_traces()


def _forget_traces() -> None:
    """The op is jitted: a traced kernel would be used again."""
    _interpreted.cache_clear()
    mosaic_tpu.quantized_matmul.clear_cache()


def test_what_it_does_not_serve_is_named() -> None:
    x, weight = cases.build(Product("int4", inputs=26), np.random.default_rng(0))
    with pytest.raises(Unsupported, match="the weight, int4 in groups of 26, does not lie as words of int4"):
        quantized_matmul(x, for_target(weight, TPU), backend="mosaic_tpu")
    x, weight = cases.build(Product("int4", group=32), np.random.default_rng(0))
    rounded = dataclasses.replace(for_target(weight, TPU), activations="int8")
    with pytest.raises(Unsupported, match="activations are to be rounded to int8; they must keep their type"):
        quantized_matmul(x, rounded, backend="mosaic_tpu")
    with pytest.raises(Unsupported, match="it runs on TPU only"):
        quantized_matmul(x, weight, target=DeviceTarget("gpu", "NVIDIA H200", (9, 0)), backend="mosaic_tpu")


@pytest.mark.parametrize("group", [32, 64, 128, None])
@pytest.mark.parametrize("sizes", [(28672, 4096), (4096, 14336), (6144, 4096), (7168, 8192), (22016, 4096)])
def test_decoding_copies_the_weight_once(sizes: tuple[int, int], group: int | None) -> None:
    """Blocks of words, scales and zero points of every step of the grid: no more than a twentieth over the weight."""
    outputs, inputs = sizes
    group = inputs if group is None else group
    weight = outputs * inputs // 2 + outputs * (inputs // group) * 5
    for tokens in (1, 8, 16):
        plan = plan_of(tokens, 1, outputs, inputs, group, True)
        copied = _copied(plan)
        assert sum(copied[1:-1]) == plan.weight_bytes
        assert sum(copied) == plan.bytes
        assert plan.weight_bytes <= 1.05 * weight, plan
        assert copied[0] <= 2 * plan.tokens * (inputs + plan.tile_inputs)


def _copied(plan: TpuMatmulPlan) -> list[int]:
    """Bytes of each operand and of the result that Pallas' pipeline moves: a block, whenever it is another one."""
    sizes = (2, 4, *((4, 1) if plan.zeros else (4,)), 4)
    moved = []
    for size, spec in zip(sizes, block_specs(plan), strict=True):
        places = [spec.index_map(*step) for step in itertools.product(*map(range, plan.grid))]
        changes = 1 + sum(before != after for before, after in itertools.pairwise(places))
        moved.append(changes * size * int(np.prod([1 if length is None else length for length in spec.block_shape])))
    return moved
