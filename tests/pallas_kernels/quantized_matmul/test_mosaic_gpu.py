"""The Hopper kernel in Pallas' Mosaic GPU interpreter: the contract, without a data race, and what it copies."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.mosaic.gpu import fragmented_array, utils
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import mosaic_gpu_int4
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.qtensor import QTensor, pack_int4
from pallas_kernels.quantized_matmul import OP, mosaic_gpu, mosaic_gpu_kernel, mosaic_gpu_plan
from pallas_kernels.quantized_matmul.api import GPU_KERNEL_TOKENS, case_of
from tests.pallas_kernels.interpreters import finding_races
from tests.pallas_kernels.quantized_matmul import cases
from tests.pallas_kernels.quantized_matmul.cases import Product
from tests.pallas_kernels.quantized_matmul.contract import QuantizedMatmulContract

interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"),
    reason="the Mosaic GPU interpreter of JAX 0.10 does not know plgpu.load; later ones do",
)

HOPPER = DeviceTarget("gpu", "NVIDIA H200", (9, 0))
SMALL = Product("int4", tokens=3, outputs=(128,), inputs=256, group=64, dtype=jnp.bfloat16)
# What the contract's products leave out: groups of all sizes, more tokens than one tile has, outputs that are no
# multiple of a tile, inputs that are no multiple of a large block, and all that together with zero points and an order.
PRODUCTS = (
    dataclasses.replace(SMALL, zeros=True),
    dataclasses.replace(SMALL, tokens=1, outputs=(296,), inputs=512, group=128, zeros=True),
    dataclasses.replace(SMALL, tokens=17, outputs=(5, 32), inputs=96, group=32, zeros=True, order=True),
    dataclasses.replace(SMALL, tokens=33, outputs=(64,), inputs=384, group=128),
    dataclasses.replace(SMALL, tokens=9, inputs=352, group=None, zeros=True),
    dataclasses.replace(SMALL, tokens=150, outputs=(136,), inputs=256, group=32),
    dataclasses.replace(SMALL, tokens=8, outputs=(264,), inputs=1024, group=512),
)


@pytest.fixture(autouse=True)
def processors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few processors: each takes several pieces of work, and the interpreter is done sooner."""
    monkeypatch.setattr(mosaic_gpu_plan, "PROCESSORS", getattr(request, "param", 2))
    _forget_programs()
    yield
    _forget_programs()


@interpreted
@pytest.mark.slow  # CI runs it in a step of its own, and a few products everywhere
class TestMosaicGpu(QuantizedMatmulContract):
    target = HOPPER
    backend = "mosaic_gpu"
    seeds = range(1)

    def call(self, x: jax.Array, weight: QTensor) -> jax.Array:
        if weight.order is not None:  # what `api.quantized_matmul` does in front of every backend
            x, weight = jnp.take(x, weight.order, axis=1), dataclasses.replace(weight, order=None)
        out = _interpreted()(x, weight)
        jax.block_until_ready(out)
        assert not _races().races_found
        return out

    @pytest.mark.parametrize("product", PRODUCTS, ids=str)
    @pytest.mark.parametrize("extreme", [False, True])
    def test_what_the_contract_leaves_out(self, product: Product, extreme: bool) -> None:
        x, weight = cases.build(product, np.random.default_rng(5), extreme=extreme)
        assert self.refusal(x, weight) is None
        self.check(x, weight)

    @pytest.mark.parametrize("processors", [mosaic_gpu_plan.PROCESSORS], indirect=True)
    def test_one_piece_for_each_processor(self) -> None:
        self.check(*cases.build(dataclasses.replace(SMALL, inputs=512), np.random.default_rng(6)))


@interpreted
@pytest.mark.parametrize("product", [pytest.param(PRODUCTS[0], marks=pytest.mark.longer), PRODUCTS[2]], ids=str)
def test_in_short(product: Product) -> None:
    contract = TestMosaicGpu()
    contract.check(*cases.build(product, np.random.default_rng(4)))


