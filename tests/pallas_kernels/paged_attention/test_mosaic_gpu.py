"""The Hopper kernel in Pallas' Mosaic GPU interpreter: the contract, without a data race."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import AttentionOptions, mosaic_gpu
from pallas_kernels.paged_attention.api import OP
from tests.pallas_kernels.interpreters import finding_races
from tests.pallas_kernels.paged_attention import cases
from tests.pallas_kernels.paged_attention.cases import Inputs, Shape
from tests.pallas_kernels.paged_attention.contract import SHAPES as CONTRACT_SHAPES
from tests.pallas_kernels.paged_attention.contract import PagedAttentionContract, case_of, options_of

interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"),
    reason="the Mosaic GPU interpreter of JAX 0.10 does not know plgpu.load; later ones do",
)

HOPPER = DeviceTarget("gpu", "NVIDIA H200", (9, 0))
SMALL = Shape(dtype=jnp.bfloat16, tokens=24, rows=4, pages_per_row=6, page_size=32)
# What the contract's shapes leave out: page sizes below and above a block, pages in slices, ratios that do not divide
# 64, keys in several parts, and quantized pages with all options.
SHAPES = (
    dataclasses.replace(SMALL, page_size=16, pages_per_row=20, group=3, head_dim=128, sliding_window=70),
    dataclasses.replace(SMALL, page_size=128, pages_per_row=5, group=5, soft_cap=20.0, sinks=True),
    dataclasses.replace(SMALL, page_size=256, pages_per_row=3, kv_heads=1, group=8, head_dim=128),
    dataclasses.replace(SMALL, page_size=16, head_dim=80, sliding_window=1),
    dataclasses.replace(SMALL, page_size=64, head_dim=96, group=1),
    dataclasses.replace(SMALL, kv_dtype=jnp.int8, group=64, kv_heads=1, pages_per_row=4, sinks=True, soft_cap=30.0),
    dataclasses.replace(SMALL, kv_dtype=jnp.float8_e4m3fn, page_size=128, pages_per_row=5, sliding_window=200),
)


@interpreted
@pytest.mark.slow  # CI runs it in a step of its own, and one batch of a few shapes everywhere
class TestMosaicGpu(PagedAttentionContract):
    target = HOPPER
    backend = "mosaic_gpu"
    seeds = range(1)
    recipes = (cases.ragged_mix, cases.page_borders, cases.idle)  # a second or two each

    def call(self, inputs: Inputs, shape: Shape) -> tuple[Any, Any, Any]:
        out = _interpreted(shape)(*inputs.args, inputs.sinks)
        jax.block_until_ready(out)
        assert not _races().races_found
        return out

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_what_the_contract_leaves_out(self, shape: Shape) -> None:
        assert self.refusal(shape) is None
        for number, recipe in enumerate((cases.ragged_mix, cases.single_tokens)):
            rng = np.random.default_rng((number, 5))
            self.check(cases.build(shape, self.target, recipe(shape, rng), rng), shape)

    @pytest.mark.parametrize("shape", [*CONTRACT_SHAPES, *SHAPES], ids=str)
    def test_matches_the_oracle_at_length(self, shape: Shape) -> None:
        if self.refusal(shape) is not None:
            pytest.skip("not served: the short test checks how that is said")
        for number, recipe in enumerate(cases.RECIPES):
            for seed in range(3):
                rng = np.random.default_rng((number, seed, 1))
                self.check(cases.build(shape, self.target, recipe(shape, rng), rng), shape)

    def test_pages_shared_between_rows(self) -> None:
        """The contract's own is in float32."""
        shape = Shape(dtype=jnp.bfloat16, head_dim=128)
        rng = np.random.default_rng(7)
        rows = [(1, 60), (20, 70), (1, 49), (5, 53)]  # all write behind their first three pages
        self.check(cases.build(shape, self.target, rows, rng, shared_prefix_pages=3), shape)

    @pytest.mark.parametrize("soft_cap", [None, 3.0])
    def test_huge_logits(self, soft_cap: float | None) -> None:
        """The contract's own are in float32."""
        shape = dataclasses.replace(SMALL, head_dim=128, soft_cap=soft_cap)
        rng = np.random.default_rng(3)
        rows = cases.ragged_mix(shape, rng)
        self.check(cases.build(shape, self.target, rows, rng, query_scale=1e8), shape)


@interpreted
@pytest.mark.parametrize(
    "shape", [CONTRACT_SHAPES[1], pytest.param(CONTRACT_SHAPES[10], marks=pytest.mark.longer)], ids=str
)
def test_in_short(shape: Shape) -> None:
    contract, rng = TestMosaicGpu(), np.random.default_rng(4)
    contract.check(cases.build(shape, contract.target, cases.ragged_mix(shape, rng), rng), shape)


