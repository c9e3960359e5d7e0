"""The Hopper kernel in Pallas' Mosaic GPU interpreter: the contract, without a data race, and what it copies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.grouped_matmul import mosaic_gpu, mosaic_gpu_kernel, mosaic_gpu_plan
from pallas_kernels.grouped_matmul.api import OP, case_of
from pallas_kernels.grouped_matmul.mosaic_gpu_plan import plan_of
from pallas_kernels.qtensor import QTensor
from tests.pallas_kernels.grouped_matmul.contract import Grouped, GroupedMatmulContract
from tests.pallas_kernels.interpreters import finding_races

interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"),
    reason="the Mosaic GPU interpreter of JAX 0.10 does not know plgpu.load; later ones do",
)

HOPPER = DeviceTarget("gpu", "NVIDIA H200", (9, 0))
PLAIN = Grouped((3, 0, 9, 1), outputs=(2, 36), inputs=96, dtype=jnp.bfloat16)
INT4 = dataclasses.replace(PLAIN, outputs=(136,), inputs=192, kind="int4", group=64)
# What the contract's cases leave out: outputs that fill no tile and leave warpgroups idle, several tiles of an expert's
# rows with a last one of each width, rows that are no multiple of 8, and a window that begins before its item.
CASES = (
    PLAIN,
    INT4,
    dataclasses.replace(PLAIN, sizes=(140, 2), padding=0, outputs=(64,), inputs=64),
    dataclasses.replace(PLAIN, sizes=(0, 60, 0, 20), padding=0, outputs=(200,)),
    dataclasses.replace(INT4, sizes=(70, 1, 30), padding=1, outputs=(64,), group=32),
    dataclasses.replace(INT4, sizes=(0, 5), padding=30, outputs=(264,)),
    dataclasses.replace(INT4, sizes=(12, 3), padding=1, kind="mxfp4", group=32),
)


@pytest.fixture(autouse=True)
def processors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few processors: each takes several items, and the interpreter is done sooner."""
    monkeypatch.setattr(mosaic_gpu_plan, "PROCESSORS", getattr(request, "param", 2))
    mosaic_gpu.grouped_matmul.clear_cache()
    yield
    mosaic_gpu.grouped_matmul.clear_cache()