@functools.lru_cache
def _interpreted() -> Any:
    run = functools.partial(
        mosaic_gpu.quantized_matmul,
        target=HOPPER,
        merge=True,
        interpret=finding_races(plgpu.InterpretGPUParams),
    )
    return jax.jit(run)


def _races() -> Any:
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call  # private: nothing public tells

    return interpret_pallas_call.get_races()


def _forget_programs() -> None:
    _interpreted.cache_clear()
    mosaic_gpu.quantized_matmul.clear_cache()


@interpreted
@pytest.mark.longer
@pytest.mark.parametrize(
    "product",
    [
        dataclasses.replace(SMALL, tokens=1, outputs=(256,), inputs=1024, group=128, zeros=True),
        pytest.param(
            dataclasses.replace(SMALL, tokens=16, outputs=(512,), inputs=768, group=32), marks=pytest.mark.slow
        ),
        pytest.param(
            dataclasses.replace(SMALL, tokens=16, outputs=(1040,), inputs=2048, group=128), marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_decoding_copies_the_weight_once(product: Product) -> None:
    """Values, scales and zero points, and nothing twice but the outputs of a last tile that is not full."""
    x, weight = cases.build(product, np.random.default_rng(0))
    run = functools.partial(mosaic_gpu.quantized_matmul, target=HOPPER, merge=True, count_copies=True)
    _, moved = run(x, weight, interpret=plgpu.InterpretGPUParams())
    outputs = product.outputs[0]
    assert int(moved) * outputs == weight.nbytes * -(-outputs // 256) * 256


@pytest.mark.parametrize("processors", [mosaic_gpu_plan.PROCESSORS], indirect=True)
@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [(4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (7168, 4096), (4096, 3584), (3584, 18944), (2048, 8192)],
)
@pytest.mark.parametrize("zeros", [False, True])
def test_what_decoding_moves_at_the_sizes_of_models(outputs: int, inputs: int, zeros: bool) -> None:
    """The kernel copies whole tiles: how much that is follows from the plan, and the test above holds it to that."""
    for tokens in (1, 8, 16, 32):
        plan = mosaic_gpu_plan.plan_of(tokens, outputs, inputs, 128, zeros=zeros)
        assert plan.row_tiles * plan.rows <= 1.05 * outputs
        assert plan.blocks * plan.block == inputs
        assert plan.blocks_of_part * (plan.parts - 1) < plan.blocks <= plan.blocks_of_part * plan.parts
        in_flight = plan.stages * plan.rows * plan.block // 2
        assert in_flight >= 65_536  # what a processor must have asked for to keep memory busy for a microsecond, twice


@interpreted
@pytest.mark.longer
@pytest.mark.parametrize("processors", [1], indirect=True)  # which takes both blocks of the inputs
def test_a_race_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that reads a stage too early: the detector must fire, or the tests above prove nothing."""
    add_block = mosaic_gpu_kernel._add_block

    def too_early(plan: Any, total: Any, factors: Any, scratch: Any, stage: Any, warpgroup: Any) -> Any:
        return add_block(plan, total, factors, scratch, jax.lax.rem(stage + 1, jnp.int32(plan.stages)), warpgroup)

    monkeypatch.setattr(mosaic_gpu_kernel, "_add_block", too_early)
    with pytest.raises(AssertionError):
        TestMosaicGpu().check(*cases.build(PRODUCTS[0], np.random.default_rng(1)))
    assert _races().races_found


def test_registers_widen_as_the_interpreter_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one step that the interpreter cannot run, on numpy words of all threads instead of the compiler's values.

    Where a thread finds its bytes, and where `wgmma` expects its factors, is said here from PTX's own tables.
    """
    from jax._src.lib.mlir import ir
    from jax._src.lib.mlir.dialects import arith

    packed = np.random.default_rng(0).integers(0, 256, (64, 32)).astype(np.uint8)
    warp, lane = np.divmod(np.arange(128), 32)
    row, place = 16 * warp + lane // 4, lane % 4
    words = np.ascontiguousarray(packed).view("<u4")  # (64, 8)
    columns, halves = packed.shape[1] // 16, 2
    registers = np.empty((columns, halves), dtype=object)
    for column, half in np.ndindex(columns, halves):
        registers[column, half] = words[row + 8 * half, 4 * column + place]
    shape = fragmented_array.WGMMA_LAYOUT_8BIT.registers_shape(packed.shape)

    @dataclasses.dataclass
    class Array:
        _registers: np.ndarray
        _layout: Any = None
        _is_signed: bool | None = None
        shape: tuple[int, ...] = packed.shape

        @property
        def registers(self) -> np.ndarray:
            return self._registers

    monkeypatch.setattr(fragmented_array, "FragmentedArray", Array)
    monkeypatch.setattr(utils, "c", lambda value, kind: np.uint32(value))
    monkeypatch.setattr(utils, "bitcast", lambda value, kind: value)
    for name, function in (("shrui", np.right_shift), ("andi", np.bitwise_and), ("ori", np.bitwise_or)):
        monkeypatch.setattr(arith, name, function)
    with ir.Context(), ir.Location.unknown():
        wide = mosaic_gpu_int4._widen_registers(None, Array(registers.reshape(shape)))
    assert wide.registers.shape == fragmented_array.WGMMA_LAYOUT.registers_shape((64, 64))
    got = np.zeros((64, 64), np.uint16)
    for (tile, half), register in np.ndenumerate(wide.registers.reshape(-1, 2)):
        for number in range(2):  # of a pair, the first in the lower half of the word
            got[row + 8 * half, 8 * tile + 2 * place + number] = register >> (16 * number)
    want = mosaic_gpu_int4._widened(jnp.asarray(packed), interpreted=True)
    np.testing.assert_array_equal(got, np.asarray(want).view(np.uint16))


def test_activations_are_permuted_as_weights_are() -> None:
    numbers = np.random.default_rng(0).integers(0, 16, (64, 96))
    wide = mosaic_gpu_int4._widened(pack_int4(jnp.asarray(numbers)), interpreted=True)
    order = mosaic_gpu_int4.permuted(jnp.asarray(numbers))
    np.testing.assert_array_equal(np.asarray(wide, np.float32) - 128, np.asarray(order, np.float32))


@pytest.mark.parametrize(
    ("target", "change", "reason"),
    [
        (DeviceTarget("cpu", "cpu"), {}, "it runs on NVIDIA GPUs only"),
        (DeviceTarget("gpu", "NVIDIA A100", (8, 0)), {}, "compute capability is (8, 0); it must be (9, 0), Hopper"),
        (DeviceTarget("gpu", "NVIDIA B200", (10, 0)), {}, "compute capability is (10, 0); it must be (9, 0), Hopper"),
        (HOPPER, {"kind": "fp8"}, "the weight is fp8; it must be int4: XLA writes no other one out wide"),
        (
            HOPPER,
            {"activations": "int8"},
            "activations are to be rounded to int8; they must keep their type",
        ),
        (HOPPER, {"dtype": jnp.float32}, "activations are float32; they must be bfloat16"),
        (HOPPER, {"group": 16}, "a group has 16 inputs; it must be a multiple of 32"),
        (
            HOPPER,
            {"outputs": (7, 8)},
            "the weight has 56 outputs on a device; they must be a multiple of 8, and at least 64",
        ),
        (
            HOPPER,
            {"outputs": (3, 23)},
            "the weight has 69 outputs on a device; they must be a multiple of 8, and at least 64",
        ),
        (HOPPER, {"tokens": 513}, f"there are 513 tokens; they must be at most {GPU_KERNEL_TOKENS}"),
    ],
)
def test_what_it_does_not_serve_has_a_reason(target: DeviceTarget, change: dict[str, Any], reason: str) -> None:
    supports = {backend.name: backend.supports for backend in OP.backends}["mosaic_gpu"]
    rng = np.random.default_rng(0)
    assert supports(HOPPER, case_of(*cases.build(SMALL, rng))) is None
    assert supports(target, case_of(*cases.build(dataclasses.replace(SMALL, **change), rng))) == reason