def _races() -> Any:
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call  # private: nothing public tells

    return interpret_pallas_call.get_races()


@functools.lru_cache
def _interpreted(shape: Shape) -> Any:
    run = functools.partial(
        mosaic_gpu.paged_attention,
        options=options_of(shape),
        target=HOPPER,
        interpret=finding_races(plgpu.InterpretGPUParams),
    )
    return jax.jit(run)


@interpreted
@pytest.mark.parametrize(
    ("page_size", "rows", "length"),
    [(16, 2, 512), *(pytest.param(size, 4, 1024, marks=pytest.mark.slow) for size in (32, 64, 128, 256))],
)
def test_decoding_copies_what_the_math_needs(page_size: int, rows: int, length: int) -> None:
    """Every key and value once for each kv head, and not one more. The keys are cut into parts here."""
    table = {"rows": rows, "tokens": rows, "pages_per_row": length // page_size, "page_size": page_size}
    shape = dataclasses.replace(SMALL, kv_heads=1, head_dim=128, **table)
    assert _copies(shape, [(1, length)] * rows) * min(page_size, 64) == 2 * rows * length


@pytest.mark.longer
@interpreted
def test_windows_and_chunks_copy_what_they_see() -> None:
    """Tiles of a prompt share no copies, but leave out what none of their tokens sees."""
    shape = dataclasses.replace(
        SMALL, tokens=64, rows=3, pages_per_row=64, page_size=16, kv_heads=1, group=2, head_dim=128, sliding_window=100
    )
    copies = _copies(shape, [(1, 1000), (0, 500), (40, 1024)])
    decoding = 999 // 16 - 900 // 16 + 1
    chunk = 1023 // 16 - (1024 - 40 - 99) // 16 + 1
    assert copies == 2 * (decoding + chunk)  # 40 tokens of two heads are one tile of 128 query vectors


def _copies(shape: Shape, rows: cases.Rows) -> int:
    inputs = cases.build(shape, HOPPER, rows, np.random.default_rng(0))
    run = functools.partial(
        mosaic_gpu.paged_attention, options=AttentionOptions(0.1, shape.sliding_window), target=HOPPER,
        interpret=plgpu.InterpretGPUParams(), count_copies=True,
    )  # fmt: skip
    *_, copies = jax.jit(run)(*inputs.args, None)
    return int(copies)


@pytest.mark.longer
@interpreted
def test_a_race_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel without its waits: the detector must fire, or the tests above prove nothing."""
    from pallas_kernels.paged_attention import mosaic_gpu_kernel

    monkeypatch.setattr(mosaic_gpu_kernel.plgpu, "barrier_wait", lambda barrier: None)
    _forget_programs()
    try:
        with pytest.raises(AssertionError):
            TestMosaicGpu().test_pages_shared_between_rows()
        assert _races().races_found
    finally:
        _forget_programs()


def _forget_programs() -> None:
    _interpreted.cache_clear()
    mosaic_gpu.paged_attention.clear_cache()


@pytest.mark.parametrize(
    ("target", "change", "reason"),
    [
        (DeviceTarget("cpu", "cpu"), {}, "it runs on NVIDIA GPUs only"),
        (DeviceTarget("gpu", "NVIDIA A100", (8, 0)), {}, "compute capability is (8, 0); it must be (9, 0), Hopper"),
        (DeviceTarget("gpu", "NVIDIA B200", (10, 0)), {}, "compute capability is (10, 0); it must be (9, 0), Hopper"),
        (HOPPER, {"dtype": jnp.float32}, "queries are float32; they must be bfloat16"),
        (HOPPER, {"kv_dtype": jnp.float32}, "pages are float32; they must be bfloat16, int8 or float8_e4m3fn"),
        (HOPPER, {"head_dim": 72}, "head_dim is 72; it must be 64, 80, 96, 128 or 256"),
        (HOPPER, {"page_size": 24}, "page_size is 24; with bfloat16 pages it must be one of (16, 32, 64, 128, 256)"),
        (
            HOPPER,
            {"page_size": 16, "kv_dtype": jnp.int8},
            "page_size is 16; with int8 pages it must be one of (32, 64, 128, 256)",
        ),
        (HOPPER, {"group": 65}, "130 query heads share 2 kv heads; at most 64 may share one"),
    ],
)
def test_what_it_does_not_serve_has_a_reason(target: DeviceTarget, change: dict[str, Any], reason: str) -> None:
    supports = {backend.name: backend.supports for backend in OP.backends}["mosaic_gpu"]
    assert supports(HOPPER, case_of(SMALL)) is None
    assert supports(target, case_of(dataclasses.replace(SMALL, **change))) == reason
