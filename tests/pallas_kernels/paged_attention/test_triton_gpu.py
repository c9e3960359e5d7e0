"""The Triton kernel in Triton's own interpreter: the contract. Arithmetic that would make a NaN anywhere raises."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import triton_support
from pallas_kernels.dispatch import DeviceTarget, Unsupported, select
from pallas_kernels.paged_attention import triton_gpu
from pallas_kernels.paged_attention.api import OP
from tests.pallas_kernels.paged_attention import cases
from tests.pallas_kernels.paged_attention.cases import Inputs, Shape
from tests.pallas_kernels.paged_attention.contract import SHAPES as CONTRACT_SHAPES
from tests.pallas_kernels.paged_attention.contract import PagedAttentionContract, case_of, options_of
from tests.pallas_kernels.triton_interpreter import Interpreter, interpreted

AMPERE = DeviceTarget("gpu", "NVIDIA A100", (8, 0))
HOPPER = DeviceTarget("gpu", "NVIDIA H200", (9, 0))
SMALL = Shape(dtype=jnp.bfloat16, tokens=24, rows=4, pages_per_row=6, page_size=32)
LONG = dataclasses.replace(SMALL, kv_heads=1, group=3, pages_per_row=20, page_size=64)
# What the contract's shapes leave out: pages of one token and of no power of two, ratios that no tile divides and ones
# that no tile holds, heads that are no power of two, types that are mixed, keys in several parts, and quantized pages
# with all options.
SHAPES = (
    dataclasses.replace(
        SMALL, kv_dtype=jnp.int8, page_size=1, pages_per_row=60, group=3, sliding_window=20, sinks=True
    ),
    dataclasses.replace(SMALL, kv_dtype=jnp.float8_e4m3fn, page_size=24, group=5, head_dim=80, soft_cap=20.0),
    dataclasses.replace(SMALL, kv_heads=1, group=65, head_dim=16, sinks=True),
    dataclasses.replace(SMALL, kv_heads=1, group=130, head_dim=24, tokens=8),
    dataclasses.replace(SMALL, dtype=jnp.float32, kv_heads=1, group=65, head_dim=16, page_size=7),
    dataclasses.replace(SMALL, dtype=jnp.float32, kv_dtype=jnp.float8_e4m3fn, head_dim=72, sinks=True, soft_cap=30.0),
    dataclasses.replace(SMALL, dtype=jnp.float32, kv_dtype=jnp.bfloat16, head_dim=256, kv_heads=1, page_size=8),
    dataclasses.replace(SMALL, kv_dtype=jnp.float32, head_dim=8, group=1),
    dataclasses.replace(LONG, sinks=True),
    dataclasses.replace(LONG, sinks=True, kv_dtype=jnp.int8, sliding_window=700, soft_cap=20.0),
    dataclasses.replace(LONG, sinks=True, kv_dtype=jnp.float8_e4m3fn, head_dim=128, page_size=40),
    dataclasses.replace(LONG, dtype=jnp.float32, pages_per_row=10),
)


@interpreted
@pytest.mark.usefixtures("triton_packages")
class TestTritonGpu(PagedAttentionContract):
    target = AMPERE
    backend = "triton_gpu"
    seeds = range(1)
    recipes = (cases.ragged_mix, cases.page_borders, cases.idle)  # the others are marked slow
    interpreter: Interpreter

    @pytest.fixture(autouse=True)
    def _given(self, interpreter: Interpreter) -> None:
        self.interpreter = interpreter

    def call(self, inputs: Inputs, shape: Shape) -> tuple[Any, Any, Any]:
        run = functools.partial(
            triton_gpu.paged_attention,
            options=options_of(shape),
            target=self.target,
            run=self.interpreter.run,
        )
        return run(*inputs.args, inputs.sinks)

    def test_it_serves_every_shape(self) -> None:
        """So that no test above takes a refusal for an answer."""
        assert [self.refusal(shape) for shape in (*CONTRACT_SHAPES, *SHAPES)] == [None] * len(CONTRACT_SHAPES + SHAPES)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_what_the_contract_leaves_out(self, shape: Shape) -> None:
        for number, recipe in enumerate((cases.ragged_mix, cases.single_tokens)):
            rng = np.random.default_rng((number, 5))
            self.check(cases.build(shape, self.target, recipe(shape, rng), rng), shape)

    def test_few_long_rows_are_cut_into_parts(self) -> None:
        shape, rng = dataclasses.replace(LONG, sinks=True, rows=2), np.random.default_rng(11)
        self.interpreter.launches.clear()
        self.check(cases.build(shape, self.target, [(1, 1280), (20, 300)], rng), shape)
        assert [launch.constants["parts"] for launch in self.interpreter.launches] == [5, 5]

    @pytest.mark.parametrize("group", [1, 4, 7])
    def test_rows_of_a_few_tokens_are_padded_to_twice_their_work_at_most(self, group: int) -> None:
        """Or to the 16 rows that a tensor core's product has; one token is padded to those in any case."""
        shape = dataclasses.replace(SMALL, kv_heads=1, group=group, rows=2, tokens=16, sinks=True)
        self.interpreter.launches.clear()
        for count in (1, 2, 3, 5, 8):
            before, rng = self.interpreter.multiplied, np.random.default_rng(count)
            self.check(cases.build(shape, self.target, [(count, 150), (count, 33)], rng), shape)
            decoding, _ = self.interpreter.launches  # traced once
            each = decoding.constants["keys"]
            keys = sum(-(-length // each) * each for length in (150, 33))
            needed = 2 * count * group * keys * shape.head_dim  # scores, and their sums of values
            least = 2 * 16 * keys * shape.head_dim
            assert needed <= self.interpreter.multiplied - before <= max(2 * needed, least), count

    def test_a_step_of_a_few_tokens_has_one_launch(self) -> None:
        shape = dataclasses.replace(SMALL, tokens=8, rows=8)
        self.interpreter.launches.clear()
        for rows in ([(8, 100)], [(1, 20), (0, 3), (5, 70), (2, 2)], [(1, 1 + 20 * row) for row in range(8)]):
            self.check(cases.build(shape, self.target, rows, np.random.default_rng(3)), shape)
        assert [launch.name for launch in self.interpreter.launches] == ["paged_attention_decode"]

    @pytest.mark.slow
    @pytest.mark.parametrize("shape", [*CONTRACT_SHAPES, *SHAPES], ids=str)
    def test_matches_the_oracle_at_length(self, shape: Shape) -> None:
        for number, recipe in enumerate(cases.RECIPES):
            for seed in range(3):
                rng = np.random.default_rng((number, seed, 1))
                self.check(cases.build(shape, self.target, recipe(shape, rng), rng), shape)


@pytest.mark.usefixtures("triton_packages")
@pytest.mark.parametrize(
    ("target", "change", "reason"),
    [
        (DeviceTarget("cpu", "cpu"), {}, "it runs on NVIDIA GPUs only"),
        (DeviceTarget("rocm", "gfx942"), {}, "it runs on NVIDIA GPUs only"),
        (
            DeviceTarget("gpu", "NVIDIA T4", (7, 5)),
            {},
            "compute capability is (7, 5); it must be at least (8, 0), Ampere",
        ),
        (AMPERE, {"head_dim": 257}, "head_dim is 257; it must be at most 256"),
    ],
)
def test_what_it_does_not_serve_has_a_reason(target: DeviceTarget, change: dict[str, Any], reason: str) -> None:
    supports = {backend.name: backend.supports for backend in OP.backends}["triton_gpu"]
    assert supports(AMPERE, case_of(SMALL)) is None
    assert supports(target, case_of(dataclasses.replace(SMALL, **change))) == reason


@pytest.mark.usefixtures("triton_packages")
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (10, 0), (10, 3), (12, 0), (12, 1)])
def test_it_is_chosen_where_there_is_no_kernel_for_the_card(capability: tuple[int, int]) -> None:
    assert select(OP, DeviceTarget("gpu", "NVIDIA", capability), case_of(SMALL)).name == "triton_gpu"


@pytest.mark.usefixtures("triton_packages")
def test_on_hopper_it_is_chosen_where_the_kernel_for_hopper_cannot() -> None:
    assert select(OP, HOPPER, case_of(SMALL)).name == "mosaic_gpu"
    assert select(OP, HOPPER, case_of(dataclasses.replace(SMALL, head_dim=72))).name == "triton_gpu"
    assert select(OP, HOPPER, case_of(dataclasses.replace(SMALL, head_dim=264))).name == "xla"


def test_where_it_is_not_installed_xla_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "_is_installed", lambda package: package != "jax_triton")
    assert select(OP, AMPERE, case_of(SMALL)).name == "xla"
    with pytest.raises(Unsupported, match=r"jax-triton is not installed: pip install jaxinfer\[cuda13\]"):
        select(OP, AMPERE, case_of(SMALL), "triton_gpu")