@pytest.fixture(autouse=True)
def products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numpy's products sum in an order that depends on their size, unlike those of a multiprocessor."""
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    class Numpy:
        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def matmul(self, a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> np.ndarray:
            a, b = a.astype(dtype), b.astype(dtype)
            return np.cumsum(a.T[:, :, None] * b[:, None], axis=0)[-1]

    monkeypatch.setattr(gpu_callbacks, "np", Numpy())


@interpreted
@pytest.mark.slow  # CI runs it in a step of its own, and a few products everywhere
class TestMosaicGpu(GroupedMatmulContract):
    target = HOPPER  # type: ignore[assignment]
    backend = "mosaic_gpu"

    def call(self, x: jax.Array, weight: jax.Array | QTensor, sizes: jax.Array) -> jax.Array:
        out = run(x, weight, sizes, interpret=finding_races(plgpu.InterpretGPUParams))
        jax.block_until_ready(out)
        assert not races_found()
        return out

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_what_the_contract_leaves_out(self, case: Grouped) -> None:
        assert self.refusal(case) is None
        self.test_is_the_oracles(case)


@interpreted
@pytest.mark.parametrize("case", [PLAIN, pytest.param(INT4, marks=pytest.mark.longer)], ids=str)
def test_in_short(case: Grouped) -> None:
    TestMosaicGpu().test_is_the_oracles(case)


@interpreted
@pytest.mark.longer
@pytest.mark.parametrize("inputs", [192, 64])
def test_mxfp4(inputs: int) -> None:
    """Every number, with scales from 2^-126 to 2^127 / 6: two experts with rows of one that has none between them."""
    rng = np.random.default_rng(inputs)
    sizes, outputs = (5, 0, 2), 72
    values = rng.integers(0, 256, (3, outputs, inputs // 2)).astype(np.uint8)
    # An output has scales that are near each other, or the sums would show one of its groups alone.
    scales = rng.integers(1, 250, (3, outputs, 1)) + rng.integers(0, 3, (3, outputs, inputs // 32))
    codes = np.stack([values & 15, values >> 4], axis=-1).reshape(3, outputs, inputs)
    numbers = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])[codes & 7] * np.where(codes > 7, -1, 1)
    wide = numbers * np.repeat(2.0 ** (scales - 127), 32, axis=-1)
    x = jnp.asarray(rng.standard_normal((8, inputs)) / 64, jnp.bfloat16)
    weight = QTensor(jnp.asarray(values), jnp.asarray(scales, jnp.uint8), kind="mxfp4")
    got = run(x, weight, jnp.array(sizes, jnp.int32), interpret=finding_races(plgpu.InterpretGPUParams))
    assert not races_found()
    want = np.zeros((8, outputs))
    for row, expert in enumerate((0, 0, 0, 0, 0, 2, 2)):
        want[row] = wide[expert] @ np.asarray(x[row], np.float64)
    limit = 1e-5 * np.abs(want).max(axis=0) + np.finfo(np.float32).tiny * inputs
    assert (np.abs(np.asarray(got) - want) <= limit).all()


def run(x: jax.Array, weight: jax.Array | QTensor, sizes: jax.Array, **options: Any) -> Any:
    return mosaic_gpu.grouped_matmul(x, weight, sizes, target=HOPPER, **options)


def races_found() -> bool:
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call  # private: nothing public tells

    return interpret_pallas_call.get_races().races_found


@interpreted
@pytest.mark.longer
@pytest.mark.parametrize(
    "case",
    [
        Grouped((2, 0, 5, 0), padding=1, outputs=(192,), inputs=128, dtype=jnp.bfloat16),
        Grouped((0, 64), padding=0, outputs=(128,), inputs=64, dtype=jnp.bfloat16),
        dataclasses.replace(INT4, sizes=(0, 0, 33, 2), outputs=(320,), inputs=256, group=128),
    ],
    ids=str,
)
def test_experts_with_rows_are_copied_once_and_no_others(case: Grouped) -> None:
    x, weight, sizes = case.arrays(HOPPER)
    _, moved = run(x, weight, sizes, interpret=plgpu.InterpretGPUParams(), count_copies=True)
    assert int(moved) * len(case.sizes) == weight.nbytes * np.count_nonzero(case.sizes)


# Experts, outputs and inputs of the products of Qwen3-30B-A3B, gpt-oss-20b and Mixtral-8x7B.
MODELS = [(128, 1536, 2048), (128, 2048, 768), (32, 5760, 2880), (32, 2880, 2880), (8, 28672, 4096), (8, 4096, 14336)]


@pytest.mark.parametrize("processors", [mosaic_gpu_plan.PROCESSORS], indirect=True)
@pytest.mark.parametrize(("experts", "outputs", "inputs"), MODELS)
@pytest.mark.parametrize(("kind", "group"), [(None, 0), ("int4", 32), ("mxfp4", 32)])
def test_what_decoding_moves_at_the_sizes_of_models(
    experts: int, outputs: int, inputs: int, kind: str | None, group: int
) -> None:
    """An expert has one tile of rows, and whole tiles of outputs are all that is copied of it: the test above holds
    the kernel to that."""
    for rows in (8, 16, 32, 64):
        plan = plan_of(rows, experts, outputs, inputs, kind=kind, group=group)
        assert plan.tile == rows
        assert plan.output_tiles * 64 <= 1.05 * outputs
        assert plan.blocks * plan.block == inputs
        in_flight = plan.stages * plan.warpgroups * 64 * plan.block_bytes
        assert in_flight >= 55_000  # what a processor must have asked for to keep memory busy for 1.5 microseconds


@pytest.mark.parametrize("sizes", [(3, 0, 9, 1), (0, 0, 0, 0), (0, 0, 0, 200), (129, 71, 0, 0), (1, 198, 1, 0)])
def test_tiles_cover_every_row_once(sizes: tuple[int, ...]) -> None:
    """Rows with their expert, in the order in which the kernel takes its items; padding belongs to none."""
    plan = plan_of(200, 4, 64, 64)
    tiles = jax.tree.map(np.asarray, mosaic_gpu.tiles_of(plan, jnp.array(sizes, jnp.int32)))
    number = place = 0
    for expert, size in enumerate((*sizes, 200 - sum(sizes))):
        count = -(-size // plan.tile)
        for tile in range(number, number + count):
            assert (tiles.expert[tile], tiles.begin[tile], tiles.first[tile]) == (expert, place, number)
            assert expert == 4 or tiles.size[tile] == size
        number, place = number + count, place + size
    assert number <= plan.row_tiles
    assert (tiles.expert[-1], tiles.begin[-1]) == (4, sum(sizes))  # of which the kernel counts its items


@interpreted
@pytest.mark.longer
@pytest.mark.parametrize("processors", [1], indirect=True)
def test_a_race_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that reads a stage too early: the detector must fire, or the tests above prove nothing."""
    start = mosaic_gpu_kernel._start_products

    def too_early(plan: Any, scratch: Any, stage: Any, *rest: Any) -> None:
        start(plan, scratch, jax.lax.rem(stage + 1, jnp.int32(plan.stages)), *rest)

    monkeypatch.setattr(mosaic_gpu_kernel, "_start_products", too_early)
    with pytest.raises(AssertionError):
        TestMosaicGpu().test_is_the_oracles(dataclasses.replace(PLAIN, sizes=(2, 2), padding=4, outputs=(64,)))
    assert races_found()


@pytest.mark.parametrize(
    ("target", "change", "reason"),
    [
        (DeviceTarget("cpu", "cpu"), {}, "it runs on NVIDIA GPUs only"),
        (DeviceTarget("gpu", "NVIDIA A100", (8, 0)), {}, "compute capability is (8, 0); it must be (9, 0), Hopper"),
        (DeviceTarget("gpu", "NVIDIA B200", (10, 0)), {}, "compute capability is (10, 0); it must be (9, 0), Hopper"),
        (HOPPER, {"kind": "fp8"}, "the weight is fp8; it must be bfloat16, int4 or mxfp4"),
        (HOPPER, {"packed": True}, "the weight lies as words of int4, in which a TPU keeps it"),
        (HOPPER, {"activations": "int8"}, "activations are to be rounded to int8; they must keep their type"),
        (HOPPER, {"dtype": np.dtype(np.float32)}, "activations are float32; they must be bfloat16"),
        (HOPPER, {"num_inputs": 80}, "an expert has 80 inputs; they must be a multiple of 32"),
        (HOPPER, {"kind": "int4", "group": 16}, "a group has 16 inputs; it must be a multiple of 32"),
        (HOPPER, {"num_outputs": 56}, "an expert has 56 outputs; they must be a multiple of 8, and at least 64"),
        (HOPPER, {"num_outputs": 69}, "an expert has 69 outputs; they must be a multiple of 8, and at least 64"),
    ],
)
def test_what_it_does_not_serve_has_a_reason(target: DeviceTarget, change: dict[str, Any], reason: str) -> None:
    supports = {backend.name: backend.supports for backend in OP.backends}["mosaic_gpu"]
    case = case_of(*PLAIN.arrays(HOPPER)[:2])
    assert supports(HOPPER, case) is None
    assert supports(target, dataclasses.replace(case, **change)) == reason
